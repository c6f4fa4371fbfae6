"""The reward worker: grades whole groups, functions in killable processes and scorers beside them, many callers at a time."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any

from rlft.errors import RewardError
from rlft.rewards.compose import PackedGrader, compose, pack
from rlft.rewards.grader import Failure, Rule, Scorer, UsesEngines, Verdict, failure, spoken, verdicts
from rlft.rewards.process import GradingProcesses, Report, Request
from rlft.rewards.serve import limit_of, too_slow
from rlft.types import Group, Trajectory

CANARIES_EVERY = 1000  # gradings between two looks at the canaries
LONG_S = 5.0  # a call that takes half of its limit and this long is worth telling


@dataclass(frozen=True)
class Busy:
    """Says what a reward worker does at the moment."""

    waiting: int  # trajectories that are not graded yet
    reward: str = ""  # on whose call it has been longest, "" where it grades nothing
    since_s: float = 0.0
    limit_s: float = 0.0
    late: tuple[tuple[str, int, float], ...] = ()  # since it last was idle: rewards, their calls that ran into the limit, the limit

    def told(self) -> str:
        """Say what holds it up; "" where nothing does."""
        said = [f"reward {name!r}: stopped at its limit of {limit:g} s {number} times" for name, number, limit in self.late]
        if self.reward and self.since_s >= max(LONG_S, self.limit_s / 2):
            said.append(f"reward {self.reward!r} in one call for {self.since_s:.0f} s of at most {self.limit_s:g} s")
        return f"{', '.join(said)}, {self.waiting} answers wait" if said else ""


def held_up(workers: Sequence[Busy]) -> str:
    """Say what holds up the worker that most answers wait for; "" where nothing does."""
    return next(filter(None, (busy.told() for busy in sorted(workers, key=lambda busy: -busy.waiting))), "")


class RewardWorker:
    """An asyncio actor; construct and use it on one event loop.

    Args:
        reward: a packed grader (`rlft.rewards.compose.pack`), or what `compose` takes.
        processes: grading processes of this worker.
        timeout_s: longest time one call of a reward may take, where its rule names no other.
        env: environment variables that rewards get beside those that programs run by (`rlft.rewards.environment`).
    """

    def __init__(
        self,
        reward: PackedGrader | Callable[..., Any] | Mapping[Any, Any],
        processes: int,
        timeout_s: float,
        env: Collection[str] = (),
    ) -> None:
        self._grader = reward if isinstance(reward, PackedGrader) else pack(compose(reward))
        self._timeout_s = timeout_s
        self._processes = GradingProcesses(self._grader, processes, timeout_s, env)
        self._started: asyncio.Task[None] | None = None
        self._graded = self._failed = 0
        self._until_canaries = CANARIES_EVERY
        self._ungraded: Counter[str] = Counter()
        self._seconds = 0.0
        self._waiting = 0
        self._scoring: dict[object, tuple[int, float]] = {}  # calls of scorers: whose, and since when
        self._late: Counter[int] = Counter()  # of them, those that ran into their limit
        self._late_before: Counter[int] = Counter()  # calls of any reward, up to when nothing waited

    async def start(self, engines: Mapping[str, Any] | None = None) -> None:
        """Load the rewards, start processes and scorers, look at the canaries; `grade` does it too.

        Args:
            engines: what completes conversations for each model that a scorer asks on rlft's own engines.

        Raises:
            RewardError, ConfigError: a reward cannot be loaded or started, or fails its canary.
        """
        if self._started is None:
            self._started = asyncio.get_running_loop().create_task(self._start(engines or {}))
        await asyncio.shield(self._started)

    async def grade(self, groups: Sequence[Group], step: int = 0) -> list[Group]:
        """The groups with `reward`, `parts`, `feedback` and `ungraded` of every trajectory set.

        What could not be graded comes back as `failed` with its `error`, and reward 0 means nothing there.
        Trajectories that had failed before are not graded. Turn rewards stay as the environment gave them.

        Args:
            step: of the run, for weights that follow a schedule.

        Raises:
            RewardError: a canary was graded wrong, so nothing that this worker says can be trusted.
        """
        started, number = time.perf_counter(), sum(len(group.trajectories) for group in groups)
        if not self._waiting:
            self._late_before = self._processes.late + self._late
        self._waiting += number
        try:
            graded = await self._grade(groups, step)
        finally:
            self._waiting -= number
        self._seconds += time.perf_counter() - started
        return graded

    async def busy(self) -> Busy:
        """Tell what it does at the moment, and what takes long."""
        now, rules = asyncio.get_running_loop().time(), self._grader.rules
        calls = [*self._processes.working.values(), *self._scoring.values()]
        place, since = min(calls, key=lambda call: call[1], default=(-1, now))
        late = self._processes.late + self._late - self._late_before if self._waiting else Counter[int]()
        told = tuple((rules[i].name, number, limit_of(rules[i], self._timeout_s)) for i, number in late.items())
        if place < 0:
            return Busy(self._waiting, late=told)
        return Busy(self._waiting, rules[place].name, now - since, limit_of(rules[place], self._timeout_s), told)

    async def _grade(self, groups: Sequence[Group], step: int) -> list[Group]:
        await self.start()
        sheets = [_Sheet(group, self._grader.rules) for group in groups]
        gates = [place for place, rule in enumerate(self._grader.rules) if rule.gate is not None]
        each = [place for place, rule in enumerate(self._grader.rules) if rule.kind == "each" and rule.gate is None]
        await self._ask_functions(sheets, gates)
        await asyncio.gather(self._ask_functions(sheets, each), *(self._ask_scorers(sheet) for sheet in sheets))
        await self._ask_of_groups(sheets, step)
        graded = [sheet.total(step) for sheet in sheets]
        await self._count(groups, graded)
        return graded

    async def stats(self) -> dict[str, float]:
        """Since the start: trajectories graded and failed, processes killed at their limit, seconds in `grade` over all calls,
        and `<reward>/<cause>` for every cause that kept a reward from a verdict."""
        counts = {"graded": self._graded, "failed": self._failed, "killed": self._processes.num_killed, "seconds": self._seconds}
        return {**counts, **self._ungraded}

    async def close(self) -> None:
        """End all grading processes and scorers. Raises what the first scorer raised that could not be closed."""
        closing = [scorer.close() for scorer in self._grader.scorers.values()]
        closed = await asyncio.gather(self._processes.close(), *closing, return_exceptions=True)
        for error in closed:
            if isinstance(error, BaseException):
                raise error

    async def _start(self, engines: Mapping[str, Any]) -> None:
        for scorer in self._grader.scorers.values():
            if isinstance(scorer, UsesEngines):
                scorer.connect(engines)
        await asyncio.gather(self._processes.start(), *(scorer.start() for scorer in self._grader.scorers.values()))
        await self._look_at_canaries()

    async def _look_at_canaries(self) -> None:
        known = self._grader.canaries
        subjects = {i: spoken(canary.task, canary.text) for i, (_, canary) in enumerate(known)}
        (report,) = await self._processes.evaluate([Request(subjects, [(i, place) for i, (place, _) in enumerate(known)])])
        for i, (place, canary) in enumerate(known):
            found = report.verdicts[i, place][0] if (i, place) in report.verdicts else None
            if not isinstance(found, tuple) or abs(found[0] - canary.value) > 1e-9:
                got = report.failures[i, place].text if (i, place) in report.failures else f"graded {found}"
                raise RewardError(
                    f"reward {self._grader.rules[place].name!r} fails its canary: {canary.text!r} against {canary.task.answer!r} "
                    f"must be graded {canary.value:g}, but: {got}; its verdicts cannot be trusted"
                )

    async def _ask_functions(self, sheets: Sequence[_Sheet], places: Sequence[int]) -> None:
        if not places:
            return
        requests = [Request(sheet.open(), [(item, place) for item in sheet.open() for place in places]) for sheet in sheets]
        for sheet, report in zip(sheets, await self._processes.evaluate(requests), strict=True):
            sheet.take(report)

    async def _ask_scorers(self, sheet: _Sheet) -> None:
        await asyncio.gather(*(self._ask_scorer(sheet, place, scorer) for place, scorer in self._grader.scorers.items()))

    async def _ask_scorer(self, sheet: _Sheet, place: int, scorer: Scorer) -> None:
        rule, asked = self._grader.rules[place], sheet.open()
        if not asked:
            return
        call = object()
        self._scoring[call] = (place, asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(limit_of(rule, self._timeout_s)) as limit:
                returned = await scorer.score(replace(sheet.group, trajectories=tuple(asked.values())))
            found = verdicts(rule, returned, len(asked))
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            sheet.fail(asked, place, failure(rule, error))  # something that the scorer waited for was cancelled
        except TimeoutError as error:
            self._late[place] += limit.expired()
            sheet.fail(asked, place, too_slow(rule, self._timeout_s) if limit.expired() else failure(rule, error))
        except Exception as error:
            sheet.fail(asked, place, failure(rule, error))
        else:
            sheet.note(asked, place, found)
        finally:
            del self._scoring[call]

    async def _ask_of_groups(self, sheets: Sequence[_Sheet], step: int) -> None:
        """Group rewards, one after the other: each sees the parts of those before it."""
        for place, rule in enumerate(self._grader.rules):
            if rule.kind != "group":
                continue
            asked = [sheet.open() for sheet in sheets]
            subjects = [sheet.total(step, who) for sheet, who in zip(sheets, asked, strict=True)]
            requests = [Request({0: group}, [(0, place)] if group.trajectories else []) for group in subjects]
            for sheet, who, report in zip(sheets, asked, await self._processes.evaluate(requests), strict=True):
                if (0, place) in report.failures:
                    sheet.fail(who, place, report.failures[0, place])
                elif who:
                    sheet.note(who, place, report.verdicts[0, place])

    async def _count(self, before: Sequence[Group], after: Sequence[Group]) -> None:
        for old, new in zip(before, after, strict=True):
            tried = [t for was, t in zip(old.trajectories, new.trajectories, strict=True) if was.status != "failed"]
            failed = sum(t.status == "failed" for t in tried)
            self._failed += failed
            self._graded += len(tried) - failed
            self._until_canaries -= len(tried)
            self._ungraded.update(f"{part}/{cause}" for t in tried for part, cause in t.ungraded.items())
        if self._grader.canaries and self._until_canaries <= 0:
            self._until_canaries = CANARIES_EVERY
            await self._look_at_canaries()


class _Sheet:
    """What is known so far about the trajectories of one group, by item (its place in the group) and by term."""

    def __init__(self, group: Group, rules: Sequence[Rule]) -> None:
        self.group, self._rules = group, rules
        self._verdicts: dict[tuple[int, int], Verdict] = {}
        self._failures: dict[tuple[int, int], Failure] = {}

    def standing(self) -> dict[int, Trajectory]:
        """Trajectories that have not failed."""
        lost = {item for (item, place), why in self._failures.items() if why.stops(self._rules[place])}
        return {i: t for i, t in enumerate(self.group.trajectories) if t.status != "failed" and i not in lost}

    def open(self) -> dict[int, Trajectory]:
        """Those of them that passed every gate asked so far."""
        return {item: t for item, t in self.standing().items() if self._shut_by(item) is None}

    def take(self, report: Report) -> None:
        for (item, place), found in report.verdicts.items():
            self.note([item], place, found)
        self._failures.update(report.failures)

    def note(self, items: Iterable[int], place: int, found: Sequence[Verdict | Failure]) -> None:
        for item, one in zip(items, found, strict=True):
            if isinstance(one, Failure):
                self._failures[item, place] = one
            else:
                self._verdicts[item, place] = one

    def fail(self, items: Iterable[int], place: int, why: Failure) -> None:
        self._failures.update({(item, place): why for item in items})

    def total(self, step: int, items: Collection[int] | None = None) -> Group:
        """The group (or some of its items) with what is known so far: parts, feedback, and the weighted sum as the reward."""
        standing = self.standing()
        counted = {place: self._counted(place, standing) for place in range(len(self._rules))}
        trajectories = [
            self._graded(item, trajectory, counted, step) if item in standing else self._lost(item, trajectory)
            for item, trajectory in enumerate(self.group.trajectories)
            if items is None or item in items
        ]
        return replace(self.group, trajectories=tuple(trajectories))

    def _raw(self, item: int, place: int) -> float | None:
        """A reward's value, or what stands in for it; None where it does not apply or was not asked."""
        if (item, place) in self._failures:
            return self._rules[place].on_error
        found = self._verdicts.get((item, place))
        return found and found[0]

    def _shut_by(self, item: int) -> int | None:
        """The gate that an item did not pass."""
        for place, rule in enumerate(self._rules):
            value = self._raw(item, place) if rule.gate is not None else None
            if value is not None and rule.gate is not None and value < rule.gate:
                return place
        return None

    def _counted(self, place: int, items: Mapping[int, Trajectory]) -> dict[int, float]:
        """Values of one reward as they enter the sum: normalised, clipped, not yet weighted."""
        rule = self._rules[place]
        values = {item: value for item in items if (value := self._raw(item, place)) is not None}
        if rule.normalize == "group" and values:
            center, spread = fmean(values.values()), pstdev(values.values())
            values = {item: (value - center) / spread if spread > 0 else 0.0 for item, value in values.items()}
        low, high = rule.clip or (-math.inf, math.inf)
        return {item: min(high, max(low, value)) for item, value in values.items()}

    def _graded(self, item: int, trajectory: Trajectory, counted: Mapping[int, Mapping[int, float]], step: int) -> Trajectory:
        gate = self._shut_by(item)
        counting = range(len(self._rules)) if gate is None else [gate]
        parts, said = dict(trajectory.parts), [trajectory.feedback]
        for place, rule in enumerate(self._rules):
            value, found = self._raw(item, place), self._verdicts.get((item, place))
            if value is not None:
                parts[rule.name] = value
            if found:
                said.append(found[1])
        reward = sum(self._rules[p].weight_at(step) * counted[p][item] for p in counting if item in counted[p])
        graded = replace(trajectory, reward=float(reward), parts=parts, feedback="\n".join(filter(None, said)))
        reasons = [why.text for (i, _), why in self._failures.items() if i == item]
        return replace(graded, ungraded=self._causes(item), error=reasons[0] if reasons else "")

    def _lost(self, item: int, trajectory: Trajectory) -> Trajectory:
        if trajectory.status == "failed":
            return trajectory
        reasons = [why.text for (i, place), why in self._failures.items() if i == item and why.stops(self._rules[place])]
        return replace(trajectory, status="failed", error=reasons[0], reward=0.0, ungraded=self._causes(item))

    def _causes(self, item: int) -> dict[str, str]:
        return {self._rules[place].name: why.cause for (i, place), why in self._failures.items() if i == item}
