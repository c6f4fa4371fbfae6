"""System calls that Python's os module lacks, by ctypes; x86_64 and aarch64."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

# Same numbers on both machines but for the old ones.
_OLD = {
    "x86_64": {"clone": 56, "pivot_root": 155, "capset": 126, "seccomp": 317},
    "aarch64": {"clone": 220, "pivot_root": 41, "capset": 91, "seccomp": 277},
}
NUMBERS = {
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    **_OLD.get(os.uname().machine, {}),
}

CLONE_PIDFD = 0x1000
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
AT_FDCWD, AT_RECURSIVE, AT_EMPTY_PATH = -100, 0x8000, 0x1000

_libc = ctypes.CDLL(None, use_errno=True)
# Keeps the GIL during the call: after a clone the one thread of the child must still hold it.
_held = ctypes.PyDLL(None, use_errno=True)
_held.syscall.restype = ctypes.c_long
_api = ctypes.pythonapi


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(name: str, *args: int | bytes | None) -> int:
    """Integers and buffers as arguments; raises OSError naming the call."""
    if name not in NUMBERS:
        raise OSError(38, f"{name}: no number known for {os.uname().machine}")
    words = [arg if isinstance(arg, bytes) or arg is None else ctypes.c_long(arg) for arg in args]
    return _check(_held.syscall(ctypes.c_long(NUMBERS[name]), *words), name)


def clone(flags: int) -> tuple[int, int]:
    """Fork into new namespaces: (pid, pidfd) for the parent, (0, -1) for the child.

    The raw call skips pthread_atfork handlers, so nothing but the calling thread may exist.
    """
    pidfd = ctypes.c_int(-1)
    _api.PyOS_BeforeFork()
    arguments = (flags | CLONE_PIDFD | signal.SIGCHLD, 0, ctypes.addressof(pidfd), 0, 0)
    pid = _held.syscall(ctypes.c_long(NUMBERS["clone"]), *map(ctypes.c_long, arguments))
    if pid == 0:
        _api.PyOS_AfterFork_Child()
        return 0, -1
    _api.PyOS_AfterFork_Parent()
    return _check(pid, "clone"), pidfd.value


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def mount_setattr(target: str, attributes: int) -> None:
    """Set attributes (the first MS_ flags have the same bits) on a mount and all beneath it."""
    data = struct.pack("QQQQ", attributes, 0, 0, 0)
    syscall("mount_setattr", AT_FDCWD, target.encode(), AT_RECURSIVE, data, len(data))


def pivot_root_here() -> None:
    """Make the working directory the root and let go of the old one."""
    syscall("pivot_root", b".", b".")
    _check(_libc.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def prctl(option: int, value: int | bytes = 0, third: int | bytes = 0) -> int:
    words = [arg if isinstance(arg, bytes) else ctypes.c_ulong(arg) for arg in (value, third)]
    return _check(_libc.prctl(ctypes.c_int(option), *words, ctypes.c_ulong(0), ctypes.c_ulong(0)), f"prctl {option}")


def drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets (capset, header version 3)."""
    syscall("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))


def load_filter(program: bytes, listener: bool = False) -> int:
    """Load a seccomp BPF program of 8-byte instructions; it cannot be taken off again.

    With `listener`: a descriptor on which another process answers the calls that the program asks about.
    """
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    return syscall("seccomp", 1, 8 if listener else 0, head)  # SECCOMP_SET_MODE_FILTER, FLAG_NEW_LISTENER
