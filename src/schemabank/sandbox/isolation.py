"""Starts a process inside bubblewrap: what it sees, what it may do, and how it is cleaned up.

It sees the operating system's libraries, this Python without its site-packages, and the modules
that it runs, all read-only, plus a small /tmp in memory. There is no /proc: a sandbox that root
starts could write the kernel's settings there.
"""

import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from schemabank.common.errors import InputError
from schemabank.sandbox.result import SandboxError
from schemabank.sandbox.seccomp import ARCHITECTURES, call_filter
from schemabank.sandbox.watch import Inside, Watch

TMP_BYTES = 16 * 2**20
NOBODY = "65534"
DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
PROBE_LIMIT_S = 60
MAX_COMPLAINT_BYTES = 2**12
STOP_LIMIT_S = 30
HERE = Path(__file__).parent
SHARED = ("wire.py", "limits.py")
GUEST = ("guest.py", *SHARED)
JUDGE = ("judge.py", "remote.py", "reasons.py", *SHARED)


def require_isolation() -> None:
    """Find out whether code can be isolated here, by starting a sandbox once.

    Raises:
        InputError: bubblewrap is missing, or cannot do what is asked of it here.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        raise InputError(
            "SIGCHLD is ignored in this process, so bubblewrap would never learn that code has "
            "ended: call signal.signal(signal.SIGCHLD, signal.SIG_DFL) before"
        )
    _probe(_bubblewrap())


def open_pipe() -> tuple[int, int]:
    """Make a pipe, its reading end first.

    Never at 0, 1 or 2: these are free where the caller has closed its standard streams, but
    belong to the streams of every process that it starts.
    """
    ends = os.pipe()
    if min(ends) > 2:
        return ends
    try:
        reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in ends)
    finally:
        for end in ends:
            os.close(end)
    return reading, writing


@dataclass(frozen=True)
class Usage:
    """What a process inside may use, at most.

    Attributes:
        memory_mib: address space.
        cpu_s: processor time.
    """

    memory_mib: int
    cpu_s: int


class Sandbox:
    """One process inside bubblewrap; leaving the context kills everything in there and reaps it.

    Args:
        modules: files of this package that it needs; the first one's ``main`` is run.
        descriptors: open file descriptors that it gets, as its first arguments.
        usage: its limits, which it sets itself before anything else.
    """

    def __init__(
        self, modules: tuple[str, ...], descriptors: Sequence[int], *, usage: Usage
    ) -> None:
        module = modules[0].removesuffix(".py")
        start = (
            "import sys; sys.path.insert(0, '/sandbox'); "
            f"from schemabank.sandbox.{module} import main; main()"
        )
        arguments = [*descriptors, usage.memory_mib, usage.cpu_s]
        self._status, status = open_pipe()
        self._usage = usage
        self._inside: Inside | None = None
        self._stopped = False
        self._said = ""
        try:
            self._process = _start_inside(
                [*_python_command(), "-c", start, *map(str, arguments)],
                modules,
                descriptors,
                status,
            )
        except BaseException:
            os.close(self._status)
            raise
        finally:
            os.close(status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def hold(self) -> None:
        """Take hold of the process inside, before anything untrusted may run.

        When that one is killed, bubblewrap outside reaps it; killing bubblewrap itself would leave
        it to whatever reaps orphans here, or even alive if it has not yet asked the kernel to die
        with its parent.
        """
        told = select.poll()
        told.register(self._status, select.POLLIN)
        if self._inside is not None or not told.poll(STOP_LIMIT_S * 1000):
            return
        number = re.search(rb'"child-pid": *(\d+)', os.read(self._status, 4096))
        if number is not None:
            self._inside = _open_child(int(number[1]), self._process.pid)

    def watch(self, limit_s: float) -> Watch:
        """Look at what the process inside holds of the kernel; :meth:`hold` comes before.

        Raises:
            SandboxError: it cannot be seen within that time.
        """
        if self._inside is None and self.wait(STOP_LIMIT_S) is None:
            raise SandboxError("the process in the sandbox runs, and there is no handle on it")
        memory_mib = self._usage.memory_mib
        return Watch(self._inside, memory_mib=memory_mib, tmp_bytes=TMP_BYTES, limit_s=limit_s)

    def kill(self) -> None:
        """Kill the process inside; bubblewrap, which then ends too, is left to :meth:`stop`."""
        if self._inside is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._inside.handle, signal.SIGKILL)

    def wait(self, limit_s: float) -> int | None:
        """Return its exit code when it has ended, None after that time."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(limit_s)
        return None

    def stop(self) -> str:
        """Kill everything inside; return what bubblewrap complained about. May be called again.

        Raises:
            SandboxError: it does not end.
        """
        if not self._stopped:
            self._stopped = True
            try:
                self._kill_inside()
            finally:
                self._close_handles()
        return self._said

    def _kill_inside(self) -> None:
        if self._process.poll() is None:
            self.hold()
        self.kill()
        if self._inside is None or self.wait(STOP_LIMIT_S) is None:
            self._process.kill()
            if self.wait(STOP_LIMIT_S) is None:
                raise SandboxError("bubblewrap was killed and does not end")

    def _close_handles(self) -> None:
        if self._inside is not None:
            os.close(self._inside.handle)
        os.close(self._status)
        errors = self._process.stderr
        assert errors is not None
        with errors:
            os.set_blocking(errors.fileno(), False)
            said = errors.read(MAX_COMPLAINT_BYTES) or b""
        self._said = " ".join(said.decode(errors="replace").split())


