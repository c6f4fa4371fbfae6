"""The sandbox worker: executions and sessions of model-written Python for many callers, within this machine's limits."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from rlft.errors import SandboxError
from rlft.sandbox.sandbox import Sandbox
from rlft.sandbox.session import RESET, Session
from rlft.sandbox.types import Execution, Limits

T = TypeVar("T")
SESSION_MB = 16  # of memory, counted for a live session; an idle one takes about 2
# How a session says that its process went away through no fault of the cell.
LOST = ("the process ended between two cells", "the sandbox server has ended")


@dataclass
class _Kept:
    """A session as the cells that were run in it. Its process may have been ended to be started anew from them."""

    limits: Limits
    cells: list[str] = field(default_factory=list)
    session: Session | None = None
    used: float = field(default_factory=time.monotonic)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class SandboxWorker:
    """An asyncio actor; construct and use it on one event loop.

    A session is known by its id and kept as the log of its cells. Its process is ended when it has idled for `idle_s`, or when
    too many are alive and it was used the longest ago; the next cell starts a process anew and runs the log in it again.
    In this way a session also outlives the loss of a sandbox server, and with `export_log` and `restore` that of its worker.

    Args:
        limits: of executions and sessions that name none.
        tier: of the sandbox, see `Sandbox`.
        preload: modules that every job finds imported.
        max_executions: at a time; 0 for the number of cores. Others wait.
        max_sessions: processes of sessions at a time, at least `max_executions`; 0 for what fits into half of the free memory.
        idle_s: after which a session's process is ended.
        forget_s: after which an idle session is forgotten altogether.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        tier: Literal["auto", "A", "B"] = "auto",
        preload: Sequence[str] = (),
        max_executions: int = 0,
        max_sessions: int = 0,
        idle_s: float = 300.0,
        forget_s: float = 3600.0,
    ) -> None:
        self._limits = limits or Limits()
        self._max_executions = max_executions or len(os.sched_getaffinity(0))
        self._max_sessions = max(self._max_executions, max_sessions or _sessions_that_fit())
        self._idle_s, self._forget_s = idle_s, forget_s
        self._make = lambda: Sandbox(self._limits, tier=tier, preload=preload, concurrency=self._max_executions)
        self._sandbox: Sandbox | None = None
        self._starting = asyncio.Lock()
        self._turns = asyncio.Semaphore(self._max_executions)
        self._room = asyncio.Lock()  # one session at a time looks for room
        self._kept: dict[str, _Kept] = {}
        self._tending: asyncio.Task[None] | None = None
        self._closed = False
        self._ended: Counter[str] = Counter()  # executions by status
        self._waited_s = 0.0
        self._resets = self._rebuilt = self._restarts = 0

    async def start(self) -> None:
        """Start the sandbox; the first execution does it too. Raises SandboxError if there can be none."""
        await self._living()

    async def run(
        self,
        code: str,
        *,
        stdin: str = "",
        files: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        job_id: str = "",
    ) -> Execution:
        """Run a script, see `Sandbox.run`."""
        ran = await self._in_turn(lambda sandbox: sandbox.run(code, stdin=stdin, files=files, limits=limits, job_id=job_id))
        self._ended[ran.status] += 1
        return ran

    async def call(
        self, code: str, calls: Sequence[tuple[str, Sequence[Any], Mapping[str, Any]]], *, limits: Limits | None = None, job_id: str = ""
    ) -> list[Execution]:
        """Call functions of a script, see `Sandbox.call`."""
        ran = await self._in_turn(lambda sandbox: sandbox.call(code, calls, limits=limits, job_id=job_id))
        self._ended.update(execution.status for execution in ran)
        return ran

    async def open_session(self, limits: Limits | None = None) -> str:
        """The id of a new session."""
        return await self.restore([], limits)

    async def restore(self, cells: Sequence[str], limits: Limits | None = None) -> str:
        """The id of a new session in which cells have been run already, whatever came of them."""
        session_id = uuid.uuid4().hex
        kept = self._kept[session_id] = _Kept(limits or self._limits, list(cells))
        try:
            async with kept.turn, self._turn():
                await self._rebuild(kept)
        except BaseException:
            del self._kept[session_id]
            raise
        return session_id

    async def execute(self, session_id: str, code: str) -> Execution:
        """Run a cell in a session, see `Session.execute`; cells of one session wait for each other.

        Raises:
            SandboxError: there is no such session, or no sandbox.
        """
        kept = self._find(session_id)
        async with kept.turn, self._turn():
            self._find(session_id)
            kept.used = time.monotonic()
            ran = await (kept.session or await self._rebuild(kept)).execute(code)
            if any(words in ran.error for words in LOST):
                ran = await (await self._rebuild(kept)).execute(code)
            kept.used = time.monotonic()
            if RESET in ran.error:
                self._resets += 1
                kept.cells.clear()
            else:
                kept.cells.append(code)
        self._ended[ran.status] += 1
        return ran

    async def close_session(self, session_id: str) -> None:
        """End a session, after the cell that runs in it."""
        kept = self._find(session_id)
        async with kept.turn:
            self._kept.pop(session_id, None)
            await _end(kept)

    async def export_log(self, session_id: str) -> list[str]:
        """The cells from which `restore` makes the session again, on this worker or another. Cells that were interrupted
        are among them; those before a reset are not."""
        return list(self._find(session_id).cells)

    async def stats(self) -> dict[str, float]:
        """Since the start: executions by how they ended, seconds they waited for their turn, sessions (all, and those that
        have a process), sessions reset by a cell, rebuilt from their log, and sandboxes started again."""
        sessions = {"sessions": len(self._kept), "live": sum(kept.session is not None for kept in self._kept.values())}
        counts = {"resets": self._resets, "rebuilt": self._rebuilt, "restarts": self._restarts, "queue_s": self._waited_s}
        return {**{f"executions/{status}": number for status, number in self._ended.items()}, **sessions, **counts}

    async def close(self) -> None:
        """End all sessions and the sandbox."""
        self._closed = True
        if self._tending:
            self._tending.cancel()
        self._kept.clear()
        if self._sandbox:
            await self._sandbox.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        asked = time.monotonic()
        async with self._turns:
            self._waited_s += time.monotonic() - asked
            yield

    async def _in_turn(self, work: Callable[[Sandbox], Awaitable[T]]) -> T:
        """Do work in the sandbox; once more, in a fresh one, if it cannot do anything any more."""
        async with self._turn():
            sandbox = await self._living()
            try:
                return await work(sandbox)
            except SandboxError:
                return await work(await self._living(instead_of=sandbox))

    async def _living(self, instead_of: Sandbox | None = None) -> Sandbox:
        async with self._starting:
            if self._closed:
                raise SandboxError("the sandbox worker was closed")
            if self._sandbox is None or self._sandbox is instead_of:
                fresh = self._make()
                await fresh.start()
                old, self._sandbox = self._sandbox, fresh
                if old is not None:
                    self._restarts += 1
                    await old.close()
            if self._tending is None:
                self._tending = asyncio.get_running_loop().create_task(self._tend())
            return self._sandbox

    async def _rebuild(self, kept: _Kept) -> Session:
        """Give a session a fresh process, in which its cells are run."""
        await _end(kept)
        sandbox = await self._living()
        async with self._room:
            await self._make_room()
            try:
                kept.session = await sandbox.session(kept.limits)
            except SandboxError:
                kept.session = await (await self._living(instead_of=sandbox)).session(kept.limits)
        self._rebuilt += bool(kept.cells)
        for cell in kept.cells:
            await kept.session.execute(cell)
        return kept.session

    async def _make_room(self) -> None:
        """End processes of sessions that no one uses now, those used the longest ago first, until one more may live."""
        live = [kept for kept in self._kept.values() if kept.session is not None]
        idle = sorted((kept for kept in live if not kept.turn.locked()), key=lambda kept: kept.used)
        for kept in idle[: max(0, len(live) + 1 - self._max_sessions)]:
            await _end(kept)

    def _find(self, session_id: str) -> _Kept:
        if session_id not in self._kept:
            raise SandboxError(f"there is no session {session_id!r}; it was closed, or forgotten after {self._forget_s:g} s without a cell")
        return self._kept[session_id]

    async def _tend(self) -> None:
        """End what has idled for too long, for ever."""
        while True:
            await asyncio.sleep(min(self._idle_s, self._forget_s) / 4)
            now = time.monotonic()
            for session_id, kept in list(self._kept.items()):
                if not kept.turn.locked() and now - kept.used > self._idle_s:
                    await _end(kept)
                if not kept.turn.locked() and now - kept.used > self._forget_s:
                    self._kept.pop(session_id, None)


async def _end(kept: _Kept) -> None:
    session, kept.session = kept.session, None
    if session is not None:
        await session.close()


def _sessions_that_fit() -> int:
    import psutil

    return int(psutil.virtual_memory().available / 2**20 / 2 / SESSION_MB)
