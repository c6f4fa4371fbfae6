"""The client's end of one fork server: starts the process, hands it jobs, and collects what they write."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlft.errors import SandboxError
from rlft.sandbox import filter as seccomp
from rlft.sandbox import wire
from rlft.sandbox.namespaces import SCRATCH
from rlft.sandbox.types import RUNTIME, Limits, Tier

START_S = 30.0
SECOND_DEADLINE_S = 1.0  # after the server should have ended a job
MAX_FRAMES_BYTES = 16 << 20  # of one job, or one cell
PIPE_READS = 16
# For tests: "landlock" or "seccomp", without which the self-test refuses; "groups", as if no control group could be written.
LEFT_OUT = "RLFT_SANDBOX_LEAVE_OUT"

# Runs without rlft's __init__ and without site: a job's process holds no more of the host than it needs.
BOOT = """\
import sys, types
package = types.ModuleType("rlft")
package.__path__ = [sys.argv[1]]
sys.modules["rlft"] = package
sys.path[:] = [path for path in sys.path if path] + sys.argv[2:]
from rlft.sandbox.server import main
main()
"""


class ServerLost(SandboxError):
    """The fork server has died or was killed while the job ran."""


@dataclass(frozen=True)
class Outcome:
    """How the server saw a job end."""

    code: int  # exit code, or minus the signal
    cpu_s: float
    oom: bool
    why: str  # the server killed it: timeout, oom, output_limit, closed


class Job:
    """The client's side of one job: its streams, and what came out of them so far."""

    def __init__(self, number: int, limits: Limits) -> None:
        self.number, self.limits = number, limits
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Outcome] = self.loop.create_future()
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self.frames: list[tuple[float, Any]] = []  # (time.monotonic() of arrival, message)
        self.on_frame: Callable[[], None] = lambda: None
        self.on_flood: Callable[[], None] = lambda: None
        self.room = limits.output_bytes
        self.flooded = False  # more came than there is room for, and was thrown away
        self._reader = wire.FrameReader()
        self._frames_room = MAX_FRAMES_BYTES
        self.broken_frames = False
        self.control, self._child = socket.socketpair()
        self.control.setblocking(False)
        self._pipes = {}
        self._ends = []
        for name in self.output:
            read, write = os.pipe()
            self._pipes[name] = read
            self._ends.append(write)

    def fds_of_child(self) -> tuple[int, int, int]:
        return self._child.fileno(), self._ends[0], self._ends[1]

    def watch(self) -> None:
        """The server has its copies; from here on the streams are read."""
        self._child.close()
        for fd in self._ends:
            os.close(fd)
        for name, fd in self._pipes.items():
            os.set_blocking(fd, False)
            self.loop.add_reader(fd, self._read_output, name)
        self.loop.add_reader(self.control, self._read_control)

    def _read_output(self, name: str) -> bool:
        """Whether there may be more."""
        try:
            data = os.read(self._pipes[name], 1 << 16)
        except BlockingIOError:
            data = None
        if not data:
            if data == b"":
                self.loop.remove_reader(self._pipes[name])
            return False
        if not self.flooded:
            self.output[name] += data[: self.room]
            self.room -= len(data)
            if self.room < 0:
                self.flooded = True
                self.on_flood()
        return True

    def _read_control(self) -> bool:
        try:
            data = self.control.recv(1 << 16)
        except BlockingIOError:
            data = None
        except ConnectionResetError:  # it ended with unread data
            data = b""
        if not data:
            if data == b"":
                self.loop.remove_reader(self.control)
            return False
        self._frames_room -= len(data)
        if self._frames_room < 0 or self.broken_frames:
            self._break()
            return True
        try:
            frames = self._reader.feed(data)
        except ValueError:
            self._break()
        else:
            now = time.monotonic()
            self.frames += [(now, message) for message in frames]
            if frames:
                self.on_frame()
        return True

    def _break(self) -> None:
        if not self.broken_frames:
            self.broken_frames = True
            self.on_flood()

    def drain(self) -> None:
        """Read what was written so far: no more than a pipe holds."""
        for name in self._pipes:
            reads = 0
            while reads < PIPE_READS and self._read_output(name):
                reads += 1

    async def send(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # how it ended is told by the server
            await self.loop.sock_sendall(self.control, wire.frame(message))

    def take_output(self) -> tuple[str, str]:
        """(stdout, stderr) since the last call."""
        texts = tuple(bytes(data).decode("utf-8", "replace") for data in self.output.values())
        for data in self.output.values():
            data.clear()
        self.room, self.flooded = self.limits.output_bytes, False
        self._frames_room = MAX_FRAMES_BYTES
        return texts[0], texts[1]

    def close(self) -> None:
        self.loop.remove_reader(self.control)
        self.loop.remove_writer(self.control)
        for fd in self._pipes.values():
            self.loop.remove_reader(fd)
            os.close(fd)
        self.control.close()

    def read_rest(self) -> None:
        """After the end: everything that is still in the streams."""
        self.drain()
        while not self.broken_frames and self._read_control():
            continue


def site_folders() -> list[str]:
    """Where the installed packages are that programs may import."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


class ForkServer:
    """One server process. `start` it, then `launch` jobs; a lost server ends all of them with ServerLost."""

    def __init__(self, tier: Tier, preload: Sequence[str]) -> None:
        self.tier: Tier = tier
        self.preload = tuple(preload)
        self.launched = 0
        self.facts: dict[str, Any] = {}
        self.jobs: dict[int, Job] = {}
        self.pids: dict[int, int] = {}  # in tier B, whose processes do not all die with the server
        self.acks: dict[int, asyncio.Future[None]] = {}
        self.lost = False
        self.folder = ""  # with the files of jobs, where they have no mounts of their own

    async def start(self) -> None:
        """Raises SandboxError with the server's reason."""
        self.loop = asyncio.get_running_loop()
        if self.tier == "B":
            self.folder = tempfile.mkdtemp(prefix="rlft-sandbox-")
            os.chmod(self.folder, 0o755)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        with theirs:
            self.process = self._spawn(theirs.fileno())
        try:
            first = json.loads(await asyncio.wait_for(self.loop.sock_recv(self.control, 1 << 16), START_S) or b"{}")
        except (TimeoutError, ConnectionResetError) as error:
            await self.close()
            raise SandboxError(f"the sandbox server did not start within {START_S:g} s") from error
        if "ready" not in first:
            await self.close()
            raise SandboxError(first.get("error", "the sandbox server ended while it started"))
        self.facts = first
        self.loop.add_reader(self.control, self._read)

    def _spawn(self, fd: int) -> subprocess.Popen[bytes]:
        site = site_folders()
        python = os.path.realpath(sys.executable)
        config = {
            "control": fd,
            "parent": os.getpid(),
            "tier": self.tier,
            "preload": self.preload,
            "python": python,
            "site": site,
            "folder": self.folder,
            "filters": [seccomp.build(self.tier, ask).hex() for ask in (False, True)],
            "left_out": os.environ.get(LEFT_OUT, ""),
        }
        env = {
            "PYTHONPATH": ":".join(site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUTF8": "1",
            **RUNTIME,
            "HOME": SCRATCH,
            "TMPDIR": SCRATCH,
            "PATH": os.path.dirname(python),
            **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
        }
        settings = os.memfd_create("settings")
        try:
            os.write(settings, json.dumps(config).encode())
            os.lseek(settings, 0, os.SEEK_SET)
            command = [python, "-s", "-S", "-P", "-c", BOOT, str(Path(__file__).parents[1]), *site]
            return subprocess.Popen(command, stdin=settings, stdout=subprocess.DEVNULL, pass_fds=(fd,), env=env, start_new_session=True)
        finally:
            os.close(settings)

    async def launch(self, job: Job, session: bool, request: Mapping[str, Any]) -> None:
        """Start a job with its first message; raises ServerLost if there is no server any more."""
        order = {"start": job.number, "session": session, "files": bool(request.get("files")), "limits": asdict(job.limits)}
        self.jobs[job.number] = job
        self.launched += 1
        await self.order(order, job.fds_of_child())
        job.watch()
        await job.send(request)

    async def order(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        data = json.dumps(message).encode()
        while True:
            if self.lost:
                raise ServerLost("the sandbox server has ended")
            try:
                socket.send_fds(self.control, [data], fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except (BrokenPipeError, ConnectionResetError):
                self._lose()
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:  # too many descriptors of this user are on their way
                    raise
                await asyncio.sleep(0.001)

    def kill(self, job: Job, why: str) -> None:
        self.loop.create_task(self._kill(job.number, why))

    async def _kill(self, number: int, why: str) -> None:
        with contextlib.suppress(ServerLost):
            await self.order({"kill": number, "why": why})

    async def interrupt(self, job: Job) -> None:
        """Send SIGINT and wait until it is on its way, so that it cannot hit a later cell."""
        self.acks[job.number] = self.loop.create_future()
        await self.order({"interrupt": job.number})
        await asyncio.wait_for(self.acks[job.number], SECOND_DEADLINE_S)

    def _read(self) -> None:
        try:
            data = self.control.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self._lose()
            return
        message = json.loads(data)
        if "done" in message:
            number = message.pop("done")
            self.pids.pop(number, None)
            job = self.jobs.pop(number, None)
            if job and not job.done.done():
                job.done.set_result(Outcome(**message))
        elif "started" in message:
            self.pids[message["started"]] = message["pid"]
        elif (ack := self.acks.pop(message["interrupted"], None)) and not ack.done():
            ack.set_result(None)

    def _lose(self) -> None:
        """The server is gone: its jobs fail, and what it can no longer end is ended here."""
        if self.lost:
            return
        self.lost = True
        self.loop.remove_reader(self.control)
        self.control.close()
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        for job in self.jobs.values():
            if not job.done.done():
                job.done.set_exception(ServerLost("the sandbox server has ended"))
                job.done.exception()  # it may have nobody waiting
        for ack in self.acks.values():
            if not ack.done():
                ack.set_exception(ServerLost("the sandbox server has ended"))
                ack.exception()
        self.jobs.clear()

    async def close(self, force: bool = False) -> None:
        """End the server and its jobs; returns when the process is gone. `force`: without waiting for it to agree."""
        if force:
            self.process.kill()
        self._lose()
        deadline = time.monotonic() + 2
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                self.process.kill()
            await asyncio.sleep(0.002)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
