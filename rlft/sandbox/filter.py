"""The seccomp allow-list: the system calls that a sandboxed program may make, as a BPF program built by libseccomp."""

from __future__ import annotations

import os
import struct
from functools import cache
from types import ModuleType
from typing import Any

from rlft.errors import SandboxError
from rlft.sandbox.types import Tier

ALLOWED = """\
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 open openat close close_range lseek
fstat stat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 getdents getdents64 getcwd chdir fchdir
readlink readlinkat creat umask fsync fdatasync fadvise64 readahead copy_file_range sendfile splice tee
mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat ftruncate fallocate
mmap munmap mprotect mremap madvise brk msync mincore membarrier
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall pause
alarm setitimer getitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete
timerfd_create timerfd_settime timerfd_gettime eventfd eventfd2 signalfd signalfd4
clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage sysinfo uname getcpu
getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getrlimit
sched_yield sched_get_priority_max sched_get_priority_min futex futex_waitv futex_wake futex_wait futex_requeue
set_robust_list set_tid_address rseq arch_prctl getrandom
execve execveat exit exit_group wait4 waitid
pipe pipe2 dup dup2 dup3 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
recvfrom recvmsg sendmsg shutdown getsockopt getsockname getpeername
"""

# Nothing that runs by mistake makes these: the program is killed and reported as denied.
KILLED = """\
ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise
mount umount2 pivot_root chroot unshare setns open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
keyctl add_key request_key open_by_handle_at name_to_handle_at fanotify_init fanotify_mark
kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff acct quotactl syslog
iopl ioperm settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname lookup_dcookie vhangup
"""

# The first argument must be 0: the calling process itself.
OF_ITSELF = "getpgid getsid sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler"

# Tier A has its own process ids. Elsewhere signals may go to the job's first process only, and no process may
# leave the group that is killed at the end.
WITH_OWN_PIDS = "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal setsid setpgid"

# Landlock does not govern these. In tier A a program has only its scratch folder to use them on; elsewhere they would
# reach every file of the user.
WITH_OWN_ROOT = "truncate chmod fchmod fchmodat fchmodat2 utime utimes utimensat futimesat"
# Locks of records (F_GETLK, F_SETLK, F_SETLKW), which SQLite needs where a program has a folder to write to. A file that can only be
# read takes no more than a shared one of these, but an exclusive flock, which others on this machine would see: that is refused.
LOCKS = (5, 6, 7)
OWN_PID = 0x7EADBEEF  # stands in the program for the process id, which `for_process` puts in

# Values of one argument: (call, its position, values).
COMMANDS = [
    ("ioctl", 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
    ("fcntl", 1, (0, 1, 2, 3, 4, 1030, 1032)),  # not SETOWN, SETSIG: they send signals
    ("prctl", 0, (3, 15, 16, 21, 23, 39, 0x53564D41)),  # names, and reading what holds
]
WORD = 0xFFFFFFFF
NEW_NAMESPACES = 0x7E020000
RLIMIT_AS = 9
EPERM, ENOSYS = 1, 38


def _libseccomp() -> ModuleType:
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise SandboxError(
            f"the sandbox needs libseccomp ({error}): install the system package libseccomp2 (Debian, Ubuntu) or "
            "libseccomp (Fedora, Arch), and the Python package pyseccomp"
        ) from error
    return pyseccomp


@cache
def build(tier: Tier, ask: bool) -> bytes:
    """The BPF program of a tier; calls that are not listed fail with EPERM, those of another machine kill.

    With `ask` the server is asked about every fork and thread.
    """
    sc = _libseccomp()
    rules = sc.SyscallFilter(sc.ERRNO(EPERM))
    rules.set_attr(sc.Attr.ACT_BADARCH, sc.KILL_PROCESS)
    rules.set_attr(sc.Attr.CTL_OPTIMIZE, 2)  # a binary tree
    names = ALLOWED.split() + (WITH_OWN_PIDS.split() + WITH_OWN_ROOT.split() if tier == "A" else [])
    plain = [(sc.ALLOW, name) for name in names]
    plain += [(sc.KILL_PROCESS, name) for name in KILLED.split()] + [(sc.ERRNO(ENOSYS), "clone3")]
    for action, name in plain:
        if sc.resolve_syscall(sc.Arch.NATIVE, name) >= 0:  # this machine has it and libseccomp knows it
            rules.add_rule(action, name)
    for name in OF_ITSELF.split():
        rules.add_rule(sc.ALLOW, name, sc.Arg(0, sc.MASKED_EQ, WORD, 0))
    if tier == "B":
        for name in ("kill", "tgkill"):
            rules.add_rule(sc.ALLOW, name, sc.Arg(0, sc.MASKED_EQ, WORD, OWN_PID))
    for name, position, values in COMMANDS:
        for value in values:
            rules.add_rule(sc.ALLOW, name, sc.Arg(position, sc.MASKED_EQ, WORD, value))
    for command in LOCKS if tier == "A" else ():
        rules.add_rule(sc.ALLOW, "fcntl", sc.Arg(1, sc.MASKED_EQ, WORD, command))
    start = sc.NOTIFY if ask else sc.ALLOW
    for name in ("fork", "vfork"):
        if sc.resolve_syscall(sc.Arch.NATIVE, name) >= 0:
            rules.add_rule(start, name)
    rules.add_rule(start, "clone", sc.Arg(0, sc.MASKED_EQ, NEW_NAMESPACES, 0))
    rules.add_rule(sc.ALLOW, "prlimit64", sc.Arg(0, sc.MASKED_EQ, WORD, 0), sc.Arg(2, sc.EQ, 0))  # reading
    for number in set(range(16)) - ({RLIMIT_AS} if ask else set()):  # the server sets that one
        rules.add_rule(sc.ALLOW, "prlimit64", sc.Arg(0, sc.MASKED_EQ, WORD, 0), sc.Arg(1, sc.MASKED_EQ, WORD, number))
        rules.add_rule(sc.ALLOW, "setrlimit", sc.Arg(0, sc.MASKED_EQ, WORD, number))
    # Pairs of connected streams (asyncio needs one) have no address; a datagram socket could name another's.
    rules.add_rule(sc.ALLOW, "socketpair", sc.Arg(0, sc.EQ, 1), sc.Arg(1, sc.MASKED_EQ, 0xF, 1))
    rules.add_rule(sc.ALLOW, "sendto", sc.Arg(4, sc.EQ, 0))
    return _export(rules)


def _export(rules: Any) -> bytes:
    fd = os.memfd_create("filter")
    try:
        with open(fd, "rb", closefd=False) as file:
            rules.export_bpf(file)
            file.seek(0)
            return file.read()
    finally:
        os.close(fd)


def for_process(program: bytes, pid: int) -> bytes:
    """The program with the placeholder for the process id replaced."""
    mine, theirs = struct.pack("<I", pid), struct.pack("<I", OWN_PID)
    at = program.find(theirs)
    while at >= 0:
        if at % 8 == 4:  # the constant of an instruction
            program = program[:at] + mine + program[at + 4 :]
        at = program.find(theirs, at + 1)
    return program
