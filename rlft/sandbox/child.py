"""Inside a job: give up every privilege, then run the program that the client sends."""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import socket
import sys
from dataclasses import dataclass

from rlft.sandbox import filter as seccomp
from rlft.sandbox import interpreter, kernel, landlock, program, wire
from rlft.sandbox.namespaces import INSIDE, SCRATCH, Place, mount_scratch
from rlft.sandbox.types import Limits, Tier, room_for_stacks

CONTROL, GO = 3, 4
MIB = 1 << 20
MAX_FDS = 256


@dataclass(frozen=True)
class Confinement:
    """What is the same for every job of a server."""

    tier: Tier
    place: Place
    landlock_abi: int  # 0: left out, which the self-test must notice
    filter: bytes  # b"": left out, which the self-test must notice
    base_bytes: int  # address space that the server takes itself
    has_groups: bool  # control groups hold memory and processes; else the server grants forks


@dataclass(frozen=True)
class Order:
    """One job, as its server was asked for it."""

    limits: Limits
    session: bool
    uid: int  # to become in tier B; -1 to stay who we are
    folder: str  # in tier B: with the job's files, its working directory


def confine_and_run(confinement: Confinement, order: Order, fds: tuple[int, int, int], go: int) -> None:
    """Never returns. `go` delivers one byte when the server is done with its part, and closes with the server."""
    os.setpgid(0, 0)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    _check_in(go)
    go = _keep_only(fds, go)
    request = wire.read_frame(CONTROL)
    if request is None:
        os._exit(0)
    scratch = _prepare_folder(confinement, order, request.get("files", {}))
    _drop_ids(confinement, order)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # changing ids has cleared it
    if select.select([go], [], [], 0)[0]:
        os._exit(0)  # the server has died before
    if confinement.tier == "A":
        _write_files(".", request.get("files", {}))
    _open_standard_streams(request.get("stdin", ""))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if confinement.landlock_abi:
        _apply_landlock(confinement, scratch)
    _set_rlimits(confinement, order)
    _seed(request.get("job_id", ""))
    _restore_signals()
    os.closerange(GO + 1, 1 << 30)
    if confinement.filter:
        _load_filter(confinement)
    os.close(GO)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FDS, MAX_FDS))  # descriptors on their way count against it
    if order.session:
        program.serve_cells(CONTROL)
    elif "calls" in request:
        program.run_calls(CONTROL, request)
    else:
        program.run_script(CONTROL, request)


def _check_in(go: int) -> None:
    if os.read(go, 1) != b"!":
        os._exit(0)


def _keep_only(fds: tuple[int, int, int], go: int) -> int:
    """The streams under their numbers, which the server keeps free of anything else."""
    for fd, target in zip((*fds, go), (CONTROL, 1, 2, GO), strict=True):
        os.dup2(fd, target, inheritable=target in (1, 2))
    return GO


def _prepare_folder(confinement: Confinement, order: Order, files: dict[str, str]) -> int:
    """Make the scratch folder the working directory; an O_PATH descriptor of it."""
    if confinement.tier == "A":
        mount_scratch(order.limits.disk_mb, order.limits.files)
        os.chdir(SCRATCH)
    else:
        os.chdir(order.folder)
        _write_files(".", files)
    return os.open(".", os.O_PATH)


def _write_files(folder: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(text)


def _drop_ids(confinement: Confinement, order: Order) -> None:
    new = INSIDE if confinement.tier == "A" else order.uid
    if new >= 0:
        os.setresgid(new, new, new)
        os.setresuid(new, new, new)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def _open_standard_streams(stdin: str) -> None:
    if stdin:
        fd = os.memfd_create("stdin", os.MFD_ALLOW_SEALING)
        wire.write_all(fd, stdin.encode("utf-8", "surrogatepass"))
        os.lseek(fd, 0, os.SEEK_SET)
        import fcntl

        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    else:
        fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(fd, 0)
    os.close(fd)
    interpreter.open_streams()


def _apply_landlock(confinement: Confinement, scratch: int) -> None:
    place = confinement.place
    rules = [(fd, landlock.RUN if _is_folder(fd) else landlock.RUN & landlock.OF_A_FILE) for fd in place.readable]
    rules += [(fd, landlock.READ_FILE | (landlock.WRITE_FILE if writable else 0)) for fd, writable in place.devices]
    rules.append((scratch, landlock.WORK if confinement.tier == "A" else landlock.LOOK))
    landlock.restrict(rules, confinement.landlock_abi)


def _load_filter(confinement: Confinement) -> None:
    """The descriptor of its questions goes to the server, which `GO` leads to."""
    listener = kernel.load_filter(seccomp.for_process(confinement.filter, os.getpid()), listener=not confinement.has_groups)
    if not confinement.has_groups:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, GO) as server:
            socket.send_fds(server, [b"?"], [listener])
            server.detach()
        os.close(listener)


def _is_folder(fd: int) -> bool:
    return os.stat(fd).st_mode & 0o170000 == 0o040000


def memory_limit(confinement: Confinement, limits: Limits) -> int:
    """Bytes of address space that a job may take; where nothing counts its scratch folder, that is taken off."""
    memory = limits.memory_mb * MIB
    uncounted = not confinement.has_groups and confinement.tier == "A"
    return max(memory - limits.disk_mb * MIB, 16 * MIB) if uncounted else memory


def _set_rlimits(confinement: Confinement, order: Order) -> None:
    limits = order.limits
    stacks = room_for_stacks(limits) * MIB if confinement.has_groups else 0
    both = {
        resource.RLIMIT_AS: confinement.base_bytes + memory_limit(confinement, limits) + stacks,
        resource.RLIMIT_FSIZE: limits.disk_mb * MIB,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }
    if confinement.tier == "A" or order.uid >= 0:  # else the kernel counts all processes of the user
        both[resource.RLIMIT_NPROC] = limits.processes
    if not order.session:
        both[resource.RLIMIT_CPU] = -int(-limits.cpu_s // 1)
    for name, value in both.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def _seed(job_id: str) -> None:
    """The same job draws the same numbers; a fork has reseeded `random` from the system."""
    random.seed(job_id)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(random.Random(job_id).getrandbits(32))


def _restore_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