def _open_child(number: int, parent: int) -> Inside | None:
    """Open a handle on a parent's child; None if it has ended, and others may have its number.

    A child that the parent still has after the handle was opened is whom the handle is on.
    """
    try:
        handle = os.pidfd_open(number)
    except OSError:  # it has ended, or this process has no descriptor left
        return None
    if _parent_of(number) != parent:
        os.close(handle)
        return None
    return Inside(number, handle)


def _parent_of(number: int) -> int | None:
    with suppress(OSError):
        return int(Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()[1])
    return None


def _start_inside(
    command: Sequence[str], modules: tuple[str, ...], descriptors: Sequence[int], status: int
) -> subprocess.Popen[bytes]:
    """Start a command inside; ``status`` is told the number of its process."""
    call_rules, writing = open_pipe()
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(call_filter())
        return subprocess.Popen(  # noqa: S603 -- the command is put together here
            [
                *(_bubblewrap(), "--info-fd", str(status), "--seccomp", str(call_rules)),
                *_mount_options(),
                *_file_options(modules),
                # Last, because mount points are made in it.
                *("--remount-ro", "/", "--chdir", "/tmp", "--"),  # noqa: S108 -- the sandbox's own
                *command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(*descriptors, status, call_rules),
        )
    finally:
        os.close(call_rules)


def _mount_options() -> list[str]:
    return [
        *("--unshare-all", "--unshare-user", "--disable-userns"),
        # Bubblewrap's own first process would outlive the one outside, which should reap it.
        *("--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox"),
        # A fixed seed makes sets iterate the same way each time, so results repeat.
        *("--clearenv", "--setenv", "PYTHONHASHSEED", "0"),
        # Not bubblewrap's own /dev: mapped, its zeros are shared memory that no limit counts, and
        # its terminals are the kernel's memory.
        *("--size", "4096", "--tmpfs", "/dev"),
        *(word for name in DEVICES for word in ("--dev-bind", name, name)),
        *("--remount-ro", "/dev"),
        *("--size", str(TMP_BYTES), "--tmpfs", "/tmp"),  # noqa: S108 -- the sandbox's own
    ]


@lru_cache
def _file_options(modules: tuple[str, ...]) -> tuple[str, ...]:
    """What stands in the file system: libraries, Python, and these modules of this package."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/lib", "/lib32", "/lib64", "/libx32"):
        if Path(name).is_symlink():
            options += ["--symlink", str(Path(name).readlink()), name]
        elif Path(name).is_dir():
            options += ["--ro-bind", name, name]
    # Where the loader finds a shared libpython, and where Nix keeps every library.
    for name in ("/etc/ld.so.cache", "/nix/store"):
        options += ["--ro-bind-try", name, name]
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    for prefix in sorted(p for p in prefixes if not Path(p).is_relative_to("/usr")):
        options += ["--ro-bind", prefix, prefix]
    for folder in _site_packages(prefixes):
        options += ["--size", "4096", "--tmpfs", folder, "--remount-ro", folder]
    for module in modules:
        options += ["--ro-bind", str(HERE / module), f"/sandbox/schemabank/sandbox/{module}"]
    return tuple(options)


def _site_packages(prefixes: Iterable[str]) -> list[str]:
    """Folders of installed packages in what is mounted; they are covered by empty ones."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = {f"{prefix}/lib/{name}/site-packages" for prefix in prefixes}
    folders |= {"/usr/lib/python3/dist-packages", f"/usr/local/lib/{name}/dist-packages"}
    return sorted(folder for folder in folders if Path(folder).is_dir())


def _python_command() -> tuple[str, ...]:
    """This interpreter without site-packages; not ``-I``, which would ignore the hash seed."""
    base: str = sys._base_executable  # type: ignore[attr-defined] # typeshed leaves it out
    return (os.path.realpath(base), "-s", "-S", "-P", "-B")


def _bubblewrap() -> str:
    path = shutil.which("bwrap")
    if path is None:
        raise InputError(
            "bubblewrap, which isolates code that a model wrote, is not installed: install it "
            "with your package manager or `make sandbox`"
        )
    return path


@lru_cache
def _probe(bubblewrap: str) -> None:
    """Start Python in a sandbox; only success is remembered."""
    try:
        call_filter()
    except KeyError as error:
        raise InputError(
            f"code cannot be isolated on a processor of type {error}: allowed are "
            f"{', '.join(ARCHITECTURES)}, run it on one of those"
        ) from error
    with Sandbox(("limits.py",), (), usage=Usage(memory_mib=1024, cpu_s=PROBE_LIMIT_S)) as probe:
        code = probe.wait(PROBE_LIMIT_S)
        said = probe.stop()
    if code != 0:
        raise InputError(
            f"{bubblewrap!r} cannot isolate code here (exit {code}: {said or 'it said nothing'}): "
            "needed are bubblewrap 0.8 or newer (`make sandbox` installs it) and user namespaces, "
            "which your system may have to allow (sysctl user.max_user_namespaces, "
            "kernel.apparmor_restrict_unprivileged_userns)"
        )
