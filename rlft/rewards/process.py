"""Killable grading processes: calls of reward functions in, verdicts or reasons out, whatever the functions do.

A fork server (`zygote.py`) holds the loaded grader; each grading process is a fork of it and answers one request
at a time (`serve.py`). A process that misses a deadline is killed with everything it started, and replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, get_args

import cloudpickle

from rlft.errors import RewardError
from rlft.rewards.compose import PackedGrader
from rlft.rewards.environment import passed_on
from rlft.rewards.grader import Cause, Failure, Rule, Verdict
from rlft.rewards.serve import Call, encode, limit_of, too_slow
from rlft.types import Group, Trajectory

BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rlft.rewards.zygote import main; main(*map(int, sys.argv[2:]))"
START_S = 120.0  # longest wait for the grader to load, for a fork, and for a request to be unpickled
LATE_S = 0.01  # a caller that was busy itself looks once more for this long before it kills
GATHER_S = 0.08  # a process ends its own awaitables at their deadline; killed if it has not by then
MAX_LINE = 2**24  # bytes of one line from a grading process
T = TypeVar("T")
MAX_LOST = 3  # times that a request is given to a process which dies before its first call


@dataclass(frozen=True)
class Request:
    """Calls of rewards on subjects. A call that fails for good ends its item; items are independent of each other."""

    subjects: Mapping[int, Trajectory | Group]
    calls: Sequence[Call]


@dataclass(frozen=True)
class Report:
    """What came of a request: every call's verdicts, or why there are none."""

    verdicts: dict[Call, list[Verdict | Failure]] = field(default_factory=dict)
    failures: dict[Call, Failure] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)  # items whose other calls are off

    def fail(self, call: Call, why: Failure, rule: Rule) -> None:
        self.failures.setdefault(call, why)
        if why.stops(rule):
            self.ended.add(call[0])


@dataclass(frozen=True)
class _Piece:
    """Calls that go to one process."""

    subjects: Mapping[int, Trajectory | Group]
    calls: Sequence[Call]
    report: Report
    lost: int = 0

    def left(self) -> list[Call]:
        settled = self.report.verdicts.keys() | self.report.failures.keys()
        return [call for call in self.calls if call not in settled and call[0] not in self.report.ended]


@dataclass(frozen=True)
class _Child:
    pid: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass
class _Talk:
    """How far a request has come with one process."""

    at: Call | None = None  # what it is working on
    gathering: bool = False
    finished: bool = False
    reusable: bool = False
    late: bool = False


