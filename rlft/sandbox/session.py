"""A stateful Python in the sandbox: cells run one after the other in one process, which a hang does not end at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlft.errors import SandboxError
from rlft.sandbox.forkserver import SECOND_DEADLINE_S, ForkServer, Job, ServerLost
from rlft.sandbox.types import Execution, Limits, Status

if TYPE_CHECKING:
    from rlft.sandbox.sandbox import Sandbox

START_S = 10.0
SOFT_S = 1.0  # to react to an interrupt
RESET = "the session was reset: variables and files are gone"


class Session:
    """Made by `Sandbox.session`. One cell at a time; others wait their turn.

    A cell over `wall_s` (or `output_bytes`) is interrupted with SIGINT and the session keeps its state; if the
    cell ignores that for a second, or ends the process, the session is reset, which its error says.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox, self.limits = sandbox, limits
        self._turn = asyncio.Lock()
        self._job: Job | None = None
        self._server: ForkServer
        self._cells = 0
        self._closed = False

    async def open(self) -> None:
        """Start the process; the first cell after a reset does it as well."""
        server = await self._sandbox.living_server()
        job = self._sandbox.new_job(self.limits)
        self._news = asyncio.Event()
        job.on_frame = job.on_flood = self._news.set
        job.done.add_done_callback(lambda _: self._news.set())
        try:
            await server.launch(job, True, {"code": ""})
            ready = await self._reply_to(job, 0, START_S)
        except BaseException:
            server.kill(job, "closed")
            job.close()
            raise
        if ready is None:
            server.kill(job, "closed")
            job.drain()
            job.close()
            raise SandboxError(f"a session did not start: {job.take_output()[1][-500:]}")
        self._job, self._server = job, server

    async def execute(self, code: str) -> Execution:
        """Run a cell; `value` is the repr of its last expression, None without one."""
        async with self._turn, self._sandbox.place():
            if self._closed:
                raise SandboxError("the session is closed")
            before = ""
            if self._job is None or self._job.done.done():
                before = "" if self._job is None else f"the process ended between two cells; {RESET}"
                self._forget()
                await self.open()
            try:
                execution = await self._execute(code)
            except BaseException:  # cancelled: the cell still runs
                self._forget()
                raise
            return replace(execution, error="; ".join(filter(None, (before, execution.error))))

    async def _execute(self, code: str) -> Execution:
        job, server = self._job, self._server
        assert job is not None
        self._cells += 1
        job.frames.clear()
        started = time.monotonic()
        sending = asyncio.ensure_future(job.send({"code": code, "cell": self._cells}))
        reply = await self._reply_to(job, self._cells, self.limits.wall_s)
        sending.cancel()
        stopped = reply is None and not job.done.done()
        if stopped:
            reply = await self._stop(server, job)
        job.drain()
        wall_s = time.monotonic() - started
        flood = job.flooded
        stdout, stderr = job.take_output()
        if reply is None:
            status, error = self._ended(job, stopped, flood)
            self._forget()
            return Execution(status, stdout, stderr, None, f"{error}; {RESET}", wall_s)
        status, value, error = _read(reply)
        if flood:
            status, value, error = "output_limit", None, f"printed more than {self.limits.output_bytes} bytes; the state is kept"
        elif stopped:
            status, value, error = "timeout", None, f"interrupted after {self.limits.wall_s:g} s; the state is kept"
        return Execution(status, stdout, stderr, value, error, wall_s)

    async def _reply_to(self, job: Job, cell: int, seconds: float) -> dict[str, Any] | None:
        """The reply to a cell; None at the deadline, at the process's end, and where it floods a stream."""
        deadline = time.monotonic() + seconds
        while True:
            self._news.clear()
            replies = [message for _, message in job.frames if isinstance(message, dict) and message.get("cell") == cell]
            if replies:
                return replies[0]
            if job.done.done() or job.room < 0 or job.broken_frames:
                return None
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except TimeoutError:
                deadline = 0.0
            if not deadline:
                return None

    async def _stop(self, server: ForkServer, job: Job) -> dict[str, Any] | None:
        """Interrupt, and take the reply; else kill."""
        deadline = time.monotonic() + SOFT_S
        try:
            await server.interrupt(job)
            job.room = self.limits.output_bytes  # what comes from here on is thrown away
            reply = await self._reply_to(job, self._cells, deadline - time.monotonic())
            if reply is None and not job.done.done():
                server.kill(job, "timeout")
                await asyncio.wait_for(asyncio.shield(job.done), SECOND_DEADLINE_S)
        except TimeoutError:
            reply = None
            await server.close(force=True)
        except ServerLost:
            reply = None
        return reply

    def _ended(self, job: Job, stopped: bool, flood: bool) -> tuple[Status, str]:
        from rlft.sandbox.sandbox import judge

        if job.broken_frames:
            return "error", "the program wrote to the control stream"
        if flood:
            return "output_limit", f"printed more than {self.limits.output_bytes} bytes"
        if stopped:
            return "timeout", f"ran longer than {self.limits.wall_s:g} s and ignored the interrupt"
        if job.done.exception():
            return "crashed", "the sandbox server has ended"
        status, error = judge(job.done.result(), job, None)
        return ("crashed", "the program ended the process") if status == "ok" else (status, error)

    def _forget(self) -> None:
        if self._job is not None:
            if not self._job.done.done():
                self._server.kill(self._job, "closed")
            self._job.close()
            self._job = None

    async def close(self) -> None:
        """End the process and forget its state."""
        self._closed = True
        job = self._job
        self._forget()
        if job is not None and not job.done.done():
            await asyncio.wait({job.done}, timeout=SECOND_DEADLINE_S)


def _read(message: dict[str, Any]) -> tuple[Status, str | None, str]:
    """What the process says of a cell; the model's code may have forged it."""
    if message.get("status") == "ok" and isinstance(message.get("value"), str | None):
        return "ok", message.get("value"), ""
    if message.get("status") in ("error", "oom", "denied") and isinstance(message.get("error"), str):
        return message["status"], None, message["error"][:8192]
    return "error", None, "the reply was garbled"
