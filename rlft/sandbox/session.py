"""A stateful Python in the sandbox: cells run one after the other in one process, which a hang does not end at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from rlft.errors import SandboxError
from rlft.sandbox.forkserver import SECOND_DEADLINE_S, ForkServer, Job, ServerLost
from rlft.sandbox.types import Execution, Limits, Status

if TYPE_CHECKING:
    from rlft.sandbox.sandbox import Sandbox

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
        """Start the process; the first cell would do it as well."""
        server = await self._sandbox.living_server()
        job = self._sandbox.new_job(self.limits)
        self._news = asyncio.Event()
        job.on_frame = self._news.set
        job.done.add_done_callback(lambda _: self._news.set())
        try:
            await server.launch(job, True, {"code": ""})
            await self._wait(job, SOFT_S + self.limits.wall_s)
        except BaseException:
            server.kill(job, "closed")
            job.close()
            raise
        if not job.frames:
            job.close()
            raise SandboxError("a session did not start")
        job.frames.clear()
        self._job, self._server = job, server

    async def execute(self, code: str) -> Execution:
        """Run a cell; `value` is the repr of its last expression, None without one."""
        async with self._turn, self._sandbox.place():
            if self._closed:
                raise SandboxError("the session is closed")
            if self._job is None or self._job.done.done():
                lost = self._job is not None
                await self._forget()
                await self.open()
                if lost:
                    return await self._execute(code, "the process ended between the cells; ")
            return await self._execute(code, "")

    async def _execute(self, code: str, before: str) -> Execution:
        job, server = self._job, self._server
        assert job is not None
        self._cells += 1
        self._news.clear()
        job.on_flood = self._news.set
        started = time.monotonic()
        sending = asyncio.ensure_future(job.send({"code": code, "name": f"<cell {self._cells}>"}))
        await self._wait(job, self.limits.wall_s)
        sending.cancel()
        stopped = not job.frames and not job.done.done()
        if stopped:
            await self._stop(server, job)
        job.drain()
        wall_s = time.monotonic() - started
        flood = job.room < 0
        stdout, stderr = job.take_output()
        if not job.frames:
            status, error = await self._ended(job, stopped, flood)
            await self._forget()
            return Execution(status, stdout, stderr, None, f"{error}; {RESET}", wall_s)
        message = job.frames[0][1]
        job.frames.clear()
        status, value, error = _reply(message)
        if flood:
            status, value, error = "output_limit", None, f"printed more than {self.limits.output_bytes} bytes; the state is kept"
        elif stopped:
            status, value, error = "timeout", None, f"interrupted after {self.limits.wall_s:g} s; the state is kept"
        if before:
            error = f"{before}{RESET}" + (f"; {error}" if error else "")
        return Execution(status, stdout, stderr, value, error, wall_s)

    async def _wait(self, job: Job, seconds: float) -> None:
        """Until there is a frame, a flood of output, or an end."""
        if not job.frames and not job.done.done():
            try:
                await asyncio.wait_for(self._news.wait(), seconds)
            except TimeoutError:
                self._news.clear()
        self._news.clear()

    async def _stop(self, server: ForkServer, job: Job) -> None:
        """Interrupt; then kill."""
        try:
            await server.interrupt(job)
            await self._wait(job, SOFT_S)
            if not job.frames and not job.done.done():
                server.kill(job, "timeout")
                await asyncio.wait_for(asyncio.shield(job.done), SECOND_DEADLINE_S)
        except TimeoutError:
            await server.close(force=True)
        except ServerLost:
            self._news.clear()

    async def _ended(self, job: Job, stopped: bool, flood: bool) -> tuple[Status, str]:
        from rlft.sandbox.sandbox import judge

        if flood:
            return "output_limit", f"printed more than {self.limits.output_bytes} bytes"
        if stopped:
            return "timeout", f"ran longer than {self.limits.wall_s:g} s and ignored the interrupt"
        if job.done.exception():
            return "crashed", "the sandbox server has ended"
        status, error = judge(job.done.result(), job, None)
        return ("crashed", "the program ended the process") if status == "ok" else (status, error)

    async def _forget(self) -> None:
        if self._job is not None:
            if not self._job.done.done():
                self._server.kill(self._job, "closed")
            self._job.close()
            self._job = None

    async def close(self) -> None:
        """End the process and forget its state."""
        self._closed = True
        job = self._job
        await self._forget()
        if job is not None and not job.done.done():
            await asyncio.wait({job.done}, timeout=SECOND_DEADLINE_S)


def _reply(message: Any) -> tuple[Status, str | None, str]:
    """What the process says of a cell; the model's code may have forged it."""
    if isinstance(message, dict):
        if message.get("status") == "ok" and isinstance(message.get("value"), str | None):
            return "ok", message.get("value"), ""
        if message.get("status") in ("error", "oom", "denied") and isinstance(message.get("error"), str):
            return message["status"], None, message["error"][:8192]
    return "error", None, "the reply was garbled"
