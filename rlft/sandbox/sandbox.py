"""The sandbox: runs model-written Python in processes that the kernel confines, and reports how each ended."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from rlft.errors import SandboxError
from rlft.sandbox import values
from rlft.sandbox.forkserver import SECOND_DEADLINE_S, ForkServer, Job, Outcome, ServerLost
from rlft.sandbox.selftest import check
from rlft.sandbox.session import Session
from rlft.sandbox.types import Execution, Limits, Status, Tier

RECYCLE_AFTER = 10_000  # jobs of one server
CLIENT_STATUSES = ("error", "oom", "denied")  # that a program may give itself
Call = tuple[str, Sequence[Any], Mapping[str, Any]]


class Sandbox:
    """Client of one fork server. Many tasks of one event loop may use it at once; `concurrency` run at a time.

    Tier A needs user namespaces (or root), Landlock and seccomp; tier B, for containers that forbid namespaces, the
    last two. "auto" takes the first that passes its self-test. Programs get no network, no file but the
    interpreter, its packages and their scratch folder, and no environment.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        tier: Literal["auto", "A", "B"] = "auto",
        preload: Sequence[str] = (),
        concurrency: int = 0,
        selftest: bool = True,
    ) -> None:
        """`preload` names modules that every job finds imported. `concurrency` 0 is the number of cores."""
        self.limits = limits or Limits()
        self.preload = tuple(preload)
        self.concurrency = concurrency or len(os.sched_getaffinity(0))
        self._places = asyncio.Semaphore(self.concurrency)
        self._tiers: tuple[Tier, ...] = ("A", "B") if tier == "auto" else (tier,)
        self._selftest = selftest
        self._server: ForkServer | None = None
        self._retired: list[ForkServer] = []
        self._renewing = asyncio.Lock()
        self._numbers = 0

    @property
    def tier(self) -> Tier:
        """The tier that is in force; SandboxError before `start`."""
        return self._current().tier

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the server found: tier, root, version of Landlock, version of control groups (0: none), pid."""
        return self._current().facts

    async def start(self) -> None:
        """Start the server and attack it. Raises SandboxError, naming what is missing, if it does not hold."""
        reasons = []
        for tier in self._tiers:
            server = ForkServer(tier, self.preload)
            try:
                await server.start()
                self._server = server
                if self._selftest:
                    await check(self)
                self._tiers = (tier,)
                return
            except SandboxError as error:
                reasons.append(f"tier {tier}: {error}")
                self._server = None
                await server.close()
        raise SandboxError("no sandbox here: " + "; ".join(reasons))

    async def close(self) -> None:
        """End the server and everything that still runs in it."""
        servers = [*self._retired, *([self._server] if self._server else [])]
        self._server, self._retired = None, []
        for server in servers:
            await server.close()

    async def run(
        self, code: str, *, stdin: str = "", files: Mapping[str, str] | None = None, limits: Limits | None = None, job_id: str = ""
    ) -> Execution:
        """Run a script as `python main.py` would, in a folder with `files` (relative path: text).

        `random` is seeded with `job_id`: equal ids draw equal numbers.
        """
        request = {"code": code, "stdin": stdin, "files": _checked(files or {}), "job_id": job_id}
        job, outcome, wall_s = await self._execute(request, limits or self.limits)
        remark = next((message for _, message in job.frames if _is_remark(message)), None)
        status, error = judge(outcome, job, remark)
        stdout, stderr = job.take_output()
        return Execution(status, stdout, stderr, None, error, wall_s)

    async def call(self, code: str, calls: Sequence[Call], *, limits: Limits | None = None, job_id: str = "") -> list[Execution]:
        """Execute code once, then call functions of it by name (`f`, `Class.method`); one Execution per call.

        Arguments and values are plain data (rlft/sandbox/values.py). The limits hold for all calls together. A call
        that ends the process keeps the results before it; those after it share its status. Output is the
        whole job's, in each.
        """
        packed = [[name, _packed(args, kwargs)] for name, args, kwargs in calls]
        started = time.monotonic()
        job, outcome, wall_s = await self._execute({"code": code, "calls": packed, "job_id": job_id}, limits or self.limits)
        stdout, stderr = job.take_output()
        results, last = [], started
        for arrived, message in job.frames:
            if not isinstance(message, dict) or message.get("call") != len(results) or len(results) == len(calls):
                break
            status, value, error = _result(message)
            results.append(Execution(status, stdout, stderr, value, error, arrived - last))
            last = arrived
        if len(results) < len(calls):
            failed = next((message["failed"] for _, message in job.frames if isinstance(message, dict) and "failed" in message), None)
            status, error = judge(outcome, job, failed if _is_remark(failed) else None)
            status = "error" if status == "ok" else status
            error = error or "the program ended before the call returned"
            results.append(Execution(status, stdout, stderr, None, error, max(0.0, started + wall_s - last)))
            missing = len(calls) - len(results)
            results += [Execution(status, stdout, stderr, None, f"not called: {error}")] * missing
        return results

    async def session(self, limits: Limits | None = None) -> Session:
        """A Python that remembers: cells share one namespace and one scratch folder."""
        session = Session(self, limits or self.limits)
        await session.open()
        return session

    async def _execute(self, request: Mapping[str, Any], limits: Limits) -> tuple[Job, Outcome, float]:
        """One job to its end; again, once, if its server was lost through another job."""
        async with self._places:
            try:
                return await self._attempt(request, limits)
            except ServerLost:
                return await self._attempt(request, limits)

    async def _attempt(self, request: Mapping[str, Any], limits: Limits) -> tuple[Job, Outcome, float]:
        server = await self.living_server()
        job = self.new_job(limits)
        job.on_flood = lambda: server.kill(job, "output_limit")
        started = time.monotonic()
        try:
            sending = asyncio.ensure_future(server.launch(job, False, request))
            deadline = started + limits.wall_s + SECOND_DEADLINE_S
            outcome = await self._outcome(server, job, sending, deadline)
            wall_s = time.monotonic() - started
            if outcome.why == "lost":
                raise ServerLost("the sandbox server could not start a job; its standard error says why")
            job.read_rest()
            return job, outcome, wall_s
        finally:
            if not job.done.done():
                server.kill(job, "closed")
            job.close()

    async def _outcome(self, server: ForkServer, job: Job, sending: asyncio.Future[None], deadline: float) -> Outcome:
        done, _ = await asyncio.wait({sending, job.done}, timeout=deadline - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        if sending in done and sending.exception():
            raise sending.exception() or ServerLost()
        try:
            outcome = await asyncio.wait_for(asyncio.shield(job.done), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            outcome = Outcome(-signal.SIGKILL, 0.0, False, "timeout")
            await server.close(force=True)
        finally:
            sending.cancel()
        return outcome

    def place(self) -> asyncio.Semaphore:
        """Entered while something runs; `concurrency` may at a time."""
        return self._places

    def new_job(self, limits: Limits) -> Job:
        self._numbers += 1
        return Job(self._numbers, limits)

    async def living_server(self) -> ForkServer:
        """The current server; a new one where it was lost or has served enough jobs. The self-test held on the first."""
        server = self._current()
        if server.lost or server.launched >= RECYCLE_AFTER:
            async with self._renewing:
                if self._server is server:
                    fresh = ForkServer(server.tier, self.preload)
                    await fresh.start()
                    self._server = fresh
                    self._retired.append(server)
                await self._close_idle()
        return self._current()

    async def _close_idle(self) -> None:
        idle = [server for server in self._retired if not server.jobs]
        self._retired = [server for server in self._retired if server.jobs]
        for server in idle:
            await server.close()

    def _current(self) -> ForkServer:
        if self._server is None:
            raise SandboxError("the sandbox is not started; await sandbox.start() first")
        return self._server


def _checked(files: Mapping[str, str]) -> dict[str, str]:
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            raise ValueError(f"files: {name!r} is not a path inside the scratch folder")
    return dict(files)


def _packed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    import json

    return json.loads(values.dumps((list(args), dict(kwargs))))


def _is_remark(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("status") in CLIENT_STATUSES
        and isinstance(message.get("error"), str)
        and len(message["error"]) <= 8192
    )


def _result(message: dict[str, Any]) -> tuple[Status, Any, str]:
    """What a call's frame says, which the program may have forged: a value, or why there is none."""
    if message.get("status") != "ok":
        return (message["status"], None, message["error"]) if _is_remark(message) else ("error", None, "the result was garbled")
    try:
        return "ok", values.unpack(message.get("value")), ""
    except (ValueError, RecursionError) as error:
        return "error", None, f"the result was garbled: {error}"


