"""Mathematical equivalence of answers in killable processes, callable from anywhere.

`MathVerifier` works the same from any thread, from asyncio, from Ray tasks and from every kind of Ray
actor: its processes belong to a thread of its own, and it uses no signals.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from rlft.errors import RewardError
from rlft.rewards.compose import pack
from rlft.rewards.grader import Canary, Failure, Rule, Term, spoken
from rlft.rewards.math import CANARIES, math_equal
from rlft.rewards.process import START_S, GradingProcesses, Report, Request
from rlft.types import Task, Trajectory

Status = Literal["correct", "wrong", "timeout", "crashed", "oom", "error", "unsupported", "task"]
BLOCK = 500  # pairs of one request; canaries run at least every second one
ALIVE_S = 5.0  # how often a waiting caller looks whether anyone still works for it
T = TypeVar("T")

_STATUS: dict[str, Status] = {"timeout": "timeout", "crashed": "crashed", "oom": "oom", "ungradable": "unsupported", "task": "task"}


@dataclass(frozen=True)
class MathVerdict:
    """What came of one pair.

    "correct" and "wrong" are verdicts. The others are none: over the "timeout", the process "crashed" or ran
    out of memory ("oom"), an "error" was raised, the answer is "unsupported" (beyond the caps), or
    the "task" is broken (nothing can be compared with its gold answer).
    """

    status: Status
    feedback: str = ""


class MathVerifier:
    r"""Grades pairs of an answer and a gold answer, each with a deadline of its own.

    Starting it takes seconds (sympy is loaded once, then forked). Pairs of known verdict are graded at
    the start and every 1000 pairs: a verifier that has broken stops instead of returning zeros. Close it,
    or use it in a `with` statement.

    Args:
        limit_s: longest time one pair may take; a process that takes longer is killed and replaced.
        processes: how many pairs are graded at once.
        memory_mb: what one pair may allocate.
        extract: where in its text an answer stands: "whole" (the text or its \boxed{}), "boxed" or
            "boxed_or_last"; see `rlft.rewards.math.extract.extract`.
        reward: called as (task, trajectory, extract=..., **options); 1 is correct, 0 wrong.
        canaries: what the reward must answer.
        options: of the reward, such as `float_rounding` or `caps`.

    Raises:
        RewardError: it cannot be started, or a pair of known verdict comes out otherwise.
    """

    def __init__(
        self,
        limit_s: float = 2.0,
        processes: int = 1,
        *,
        memory_mb: int = 1024,
        extract: str = "whole",
        reward: Callable[..., Any] = math_equal,
        canaries: Sequence[Canary] = CANARIES,
        **options: Any,
    ) -> None:
        if limit_s <= 0 or processes < 1:
            raise ValueError(f"limit_s {limit_s} and processes {processes}; expected a positive time and at least one process")
        rule = Rule("math", timeout_s=limit_s, memory_mb=memory_mb)
        grader = pack([Term(rule, functools.partial(reward, extract=extract, **options))])
        self._canaries = tuple(canaries)
        self._block_s = START_S + (limit_s + 1) * (BLOCK + len(canaries)) * processes
        self._since = 0  # pairs graded after the last canaries
        self._broken = ""
        self._counts: Counter[Status] = Counter()
        self._loop = asyncio.new_event_loop()
        # The fork server dies with the thread that started it, so that is one which lives as long as the verifier.
        self._thread = threading.Thread(target=self._loop.run_forever, name="math-verifier", daemon=True)
        self._thread.start()
        try:
            self._pool, self._turns = self._wait(self._make(grader, processes, limit_s))
            self._wait(self._start())
        except BaseException:
            self.close()
            raise

    def verify(self, pairs: Sequence[tuple[str, Any]]) -> list[MathVerdict]:
        """The verdict of each (answer, gold answer), in their order. Blocks; in a coroutine await `averify`.

        Raises:
            RewardError: the verifier was closed, or has broken (the message names the pair that told).
        """
        return self._wait(self._verify(list(pairs)))

    async def averify(self, pairs: Sequence[tuple[str, Any]]) -> list[MathVerdict]:
        """`verify` for any event loop."""
        return await asyncio.wrap_future(self._submit(self._verify(list(pairs))))

    @property
    def counts(self) -> dict[Status, int]:
        """How many pairs came out how."""
        return {status: self._counts[status] for status in get_args(Status)}

    @property
    def num_killed(self) -> int:
        """Processes that were killed at their deadline."""
        return self._pool.num_killed

    def close(self) -> None:
        """End the processes and the thread. Pairs that are being graded are lost."""
        if self._loop.is_closed():
            return
        self._broken = self._broken or "the verifier was closed"
        if hasattr(self, "_pool"):
            self._wait(self._pool.close())
        self._wait(self._loop.shutdown_default_executor())  # its threads waited for the processes' ends
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ALIVE_S)
        if not self._thread.is_alive():
            self._loop.close()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self._loop.is_closed():
            work.close()
            raise RewardError(self._broken)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._submit(work)
        while not concurrent.futures.wait([future], timeout=ALIVE_S).done:
            if not self._thread.is_alive():
                raise RewardError("the thread of the math verifier has ended; make a new one")
        return future.result()

    async def _make(self, grader: Any, processes: int, limit_s: float) -> tuple[GradingProcesses, asyncio.Semaphore]:
        return GradingProcesses(grader, processes, limit_s), asyncio.Semaphore(processes)

    async def _start(self) -> None:
        await self._pool.start()
        await self._grade([], canaries=True)

    async def _verify(self, pairs: Sequence[tuple[str, Any]]) -> list[MathVerdict]:
        blocks = [pairs[at : at + BLOCK] for at in range(0, len(pairs), BLOCK)]
        graded = [await self._turn(block) for block in blocks]
        return [verdict for block in graded for verdict in block]

    async def _turn(self, pairs: Sequence[tuple[str, Any]]) -> list[MathVerdict]:
        async with self._turns:
            if self._broken:
                raise RewardError(self._broken)
            due = self._since + len(pairs) >= BLOCK
            self._since = 0 if due else self._since + len(pairs)
            found = await self._grade(pairs, canaries=due)
        self._counts.update(verdict.status for verdict in found)
        return found

    async def _grade(self, pairs: Sequence[tuple[str, Any]], canaries: bool) -> list[MathVerdict]:
        """One request: the pairs, with the canaries spread among them so that every process gets some."""
        said = [spoken(Task(f"pair {i}", (), gold), answer) for i, (answer, gold) in enumerate(pairs)]
        known = [spoken(canary.task, canary.text) for canary in self._canaries] if canaries else []
        subjects, pair_at, canary_at = dict[int, Trajectory](), list[int](), list[int]()
        for j in range(max(1, len(known))):
            for trajectory in said[j * len(said) // max(1, len(known)) : (j + 1) * len(said) // max(1, len(known))]:
                pair_at.append(len(subjects))
                subjects[len(subjects)] = trajectory
            for trajectory in known[j : j + 1]:
                canary_at.append(len(subjects))
                subjects[len(subjects)] = trajectory
        try:
            async with asyncio.timeout(self._block_s):
                [report] = await self._pool.evaluate([Request(subjects, [(place, 0) for place in subjects])])
        except TimeoutError:
            raise RewardError(f"the math verifier's processes did not answer within {self._block_s:g} s") from None
        self._check(canary_at, report)
        return [_verdict(report, place) for place in pair_at]

    def _check(self, places: Iterable[int], report: Report) -> None:
        for canary, place in zip(self._canaries, places, strict=False):
            found = _found(report, place)
            if isinstance(found, Failure) or found[0] != canary.value:
                got = found.text if isinstance(found, Failure) else f"{found[0]:g} ({found[1]})"
                pair = f"{canary.text!r} against {canary.task.answer!r}"
                self._broken = f"the math verifier has broken and stopped: {pair} is {canary.value:g}, got {got}"
                raise RewardError(self._broken)


def _found(report: Report, place: int) -> tuple[float, str] | Failure:
    if (place, 0) in report.failures:
        return report.failures[place, 0]
    verdict = report.verdicts[place, 0][0]
    return Failure("invalid", "no verdict") if verdict is None else verdict


def _verdict(report: Report, place: int) -> MathVerdict:
    found = _found(report, place)
    if isinstance(found, Failure):
        return MathVerdict(_STATUS.get(found.cause, "error"), found.text)
    return MathVerdict("correct" if found[0] == 1.0 else "wrong", found[1])
