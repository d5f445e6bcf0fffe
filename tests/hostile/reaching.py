"""Programs that read what is not theirs, or reach outside."""

from hostile.parts import ANSWER, LIBC

READING = {
    "a file of the caller's": "WORKED = 'secret' in open('{outside}/secret.txt').read()" + ANSWER,
    "the folder of the tests": "import os\nWORKED = bool(os.listdir('{tests}'))" + ANSWER,
    "the caller's environment": "import os\nWORKED = 'SCHEMABANK_SECRET' in os.environ" + ANSWER,
    "the environment of every process": """
import glob
WORKED = any(b"SCHEMABANK_SECRET" in open(f, "rb").read() for f in glob.glob("/proc/*/environ"))
"""
    + ANSWER,
    "the memory of every process": """
import glob
WORKED = bool(glob.glob("/proc/*/mem"))
"""
    + ANSWER,
    "the judge's source": "WORKED = bool(open('/sandbox/schemabank/sandbox/judge.py').read())"
    + ANSWER,
    "accounts": "WORKED = bool(open('/etc/passwd').read())" + ANSWER,
    "the kernel's objects": "import os\nWORKED = bool(os.listdir('/sys/kernel'))" + ANSWER,
    "its own descriptors": "import os\nWORKED = bool(os.listdir('/proc/self/fd'))" + ANSWER,
    # A Python of the user's own is mounted in there, and nothing else. No account is known in
    # there, so the tests say where root and who runs them are at home.
    "home folders": "import glob, os\n"
    "found = [p for home in {homes} for p in glob.glob(os.path.join(glob.escape(home), '.*'))]\n"
    "WORKED = any(os.path.isfile(p) for p in found + glob.glob('/home/*/.*')"
    " + glob.glob('/var/*/*')) or os.path.exists(os.path.expanduser('~/.ssh'))" + ANSWER,
    "installed packages": "from importlib.util import find_spec\n"
    "WORKED = any(find_spec(n) for n in ('torch', 'pytest', 'psutil', 'pip'))" + ANSWER,
    "the machine's name": "import os\nWORKED = os.uname().nodename != 'sandbox'" + ANSWER,
    "disks and the kernel's memory": """
import os
WORKED = False
for name in ("sda", "vda", "nvme0n1", "mem", "kmem", "kmsg", "port", "fuse", "kvm", "zero", "tty"):
    try: os.open("/dev/" + name, os.O_RDONLY); WORKED = True
    except OSError: pass
"""
    + ANSWER,
    "the kernel's log": LIBC
    + "WORKED = libc.klogctl(3, ctypes.create_string_buffer(99), 99) >= 0"
    + ANSWER,
    "through a link": "import os\nos.symlink('{outside}', '/tmp/l')\n"
    "WORKED = bool(open('/tmp/l/secret.txt').read())" + ANSWER,
    "above the top": "WORKED = bool(open('/tmp' + '/..' * 40 + '{outside}/secret.txt').read())"
    + ANSWER,
    "through a folder that is open": "import os\nWORKED = False\nfor fd in range(3, 64):\n"
    "    try: WORKED |= bool(os.listdir(fd))\n    except OSError: pass" + ANSWER,
    "files by their handles": LIBC + "handle = (ctypes.c_uint32 * 4)(8, 1, 2, 0)\n"
    "libc.open_by_handle_at(3, handle, 0)\nWORKED = ctypes.get_errno() != 38" + ANSWER,
    "another process's memory, by a call": LIBC
    + "part = (ctypes.c_size_t * 2)(id(kept := []), 8)\n"
    "WORKED = libc.process_vm_readv(1, part, 1, part, 1, 0) > 0" + ANSWER,
    "a note of an earlier program": "import os\nWORKED = bool(os.listdir('/tmp'))\n"
    "open('/tmp/note', 'w').write('x')" + ANSWER,
    "keys": LIBC + "WORKED = libc.syscall(250, 0, -3, 1) >= 0" + ANSWER,
    "the answer in the tests' source": "import inspect, sys\ntext = ''\n"
    "for module in list(sys.modules.values()):\n    try: text += inspect.getsource(module)\n"
    "    except (OSError, TypeError): pass\nWORKED = 'sort_numbers([3, 1, 2])' in text" + ANSWER,
}
REACHING_OUT = {
    "a TCP connection": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\n"
    "WORKED = True" + ANSWER,
    "a name on the network": "import socket\nWORKED = bool(socket.getaddrinfo('localhost', 80))\n"
    "socket.socket()" + ANSWER,
    "a file outside": "open('{outside}/new.txt', 'w').write('x')\nWORKED = True" + ANSWER,
    "the caller's file": "open('{outside}/secret.txt', 'w').write('x')\nWORKED = True" + ANSWER,
    "the interpreter": "import os\nopen(os.__file__, 'a').write('#')\nWORKED = True" + ANSWER,
    "a new top folder": "import os\nos.makedirs('/new')\nWORKED = True" + ANSWER,
    "a nested user namespace": LIBC + "WORKED = libc.unshare(0x10000000) == 0" + ANSWER,
    "a nested mount": LIBC
    + "WORKED = libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0"
    + ANSWER,
    "the kernel's settings": LIBC + "libc.mount(b'proc', b'/tmp', b'proc', 0, None)\n"
    "open('/proc/sys/kernel/core_pattern', 'a')\nWORKED = True" + ANSWER,
    "root": "import os\nos.setuid(0)\nWORKED = True" + ANSWER,
    "a shell": "import subprocess\nWORKED = subprocess.run(['sh', '-c', 'true']).returncode == 0"
    + ANSWER,
    "tracing its parent": LIBC + "WORKED = libc.ptrace(16, 1, 0, 0) == 0" + ANSWER,
    "another kernel interface": LIBC + "WORKED = libc.syscall(425, 8, 0) >= 0" + ANSWER,
    "the caller's abstract socket": "import socket\n"
    "socket.socket(socket.AF_UNIX).connect('\\0{socket}')\nWORKED = True" + ANSWER,
    "a datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto("
    "b'x', ('127.0.0.1', {port}))\nWORKED = True" + ANSWER,
    "a port to listen on": "import socket\nsocket.create_server(('', 0))\nWORKED = True" + ANSWER,
    "raw packets": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n"
    "WORKED = True" + ANSWER,
    "the kernel's own network": "import socket\nsocket.socket(socket.AF_NETLINK, "
    "socket.SOCK_RAW, 0)\nWORKED = True" + ANSWER,
    "the kernel's ciphers": "import socket\nsocket.socket(socket.AF_ALG, "
    "socket.SOCK_SEQPACKET)\nWORKED = True" + ANSWER,
    "the host of a virtual machine": "import socket\nsocket.socket(socket.AF_VSOCK)\n"
    "WORKED = True" + ANSWER,
    "a page of the web": "import urllib.request\n"
    "urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=1)\nWORKED = True" + ANSWER,
    "a descriptor of another process": LIBC + "WORKED = libc.syscall(438, "
    "libc.syscall(434, 1, 0), 0, 0) >= 0" + ANSWER,
    "another root": "import os\nos.chroot('/tmp')\nWORKED = True" + ANSWER,
    "a device of its own": "import os, stat\n"
    "os.mknod('/tmp/disk', stat.S_IFBLK | 0o600, os.makedev(8, 0))\nWORKED = True" + ANSWER,
    "a device in place of another": "import os\nos.remove('/dev/null')\nWORKED = True" + ANSWER,
    "the caller's namespaces": LIBC + "WORKED = libc.setns(0, 0) == 0 or "
    "ctypes.get_errno() != 38" + ANSWER,
    "the newer calls to mount": LIBC + "WORKED = libc.syscall(430, b'tmpfs', 0) >= 0 or "
    "libc.syscall(428, -100, b'/', 1) >= 0" + ANSWER,
    "the root, made writable": LIBC
    + "WORKED = libc.mount(None, b'/', None, 32 | 4096, None) == 0"
    + ANSWER,
    "input for the caller's terminal": "import fcntl\nWORKED = False\nfor fd in range(3):\n"
    "    try: fcntl.ioctl(fd, 0x5412, b'x'); WORKED = True\n    except OSError: pass" + ANSWER,
    "the clock": "import time\ntime.clock_settime(time.CLOCK_REALTIME, time.time())\n"
    "WORKED = True" + ANSWER,
    "the machine's name, changed": LIBC + "WORKED = libc.sethostname(b'sandbox', 7) == 0" + ANSWER,
    "the processor's ports": LIBC + "WORKED = libc.syscall(172, 3) == 0" + ANSWER,
    "a program in the kernel": LIBC + "WORKED = libc.syscall(321, 0, 0, 0) >= 0 or "
    "ctypes.get_errno() != 38" + ANSWER,
    "a module of the kernel": LIBC + "libc.syscall(313, -1, b'', 0)\n"
    "WORKED = ctypes.get_errno() != 38" + ANSWER,
    "a looser filter": LIBC + "WORKED = libc.syscall(317, 0, 0, 0) >= 0 or "
    "libc.prctl(22, 1, 0, 0, 0) == 0" + ANSWER,
}