def judge(outcome: Outcome, job: Job, remark: dict[str, Any] | None) -> tuple[Status, str]:
    """Status and error of a job. What the kernel saw comes before what the program says of itself."""
    limits = job.limits
    if job.broken_frames:
        return "error", "the program wrote to the control stream"
    if outcome.why == "timeout":
        return "timeout", f"ran longer than {limits.wall_s:g} s"
    if outcome.why == "oom":
        return "oom", f"took more than {limits.memory_mb} MB of memory"
    if outcome.why == "output_limit" or job.flooded:
        return "output_limit", f"printed more than {limits.output_bytes} bytes"
    if outcome.why:
        return "crashed", "the sandbox was closed"
    if outcome.code < 0:
        return _judge_signal(outcome, limits)
    if outcome.code == 0:
        return "ok", ""
    if outcome.oom:
        return "oom", f"took more than {limits.memory_mb} MB of memory"
    return (remark["status"], remark["error"]) if remark else ("error", f"exit code {outcome.code}")


def _judge_signal(outcome: Outcome, limits: Limits) -> tuple[Status, str]:
    number = -outcome.code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGSYS:
        return "denied", "killed for a system call that the sandbox forbids"
    if number == signal.SIGKILL and outcome.oom:
        return "oom", f"took more than {limits.memory_mb} MB of memory"
    # The kernel counts by ticks, and less than it limits.
    if number in (signal.SIGKILL, signal.SIGXCPU) and outcome.cpu_s >= 0.75 * math.ceil(limits.cpu_s):
        return "timeout", f"used more than {limits.cpu_s:g} s of CPU"
    return "crashed", f"killed by {name}"
