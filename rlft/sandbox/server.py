"""The fork server: a small process of one thread that clones a confined child per job and ends it in time.

It is told of jobs as JSON on a SOCK_SEQPACKET socket, with the job's three streams attached, and never sees code,
input or output: those go between client and child. Orders: {"start": id, "session", "files", "limits"},
{"kill": id, "why"}, {"interrupt": id}. Replies: {"done": id, ...}, {"interrupted": id}.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from rlft.errors import SandboxError
from rlft.sandbox import cgroups, interpreter, kernel, landlock, namespaces
from rlft.sandbox.child import CONTROL, GO, MIB, Confinement, Order, confine_and_run, memory_limit
from rlft.sandbox.forks import Family, Forks
from rlft.sandbox.types import Limits

MAX_MESSAGE = 65536
SETUP_FAILED = 125
TICK_S = 0.02  # between looks at whether processes of a job have ended, where their memory is shared out


@dataclass
class Job:
    """A running job, as its server keeps it."""

    id: int
    pid: int
    pidfd: int
    order: Order
    slot: int
    group: cgroups.Slot | None
    go: socket.socket  # closes when the server dies; brings the listener
    family: Family
    deadline: float  # time.monotonic(); infinite for sessions, which their client times
    why: str = ""  # it was killed


class Server:
    """Holds the jobs and the free slots; a slot is a user id (as root), a pair of control groups and a folder."""

    def __init__(self, control: socket.socket, confinement: Confinement, uids: int, groups: cgroups.Groups | None, folder: str) -> None:
        self.control, self.confinement, self.uids, self.groups, self.folder = control, confinement, uids, groups, folder
        self.forks = Forks(confinement.place.proc, confinement.base_bytes, [kernel.NUMBERS["clone"]])
        self.jobs: dict[int, Job] = {}
        self.handlers: dict[int, Callable[[], None]] = {}  # by descriptor
        self.free: list[int] = []
        self.slots: list[cgroups.Slot | None] = []
        self.woken = -1
        self.poll = select.epoll()
        self.poll.register(control, select.EPOLLIN)

    def stop_at_sigterm(self) -> None:
        """Through the poll: an exception could come in the middle of the cleaning up."""
        self.woken, wake = os.pipe()
        for fd in (self.woken, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGTERM, lambda *_: None)
        self.poll.register(self.woken, select.EPOLLIN)

    def serve(self) -> None:
        """Until the client closes its end, or SIGTERM."""
        try:
            while True:
                # A job that ends closes descriptors, whose numbers the next job gets: an event is for whoever had it then.
                for fd, handler in [(fd, self.handlers.get(fd)) for fd, _ in self.poll.poll(self._until_next())]:
                    if fd == self.woken or (fd == self.control.fileno() and not self._obey()):
                        return
                    if handler is not None and self.handlers.get(fd) is handler:
                        handler()
                self._enforce()
        finally:
            for job in list(self.jobs.values()):
                self._kill(job, "closed")
                self._finish(job, tell=False)  # the client learns it from the end of the stream
            if self.groups:
                self.groups.close()
            if self.confinement.tier == "B":
                shutil.rmtree(self.folder, ignore_errors=True)

    def _until_next(self) -> float:
        if not self.jobs:
            return -1
        nearest = min(job.deadline for job in self.jobs.values()) - time.monotonic()
        wait = min(max(nearest, 0.0), 60.0)
        return min(wait, TICK_S) if any(job.family.split for job in self.jobs.values()) else wait

    def _enforce(self) -> None:
        now = time.monotonic()
        for job in self.jobs.values():
            if now >= job.deadline and not job.why:
                self._kill(job, "timeout")
            elif job.family.split:
                self.forks.hand_back(job.family, lambda job=job: self._acting_as(job))

    def _obey(self) -> bool:
        message, fds = _receive(self.control, MAX_MESSAGE, 3)
        if not message:
            return False
        order = json.loads(message)
        if "start" in order:
            self._start(order, (fds[0], fds[1], fds[2]))
            for fd in fds:
                os.close(fd)
        elif "kill" in order and (job := self.jobs.get(order["kill"])):
            self._kill(job, order["why"])
        elif "interrupt" in order:
            if job := self.jobs.get(order["interrupt"]):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(job.pidfd, signal.SIGINT)
            self._reply({"interrupted": order["interrupt"]})
        return True

    def _reply(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the end of the stream is read next
            self.control.send(json.dumps(message).encode())

    def _start(self, asked: dict[str, Any], fds: tuple[int, int, int]) -> None:
        slot = -1
        try:
            slot = self.free.pop() if self.free else self._new_slot()
            self._launch(asked, fds, slot)
        except OSError as error:  # nothing has been started
            traceback.print_exception(error)
            self.free += [slot] if slot >= 0 else []
            self._reply({"done": asked["start"], "code": -signal.SIGKILL, "cpu_s": 0.0, "oom": False, "why": "lost"})

    def _launch(self, asked: dict[str, Any], fds: tuple[int, int, int], slot: int) -> None:
        limits = Limits(**asked["limits"])
        tier, root = self.confinement.tier, self.uids >= 0
        folder = os.path.join(self.folder, str(slot)) if tier == "B" and asked["files"] else self.folder
        uid = self.uids + slot if root else os.geteuid()
        order = Order(limits, asked["session"], uid if root else -1, folder)
        group = self._group_for(slot, limits)
        if folder != self.folder:
            os.mkdir(folder)
        go, waiting = socket.socketpair()
        pid, pidfd = kernel.clone(namespaces.JOB if tier == "A" else 0)
        if pid == 0:
            try:
                go.close()  # it tells the child of this process's death
                confine_and_run(self.confinement, order, fds, waiting.fileno())
            except ConnectionError:
                os._exit(0)  # the client has gone
            except BaseException:
                os.write(2, f"the sandbox could not be set up: {traceback.format_exc()}".encode())
            finally:
                os._exit(SETUP_FAILED)
        waiting.close()
        deadline = float("inf") if asked["session"] else time.monotonic() + limits.wall_s
        family = Family(pid, -1, limits.processes, memory_limit(self.confinement, limits))
        job = self.jobs[asked["start"]] = Job(asked["start"], pid, pidfd, order, slot, group, go, family, deadline)
        self._handle(pidfd, lambda: self._finish(job))
        if not self.groups:
            self._handle(go.fileno(), lambda: self._listen(job))
        try:
            if tier == "A":
                namespaces.map_ids(self.confinement.place, pid, uid, uid if root else os.getegid())
            if group:
                group.attach(pid)
            go.send(b"!")
        except OSError as error:
            traceback.print_exception(error)
            self._kill(job, "lost")
        if tier == "B":
            self._reply({"started": asked["start"], "pid": pid})

    def _group_for(self, slot: int, limits: Limits) -> cgroups.Slot | None:
        """The slot's groups with the limits; new ones if the kernel still counts an earlier job in the old."""
        group = self.slots[slot]
        if group is None or self.groups is None:
            return None
        try:
            group.set_limits(limits.memory_mb * MIB, limits.processes)
        except OSError:
            group.close()
            group = self.slots[slot] = self.groups.slot(f"slot-{slot}-{time.monotonic_ns()}")
            group.set_limits(limits.memory_mb * MIB, limits.processes)
        return group

    def _handle(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.poll.register(fd, select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        if self.handlers.pop(fd, None):
            self.poll.unregister(fd)

    def _listen(self, job: Job) -> None:
        """The child is confined and has sent where its forks ask."""
        _, fds = _receive(job.go, 1, 1)
        self._forget(job.go.fileno())
        if fds:
            job.family.listener = fds[0]
            self._handle(fds[0], lambda: self.forks.answer(job.family, lambda: self._acting_as(job)))

    @contextlib.contextmanager
    def _acting_as(self, job: Job) -> Iterator[None]:
        """With the job's user as the real one, which lets root without CAP_SYS_RESOURCE set its limits."""
        uid = job.order.uid
        if uid >= 0:
            os.setresgid(uid, 0, 0)
            os.setresuid(uid, 0, 0)
        try:
            yield
        finally:
            if uid >= 0:
                os.setresuid(0, 0, 0)
                os.setresgid(0, 0, 0)

    def _new_slot(self) -> int:
        slot = len(self.slots)
        if self.uids >= 0 and slot >= namespaces.UIDS:
            raise OSError(f"more than {namespaces.UIDS} sessions and jobs at once; as root each has a user id of its own")
        self.slots.append(self.groups.slot(f"slot-{slot}") if self.groups else None)
        return slot

    def _kill(self, job: Job, why: str) -> None:
        job.why = job.why or why
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(job.pidfd, signal.SIGKILL)

    def _finish(self, job: Job, tell: bool = True) -> None:
        """Take leave of a job whose first process has ended; what else is left of it ends here."""
        if self.confinement.tier == "B":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(job.pid, signal.SIGKILL)
        _, status, usage = os.wait4(job.pid, 0)
        if self.confinement.tier == "B":
            _reap_group(job.pid)
        for fd in (job.pidfd, job.go.fileno(), job.family.listener):
            self._forget(fd)
        os.close(job.pidfd)
        job.go.close()
        if job.family.listener >= 0:
            os.close(job.family.listener)
        del self.jobs[job.id]
        if job.order.folder != self.folder:
            shutil.rmtree(job.order.folder)
        oom_kills = job.group.new_kills() if job.group else 0
        self.free.append(job.slot)
        code = os.waitstatus_to_exitcode(status)
        cpu_s = usage.ru_utime + usage.ru_stime
        if tell:
            self._reply({"done": job.id, "code": code, "cpu_s": cpu_s, "oom": bool(oom_kills), "why": job.why})


def _receive(connection: socket.socket, size: int, num_fds: int) -> tuple[bytes, list[int]]:
    """A message and its descriptors; b"" at the end, also where the other side went without reading all it was told."""
    message, fds = b"", []
    with contextlib.suppress(ConnectionResetError):
        message, fds, _, _ = socket.recv_fds(connection, size, num_fds, socket.MSG_CMSG_CLOEXEC)
    return message, fds


def _reap_group(group: int) -> None:
    """Orphans of a job come to this process, which is a subreaper; all have been sent SIGKILL."""
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        try:
            if os.waitpid(-group, os.WNOHANG)[0] == 0:
                time.sleep(0.0002)
        except ChildProcessError:
            break


def main() -> None:
    """Read the configuration from standard input, get ready, and serve the socket whose number it gives."""
    config = json.loads(sys.stdin.buffer.read())
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != config["parent"]:
        return
    control = _arrange_fds(config["control"])
    try:
        server = _prepare(control, config)
    except Exception as error:
        text = str(error) if isinstance(error, SandboxError) else f"{type(error).__name__}: {error}"
        control.send(json.dumps({"error": text[:4096]}).encode())
        return
    server.stop_at_sigterm()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)  # leaves time to end what is not this process's child
    gc.collect()
    gc.freeze()  # a collection in a child does not copy what they share
    server.serve()


def _arrange_fds(number: int) -> socket.socket:
    """The control socket out of the way of the numbers that children use, which are taken by /dev/null."""
    import fcntl

    high = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(number)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in {0, CONTROL, GO} - {null}:
        os.dup2(null, fd, inheritable=False)
    return socket.socket(fileno=high)


def _prepare(control: socket.socket, config: dict[str, Any]) -> Server:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    interpreter.add_site_names()
    for name in config["preload"]:
        importlib.import_module(name)
    require_one_thread()
    tier, root = config["tier"], os.geteuid() == 0
    if root:
        os.setgroups([])
    version = _landlock_abi()
    uids = namespaces.free_uid_block() if root else -1
    left_out = config["left_out"]
    groups = None if "groups" in left_out else cgroups.Groups.open()
    paths = namespaces.visible(config["python"], config["site"])
    proc = os.open("/proc", os.O_DIRECTORY | os.O_CLOEXEC)
    if tier == "A":
        _enter_root(paths)
    else:
        if root:
            _check_reachable(paths)
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    _raise_limits()
    place = namespaces.open_place(paths, proc)
    confinement = Confinement(
        tier,
        place,
        0 if "landlock" in left_out else version,
        b"" if "seccomp" in left_out else bytes.fromhex(config["filters"][groups is None]),
        _address_space(place.proc),
        groups is not None,
    )
    facts = {"ready": True, "tier": tier, "root": root, "landlock": version, "groups": groups.version if groups else 0, "pid": os.getpid()}
    control.send(json.dumps(facts).encode())
    return Server(control, confinement, uids, groups, config["folder"])


def _landlock_abi() -> int:
    try:
        return landlock.abi()
    except OSError as error:
        raise SandboxError(f"Landlock is missing ({error}): Linux has it from 5.13 on, unless it is switched off") from error


def _enter_root(paths: list[str]) -> None:
    try:
        namespaces.enter_root(paths)
    except OSError as error:
        raise SandboxError(f"user namespaces or mounts are not allowed here ({error})") from error


def _check_reachable(paths: list[str]) -> None:
    """As root, tier B runs programs as another user, whom no mount can help to the interpreter."""
    for path in paths:
        for part in [path, *map(str, PurePosixPath(path).parents)]:
            if not os.stat(part).st_mode & (0o1 if os.path.isdir(part) else 0o4):
                raise SandboxError(f"programs run as another user than root, who cannot reach {path}: {part} is closed to others")


def require_one_thread() -> None:
    """A clone copies one thread: locks that another one holds would stay locked in every job. Raises SandboxError."""
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise SandboxError(f"the fork server has {len(threads)} threads; a module that is preloaded must not start any")


def _raise_limits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _address_space(proc: int) -> int:
    fd = os.open("self/statm", os.O_RDONLY, dir_fd=proc)
    try:
        return int(os.read(fd, 100).split()[0]) * resource.getpagesize()
    finally:
        os.close(fd)
