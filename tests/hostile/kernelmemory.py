"""Programs that take the kernel's memory beyond a process's limits, in bounded amounts.

Each sets ``WORKED``: whether it got what it must not get. Few programs here take more than some
hundred MiB, even where nothing holds them back.
"""

BEGIN = """
import ctypes, fcntl, mmap, os, select, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
WORKED = False

def kept(make, most):
    made = []
    try:
        while len(made) < most: made.append(make())
    except OSError:
        pass
    return made

def filled(write, most):
    total = 0
    try:
        while total < most: total += write(bytes(4096))
    except OSError:
        pass
    return total

def mapped(addresses):
    for address in addresses:
        found = libc.mmap(ctypes.c_void_p(address), ctypes.c_size_t(4096), 3, 0x100022, -1, 0)
        if found in (None, 2**64 - 1): return False
        ctypes.memset(found, 1, 1)
    return True
"""
END = "\ndef function(): return WORKED\n"
MIB = 2**20

# Calls that hold memory which nothing counts: none of them may be there. Values are C, numbers of
# calls those of x86-64.
REFUSED = {
    "extended attributes": "open('/tmp/x', 'w').close()\n"
    "os.setxattr('/tmp/x', 'user.x', bytes(60000)); WORKED = True",
    "extended attributes of a link": "os.symlink('x', '/tmp/l')\n"
    "WORKED = libc.lsetxattr(b'/tmp/l', b'trusted.x', b'y', 1, 0) == 0",
    "extended attributes of a descriptor": "file = open('/tmp/x', 'w')\n"
    "os.setxattr(file.fileno(), 'user.x', bytes(60000)); WORKED = True",
    "extended attributes by the newest call": "open('/tmp/x', 'w').close()\n"
    "WORKED = libc.syscall(463, -100, b'/tmp/x', 0, b'user.x', b'y' * 16, 16) == 0",
    "locks on ranges": "file = open('/tmp/x', 'w')\n"
    "fcntl.lockf(file, fcntl.LOCK_EX, 1, 8); WORKED = True",
    "locks of open files": "file = open('/tmp/x', 'w')\n"
    "fcntl.fcntl(file, 37, bytes([1, *[0] * 31])); WORKED = True",
    "locks on files": "file = open('/tmp/x', 'w')\nfcntl.flock(file, fcntl.LOCK_EX); WORKED = True",
    "leases": "fcntl.fcntl(open('/tmp/x', 'w'), fcntl.F_SETLEASE, fcntl.F_WRLCK); WORKED = True",
    "watches of a folder": "fcntl.fcntl(os.open('/tmp', 0), fcntl.F_NOTIFY, 2); WORKED = True",
    "watches of files": "WORKED = libc.inotify_init1(0) >= 0",
    "watches of a file system": "WORKED = libc.fanotify_init(0, 0) >= 0",
    "larger pipes": "fcntl.fcntl(os.pipe()[1], 1031, 2**20); WORKED = True",
    "pages lent to a pipe": "lent = ctypes.create_string_buffer(4096)\n"
    "vector = (ctypes.c_void_p * 2)(ctypes.addressof(lent), 4096)\n"
    "WORKED = libc.vmsplice(os.pipe()[1], vector, 1, 0) > 0",
    "pages of a file lent to a pipe": "open('/tmp/x', 'w').write('x' * 4096)\n"
    "WORKED = libc.splice(os.open('/tmp/x', 0), None, os.pipe()[1], None, 4096, 0) > 0",
    "pages sent to a pipe": "open('/tmp/x', 'w').write('x' * 4096)\n"
    "os.sendfile(os.pipe()[1], os.open('/tmp/x', 0), 0, 4096); WORKED = True",
    "larger sockets": "pair = socket.socketpair()\n"
    "pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**30); WORKED = True",
    "descriptors in flight": "a, b = socket.socketpair()\n"
    "socket.send_fds(a, [b'x'], [b.fileno()]); WORKED = True",
    "sockets of another family": "socket.socketpair(socket.AF_TIPC); WORKED = True",
    "memory files": "os.memfd_create('x'); WORKED = True",
    "shared memory": "WORKED = libc.shmget(0, ctypes.c_size_t(2**20), 0o1600) >= 0",
    "semaphores": "WORKED = libc.semget(0, 250, 0o1600) >= 0",
    "message queues": "WORKED = libc.msgget(0, 0o1600) >= 0",
    "named message queues": "WORKED = libc.mq_open(b'/x', 0o102, 0o600, None) >= 0",
    "timers": "WORKED = libc.timer_create(1, None, ctypes.create_string_buffer(8)) == 0",
    "timers as files": "WORKED = libc.timerfd_create(1, 0) >= 0",
    "signals as files": "WORKED = libc.signalfd(-1, ctypes.create_string_buffer(128), 0) >= 0",
    "huge pages": "found = libc.mmap(None, ctypes.c_size_t(2**21), 3, 0x40022, -1, 0)\n"
    "WORKED = found != 2**64 - 1 or ctypes.get_errno() != 95",
    "protection keys": "WORKED = libc.pkey_alloc(0, 0) >= 0",
    "locked memory": "WORKED = libc.mlockall(1) == 0",
    "shared memory without a name": "kept = mmap.mmap(-1, 4096); WORKED = True",
    "shared zeros": "kept = mmap.mmap(os.open('/dev/zero', 2), 4096); WORKED = True",
    "huge pages on request": "found = libc.mmap(None, ctypes.c_size_t(2**22), 3, 0x22, -1, 0)\n"
    "WORKED = libc.madvise(ctypes.c_void_p(found), ctypes.c_size_t(2**22), 14) == 0",
    "huge pages at once": "found = libc.mmap(None, ctypes.c_size_t(2**22), 3, 0x22, -1, 0)\n"
    "WORKED = libc.madvise(ctypes.c_void_p(found), ctypes.c_size_t(2**22), 25) == 0",
    "huge pages again": "WORKED = any(libc.prctl(41, *rest) == 0 for rest in "
    "((0, 0, 0, 0), (1, 2, 0, 0), (1, 1, 0, 0)))",
    "equal pages": "found = libc.mmap(None, ctypes.c_size_t(2**22), 3, 0x22, -1, 0)\n"
    "WORKED = libc.madvise(ctypes.c_void_p(found), ctypes.c_size_t(2**22), 12) == 0",
    "terminals": "os.open('/dev/ptmx', 2); WORKED = True",
    "shared memory with a name": "open('/dev/shm/x', 'w'); WORKED = True",
    "semaphores with a name": "WORKED = bool(libc.sem_open(b'/x', 0o102, 0o600, 1))",
    "secret memory": "WORKED = libc.syscall(447, 0) >= 0",
    "counters of events": "WORKED = libc.eventfd(0, 0) >= 0",
    "requests that wait": "WORKED = libc.syscall(206, 64, ctypes.create_string_buffer(8)) == 0",
    "rings of requests": "WORKED = libc.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0",
    "faults as messages": "WORKED = libc.syscall(323, 1) >= 0",
    "keys": "WORKED = libc.syscall(248, b'user', b'x', b'y' * 9999, 9999, -3) >= 0",
    "programs in the kernel": "WORKED = libc.syscall(321, 0, bytes(128), 128) >= 0",
    "counters of performance": "WORKED = libc.syscall(298, bytes(128), 0, -1, -1, 0) >= 0",
    "rules for files": "WORKED = libc.syscall(444, bytes(8), 8, 0) >= 0",
    "filters of calls": "WORKED = libc.syscall(317, 1, 0, bytes(16)) == 0",
    "handles on processes": "WORKED = libc.syscall(434, os.getpid(), 0) >= 0",
    "namespaces": "WORKED = any(libc.unshare(kind) == 0 for kind in "
    "(0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000, 0x2000000, 0x80))",
    "rules for memory": "WORKED = libc.syscall(237, None, 0, 0, 0, 0, 0) == 0",
    "a message of sockets": "a, b = socket.socketpair(); a.sendmsg([b'x']); WORKED = True",
    "networks": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); WORKED = True",
}  # fmt: skip
# What is there, up to a bound that the program itself finds.
BOUNDED = {
    "pipes": "pipes = kept(os.pipe, 1000)\n"
    "for pipe in pipes: os.set_blocking(pipe[1], False)\n"
    f"WORKED = sum(filled(lambda d: os.write(p[1], d), 2**24) for p in pipes) > {MIB}",
    "pairs of sockets": "pairs = kept(socket.socketpair, 1000)\n"
    "for a, b in pairs: a.setblocking(False); b.setblocking(False)\n"
    f"WORKED = sum(filled(s.send, 2**24) for pair in pairs for s in pair) > 8 * {MIB}",
    "sets of watched descriptors": "sets = kept(select.epoll, 1000); WORKED = len(sets) > 32",
    "open files without a name": "def make(): return os.open('/tmp', os.O_TMPFILE | os.O_RDWR)\n"
    "WORKED = len(kept(make, 1000)) > 32",
    "waiting signals": "signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 64))\n"
    "for _ in range(10000): os.kill(os.getpid(), 40)\n"
    "WORKED = sum(1 for _ in range(10000) if signal.sigtimedwait([40], 0)) > 65",
    "a file with holes": "file = open('/tmp/x', 'wb')\nos.truncate('/tmp/x', 2**40); WORKED = True",
    "a file with data far apart": "file = os.open('/tmp/x', os.O_CREAT | os.O_RDWR)\n"
    "def write(): return os.pwrite(file, b'x', os.lseek(file, 2**32, 1))\n"
    "WORKED = len(kept(write, 9000)) > 4096",
    "pieces of one mapping": "size = ctypes.c_size_t(2**28)\n"
    "start = libc.mmap(None, size, 1, 0x22, -1, 0)\n"
    "made = []\n"
    "while len(made) < 30000 and libc.mprotect("
    "ctypes.c_void_p(start + 8192 * len(made)), ctypes.c_size_t(4096), 3) == 0: made.append(1)\n"
    "WORKED = len(made) * 2 > 65530",
    "what is left of large mappings": "libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]\n"
    "for _ in range(150):\n"
    "    found = libc.mmap(None, ctypes.c_size_t(2**24), 3, 0x22, -1, 0)\n"
    "    if found in (None, 2**64 - 1): break\n"
    "    ctypes.memset(found, 1, 2**24)\n"
    "    libc.munmap(found + 4096, 2**24 - 4096)",
    "descriptors in sets": "sets = kept(select.epoll, 12)\n"
    "pipes = kept(os.pipe, 8)\n"
    "for one in sets:\n    for ends in pipes:\n        for end in ends: one.register(end)\n"
    "WORKED = len(sets) * len(pipes) > 32 * 32",
    "datagrams": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    "a.setblocking(False); sent = 0\n"
    "try:\n    while sent < 10**6: a.send(b''); sent += 1\n"
    "except OSError: pass\nWORKED = sent > 10**4",
}  # fmt: skip
# What the watch from outside ends, or the kernel: thirty thousand of each are some tens of MiB.
WATCHED = {
    "files": "for n in range(30000): os.close(os.open(f'/tmp/{n}', os.O_CREAT))",
    "files with long names": "for n in range(30000):\n"
    "    os.close(os.open(f'/tmp/{n}' + 'x' * 240, os.O_CREAT))",
    "folders": "for n in range(30000): os.mkdir(f'/tmp/{n}')",
    "folders in folders": "for n in range(30000): os.mkdir('x'); os.chdir('x')",
    "links": "open('/tmp/x', 'w').close()\nfor n in range(30000): os.link('/tmp/x', f'/tmp/{n}')",
    "symbolic links": "for n in range(30000): os.symlink('x' * 100, f'/tmp/{n}')",
    "files that are gone and mapped": "maps = []\n"
    "for n in range(64):\n"
    "    with open('/tmp/x', 'w+b') as file:\n"
    "        file.truncate(2**20); maps.append(mmap.mmap(file.fileno(), 2**20))\n"
    "    os.unlink('/tmp/x'); maps[-1].write(bytes(2**20))",
    "page tables": "mapped(range(2**40, 2**40 + 20000 * 2**21, 2**21))",
    "upper page tables": "mapped(range(2**40, 2**40 + 20000 * 2**30, 2**30))",
}
PROGRAMS = {"refused": REFUSED, "bounded": BOUNDED, "watched": WATCHED}


def source(kind: str, name: str) -> str:
    """The program; one that is watched has worked if it comes to its end."""
    reached = "WORKED = True\n" if kind == "watched" else ""
    # Left to itself, it goes on holding what it has for a moment, as an attacker would.
    wait = "import time; time.sleep(0.2)\n" if kind == "watched" else ""
    body = PROGRAMS[kind][name] + "\n" + wait + reached
    if kind == "watched":
        return BEGIN + body + END
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{BEGIN}try:\n{indented}except (OSError, MemoryError, AttributeError): pass\n{END}"
