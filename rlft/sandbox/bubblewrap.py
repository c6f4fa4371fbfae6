"""Programs other than Python in a sandbox: bubblewrap's namespaces, a list of denied system calls, and resource limits."""

from __future__ import annotations

import errno
import functools
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from rlft.errors import SandboxError
from rlft.sandbox.programs import check_name, execute
from rlft.sandbox.types import RUNTIME, Execution, Limits

LANGUAGES: dict[str, tuple[str, tuple[str, ...]]] = {  # file that the code is saved as, and what runs it
    "bash": ("main.sh", ("bash", "main.sh")),
    "c": ("main.c", ("sh", "-c", "cc -O1 -o main main.c -lm && exec ./main")),
    "cpp": ("main.cpp", ("sh", "-c", "c++ -O1 -o main main.cpp && exec ./main")),
    "javascript": ("main.js", ("node", "--max-old-space-size=256", "main.js")),
    "perl": ("main.pl", ("perl", "main.pl")),
    "python": ("main.py", ("python3", "main.py")),
}
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")
NOBODY = 65533  # who root's programs run as: no account, no files
SCRATCH = "/tmp"
SHM_BYTES = 1 << 20
# What an ordinary program needs none of, and through which the kernel has been attacked.
DENIED = (
    "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd process_madvise "
    "mount umount2 pivot_root chroot unshare setns open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr "
    "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register memfd_create memfd_secret "
    "keyctl add_key request_key open_by_handle_at name_to_handle_at fanotify_init fanotify_mark shmget msgget semget mq_open "
    "kexec_load kexec_file_load init_module finit_module delete_module reboot swapon swapoff acct quotactl syslog "
    "socket connect bind listen"
)
SHARED_ANONYMOUS = 0x21  # MAP_SHARED | MAP_ANONYMOUS: memory that the data limit does not count
NEW_NAMESPACES = 0x7E020000


class Bubblewrap:
    """Runs programs in namespaces of their own: no network, no other processes, a system that cannot be written to.

    The scratch folder /tmp is in memory, of `limits.disk_mb`. Memory counts per process, so all together may use `processes`
    times as much; the number of files is not limited.

    Args:
        language: of the code that `run` takes, one of LANGUAGES.
        read_only: further folders that programs may read.

    Raises:
        SandboxError: bwrap or prlimit is missing, or the language is unknown.
    """

    def __init__(self, language: str = "bash", *, limits: Limits | None = None, read_only: Sequence[str] = ()) -> None:
        if language not in LANGUAGES:
            raise SandboxError(f"bubblewrap: language {language!r}; expected one of {', '.join(LANGUAGES)}")
        for tool, package in (("bwrap", "bubblewrap"), ("prlimit", "util-linux")):
            if shutil.which(tool) is None:
                raise SandboxError(f"{tool} is missing; install the package {package}")
        self._name, self._argv = LANGUAGES[language]
        self._limits, self._read_only = limits or Limits(), (*SYSTEM, *read_only)

    async def run(
        self, code: str, *, stdin: str = "", files: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> Execution:
        """Save code in the scratch folder, and run it there."""
        return await self.execute(self._argv, stdin=stdin, files={**(files or {}), self._name: code}, limits=limits)

    async def execute(
        self, argv: Sequence[str], *, stdin: str = "", files: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> Execution:
        """Run a program with arguments in the scratch folder.

        Raises:
            SandboxError: the sandbox cannot be set up.
            ValueError: a file's name leads out of the scratch folder.
        """
        limits = limits or self._limits
        with ExitStack() as stack:
            options, fds = [], [stack.enter_context(_open_data(_filter()))]
            for name, text in (files or {}).items():
                fds.append(stack.enter_context(_open_data(text.encode(errors="surrogatepass"))))
                options += ["--perms", "0644", "--file", str(fds[-1]), f"{SCRATCH}/{check_name(name)}"]
            told, tell = os.pipe()
            stack.callback(os.close, told)
            with os.fdopen(tell, "wb"):
                command = self._command(limits, fds[0], tell, options)
                account = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
                ran = await execute([*command, *argv], stdin=stdin, limits=limits, pass_fds=[*fds, tell], **account)
            # bwrap tells an exit code only if it came as far as to start the program; killed, it tells none.
            if ran.status not in ("timeout", "output_limit") and b"exit-code" not in os.read(told, 4096):
                raise SandboxError(f"bubblewrap cannot set up its sandbox: {ran.stderr.strip() or ran.error}")
        return ran

    def _command(self, limits: Limits, seccomp_fd: int, status_fd: int, options: Sequence[str]) -> list[str]:
        binds = [word for path in self._read_only for word in ("--ro-bind-try", path, path)]
        env = {**RUNTIME, "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": SCRATCH}
        cpu_s = math.ceil(limits.cpu_s)
        return [
            *("bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--die-with-parent"),
            *("--cap-drop", "ALL", "--clearenv"),
            *(word for name, value in env.items() for word in ("--setenv", name, value)),
            *("--hostname", "sandbox", *binds, "--proc", "/proc", "--dev", "/dev"),
            *("--size", str(SHM_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
            *("--size", str(limits.disk_mb << 20), "--tmpfs", SCRATCH, *options, "--remount-ro", "/", "--chdir", SCRATCH),
            *("--seccomp", str(seccomp_fd), "--json-status-fd", str(status_fd), "--"),
            # The process limit is set within: outside it would count this account's processes on the whole machine.
            *("prlimit", f"--nproc={limits.processes}", f"--data={limits.memory_mb << 20}", f"--cpu={cpu_s}:{cpu_s + 1}", "--core=0"),
            *(f"--fsize={limits.disk_mb << 20}", "--nofile=256", "--"),
        ]


@contextmanager
def _open_data(data: bytes) -> Iterator[int]:
    """A descriptor from which `data` can be read."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        file.flush()
        yield file.fileno()


@functools.cache
def _filter() -> bytes:
    """The denied system calls as a BPF program."""
    import pyseccomp

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in DENIED.split():
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
    rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "mmap", pyseccomp.Arg(3, pyseccomp.MASKED_EQ, SHARED_ANONYMOUS, SHARED_ANONYMOUS))
    for bit in (1 << position for position in range(32) if NEW_NAMESPACES >> position & 1):
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, bit, bit))
    # Pairs of connected streams, which asyncio needs one of, have no address.
    rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "socketpair", pyseccomp.Arg(0, pyseccomp.NE, 1))
    for kind in {*range(16)} - {1}:
        rules.add_rule(pyseccomp.ERRNO(errno.EPERM), "socketpair", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, 0xF, kind))
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")  # its flags lie in memory, where no filter sees them
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