class GradingProcesses:
    """A fixed number of grading processes, shared by all callers on one event loop.

    Args:
        grader: a packed grader (`compose.pack`); its functions are loaded in the processes only.
        processes: how many.
        limit_s: longest time one call may take, where its rule names no other.
        env: environment variables that the processes get beside those that programs run by (`rlft.rewards.environment`).
    """

    def __init__(self, grader: PackedGrader, processes: int, limit_s: float, env: Collection[str] = ()) -> None:
        self._grader, self._number, self._limit_s, self._env = grader, processes, limit_s, env
        self._started: asyncio.Task[None] | None = None
        self._closed = False
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = asyncio.Lock()  # one order to the zygote at a time
        self._free: asyncio.Queue[_Child | None] = asyncio.Queue()  # None: a place whose process could not be made
        self._background: set[asyncio.Task[Any]] = set()
        self.num_killed = 0
        self.late: Counter[int] = Counter()  # calls that ran into their limit, by reward
        self.working: dict[int, tuple[int, float]] = {}  # by process: the reward it works on, and since when

    async def start(self) -> None:
        """Load the grader and start all processes, unless that is done.

        Raises:
            RewardError: the grader cannot be loaded.
        """
        if self._started is None:
            self._started = self._spawn(self._start())
        await asyncio.shield(self._started)

    async def evaluate(self, requests: Sequence[Request]) -> list[Report]:
        """Make all calls. Concurrent callers take turns at the processes."""
        reports = [Report() for _ in requests]
        turns = asyncio.Semaphore(self._number)  # no caller queues for more processes than there are
        share = math.ceil(self._number / max(1, len(requests)))
        try:
            async with asyncio.TaskGroup() as group:

                def add(pieces: Sequence[_Piece]) -> None:
                    for piece in pieces:
                        group.create_task(self._run(piece, turns, add))

                for request, report in zip(requests, reports, strict=True):
                    add(_split(_Piece(request.subjects, request.calls, report), share))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return reports

    async def close(self) -> None:
        """End all processes."""
        self._closed = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        while not self._free.empty():
            if child := self._free.get_nowait():
                child.writer.transport.abort()
        await self._drop_zygote()

    async def _start(self) -> None:
        async with self._lock:
            await self._load()
        for _ in range(self._number):
            await self._replace(None)

    async def _run(self, piece: _Piece, turns: asyncio.Semaphore, add: Callable[[Sequence[_Piece]], None]) -> None:
        async with turns:
            while (child := await self._free.get()) is None:
                await asyncio.shield(self._spawn(self._replace(None)))
            talk, replaced = _Talk(), None
            try:
                await self._converse(child, piece, talk)
            finally:
                self.working.pop(child.pid, None)
                if talk.finished and talk.reusable:
                    self._free.put_nowait(child)
                else:
                    replaced = self._spawn(self._replace(child))
            ended = "" if replaced is None else await asyncio.shield(replaced)
        if not (left := piece.left()):
            return
        self.num_killed += talk.late
        if talk.at is None and not talk.late and piece.lost + 1 < MAX_LOST:
            add([replace(piece, calls=left, lost=piece.lost + 1)])
        elif talk.at is None:
            why = f"did not begin within {START_S:g} s" if talk.late else f"died before it began ({ended})"
            for call in left:
                piece.report.fail(call, Failure("crashed", f"a grading process {why}"), self._grader.rules[call[1]])
        else:
            self.late[talk.at[1]] += talk.late
            rule = self._grader.rules[talk.at[1]]
            slow = too_slow(rule, self._limit_s)
            died = Failure("crashed", f"reward {rule.name!r}: grading process died ({ended})")
            piece.report.fail(talk.at, replace(slow, text=f"{slow.text} and was killed") if talk.late else died, rule)
            add(_split(replace(piece, calls=piece.left(), lost=0), self._number))

    async def _converse(self, child: _Child, piece: _Piece, talk: _Talk) -> None:
        """Have `child` make the piece's calls, until it is done, dead or late."""
        loop, report = asyncio.get_running_loop(), piece.report
        needed = {item: piece.subjects[item] for item, _ in piece.calls}
        deadline = loop.time() + START_S
        # A child that is dead, or not to be understood any more, is replaced by the caller.
        with contextlib.suppress(ValueError, TypeError, ConnectionError, EOFError):
            child.writer.write(encode(list(piece.calls), self._limit_s, cloudpickle.dumps(needed)))
            while not talk.finished:
                line = await _read_line(child.reader, deadline)
                if line is None:
                    talk.late = True
                    return
                match json.loads(line):
                    case ["at", int(item), int(term)]:
                        talk.at = (item, term)
                        self.working[child.pid] = (term, loop.time())
                        if not talk.gathering:
                            deadline = loop.time() + limit_of(self._grader.rules[term], self._limit_s)
                    case ["verdicts", int(item), int(term), list(found)]:
                        if (item, term) not in report.failures:
                            report.verdicts[item, term] = [_understood(one) for one in found]
                    case ["failed", int(item), int(term), str(cause), str(why)]:
                        self.late[term] += cause == "timeout"
                        report.fail((item, term), Failure(_cause(cause), why), self._grader.rules[term])
                    case ["gather", int(limit_s) | float(limit_s)]:
                        talk.gathering = True
                        deadline = loop.time() + limit_s + GATHER_S
                    case ["end", bool(reusable)]:
                        talk.finished, talk.reusable = True, reusable
                    case other:
                        raise ValueError(f"not a line of the protocol: {other!r}")

    async def _replace(self, child: _Child | None) -> str:
        """Fill a place anew. How its process ended, in words. Raises RewardError when no process can be made."""
        new = None
        try:
            new, ended = await self._fork(child)
        finally:
            self._free.put_nowait(new)
        return ended

    async def _fork(self, old: _Child | None) -> tuple[_Child, str]:
        """A new process in place of `old`, and how that one ended. Starts a new zygote if the last was lost."""
        async with self._lock:
            if old is not None:
                old.writer.transport.abort()
            ours, theirs = socket.socketpair()
            try:
                reply = await self._ask_alive({"end": old and old.pid}, theirs)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE)
        return _Child(reply["pid"], reader, writer), _ending(reply["status"])

    async def _load(self) -> None:
        """Start a zygote. It dies with the thread that runs this, so that has to be the event loop's own."""
        if self._closed:
            raise RewardError("the grading processes were closed")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs, os.fdopen(os.memfd_create("grader"), "w+b") as grader:
            grader.write(cloudpickle.dumps((self._grader.rules, self._grader.functions)))
            grader.seek(0)
            self._zygote = subprocess.Popen(
                [sys.executable, "-u", "-c", BOOT, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())],
                stdin=grader,
                stdout=2,  # what a reward prints goes where errors go
                pass_fds=[theirs.fileno()],
                env=passed_on(os.environ, self._env),
                start_new_session=True,
            )
        try:
            answer = await self._hear()
        except (OSError, EOFError, TimeoutError) as error:
            answer: dict[str, Any] = {"error": str(error) or f"nothing heard within {START_S:g} s"}
        if "error" in answer:
            await self._drop_zygote()
            raise RewardError(f"the rewards cannot be loaded in a grading process: {answer['error']}")

    async def _ask_alive(self, order: Mapping[str, Any], connection: socket.socket) -> dict[str, Any]:
        """`_ask`, of a new zygote if the last one was lost (its children died with it)."""
        try:
            return await self._ask(order, connection)
        except (OSError, EOFError, TimeoutError):
            await self._drop_zygote()
            await self._load()
            return {**await self._ask({"end": None}, connection), "status": None}

    async def _ask(self, order: Mapping[str, Any], connection: socket.socket) -> dict[str, Any]:
        if self._control is None:
            raise EOFError("the zygote is not running")
        socket.send_fds(self._control, [json.dumps(order).encode()], [connection.fileno()])
        return await self._hear()

    async def _hear(self) -> dict[str, Any]:
        assert self._control is not None
        async with asyncio.timeout(START_S):
            message = await asyncio.get_running_loop().sock_recv(self._control, 2**17)
        if not message:
            raise EOFError("the process ended")
        return json.loads(message)

    async def _drop_zygote(self) -> None:
        """End the zygote and its children: first by closing its socket, then by force."""
        zygote, control = self._zygote, self._control
        self._zygote = self._control = None
        if control is not None:
            control.close()
        if zygote is not None:
            try:
                await asyncio.to_thread(zygote.wait, 2.0)
            except subprocess.TimeoutExpired:
                zygote.kill()
                zygote.wait()

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` to its end even if the caller is cancelled half-way."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if self._closed and not task.cancelled():
            task.exception()  # a call that was cancelled half-way wanted another process: nobody waits for it any more


def _split(piece: _Piece, number: int) -> list[_Piece]:
    """Spread a piece's items over up to `number` pieces."""
    items = list(dict.fromkeys(item for item, _ in piece.calls))
    number = min(number, len(items))
    owner = {item: i * number // len(items) for i, item in enumerate(items)}
    return [replace(piece, calls=[call for call in piece.calls if owner[call[0]] == i]) for i in range(number)]


async def _read_line(reader: asyncio.StreamReader, deadline: float) -> bytes | None:
    """The next line, or None if there is none by the deadline. A line that lies ready is always read. Raises EOFError."""
    for until in (deadline, None):
        try:
            async with asyncio.timeout_at(until or asyncio.get_running_loop().time() + LATE_S):
                line = await reader.readline()
        except TimeoutError:
            continue
        if not line.endswith(b"\n"):
            raise EOFError("the process ended")
        return line
    return None


def _understood(said: Any) -> Verdict | Failure:
    if isinstance(said, dict):
        return Failure(_cause(said["cause"]), str(said["text"]))
    return said and (float(said[0]), str(said[1]))


def _cause(said: str) -> Cause:
    if said not in get_args(Cause):
        raise ValueError(f"not a cause of the protocol: {said!r}")
    return said  # type: ignore[return-value]


def _ending(status: int | None) -> str:
    if status is None:
        return "how is not known"
    return f"signal {-status}" if status < 0 else f"exit status {status}"
