"""What watches a run for rewards that go wrong without an error: pure judgements over its metrics.

Four alarms: "ungraded" (too many trajectories without a verdict), "length" (answers that grow or shrink
far from where they began), "drift" (a reward part that rises while the held-out score falls: the reward
is being gamed), "mismatch" (engine and learner no longer mean the same policy).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rlft.config import GuardsConfig

WINDOW = 10  # steps whose mean length is compared with that of the first ones
REWARD = "reward/"
STATISTICS = {"reward/std"}


@dataclass(frozen=True)
class Alarm:
    """One thing that looks wrong."""

    name: str  # "ungraded", "length", "drift" or "mismatch"
    step: int
    text: str
    key: str = ""  # which part, where the alarm has several


class Guards:
    """Follows a run's metrics. An alarm is given once until what it names is over."""

    def __init__(self, config: GuardsConfig) -> None:
        self._config = config
        self._sounding: set[tuple[str, str]] = set()
        self._first_lengths: list[float] = []
        self._lengths: deque[float] = deque(maxlen=WINDOW)
        self._since: dict[str, list[float]] = defaultdict(list)  # part -> its means since the last evaluation
        self._best: tuple[float, float, dict[str, list[float]]] | None = None  # held-out mean, its reach, parts up to it

    def step(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Alarms of a training step."""
        for name, value in metrics.items():
            if name.startswith(REWARD) and name not in STATISTICS:
                self._since[name].append(value)
        found = [self._ungraded(step, metrics), self._length(step, metrics), self._mismatch(step, metrics)]
        return self._news(found, ("ungraded", "length", "mismatch"))

    def evaluation(self, step: int, summary: Mapping[str, Any]) -> list[Alarm]:
        """Alarms of an evaluation: the parts since the last one against the held-out score."""
        mean, reach = summary["mean"], summary["mean"] - summary.get("low", summary["mean"])
        since, self._since = dict(self._since), defaultdict(list)
        if self._best is None or mean >= self._best[0]:
            self._best = (mean, reach, since)
            return self._news([], ("drift",))
        best, its_reach, before = self._best
        if not before:  # the best was before any training: what came first after it is what parts rise from
            before = since
            self._best = (best, its_reach, since)
        fell = best - mean > self._config.drift_fall + max(reach, its_reach)
        risen = [part for part, values in since.items() if fell and before.get(part) and _rose(before[part], values)]
        advice = f"while held-out fell from {best:.4g} to {mean:.4g}: look at stored rollouts for what is being rewarded"
        moves = {part: f"{part} rose from {fmean(before[part]):.4g} to {fmean(since[part]):.4g}" for part in risen}
        return self._news([Alarm("drift", step, f"{move} {advice}", part) for part, move in moves.items()], ("drift",))

    def _ungraded(self, step: int, metrics: Mapping[str, Any]) -> Alarm | None:
        share = metrics.get("rollout/ungraded", 0.0)
        if share <= self._config.ungraded:
            return None
        causes = {name.removeprefix("ungraded/"): count for name, count in metrics.items() if name.startswith("ungraded/")}
        listed = ", ".join(f"{name}: {count}" for name, count in causes.items()) or "the environment or the rollout failed"
        return Alarm("ungraded", step, f"{share:.1%} of the step's trajectories have no verdict ({listed})")

    def _length(self, step: int, metrics: Mapping[str, Any]) -> Alarm | None:
        if "rollout/tokens" not in metrics:
            return None
        self._lengths.append(metrics["rollout/tokens"])
        if len(self._first_lengths) < WINDOW:
            self._first_lengths.append(metrics["rollout/tokens"])
        first, now, factor = fmean(self._first_lengths), fmean(self._lengths), self._config.length
        if first / factor <= now <= first * factor:
            return None
        return Alarm("length", step, f"answers have {now:.4g} tokens over the last {len(self._lengths)} steps, {first:.4g} over the first")

    def _mismatch(self, step: int, metrics: Mapping[str, Any]) -> Alarm | None:
        limit, gap = self._config.mismatch, metrics.get("mismatch/prob", 0.0)
        if not limit or gap <= limit:
            return None
        return Alarm("mismatch", step, f"learner and engine give sampled tokens probabilities that differ by {gap:.3g} (limit {limit:g})")

    def _news(self, found: Sequence[Alarm | None], judged: tuple[str, ...]) -> list[Alarm]:
        """Alarms that were not sounding already; those of a judged kind that are over may sound again."""
        alarms = [alarm for alarm in found if alarm]
        now = {(alarm.name, alarm.key) for alarm in alarms}
        fresh = [alarm for alarm in alarms if (alarm.name, alarm.key) not in self._sounding]
        self._sounding = {pair for pair in self._sounding if pair[0] not in judged} | now
        return fresh


def _rose(before: list[float], after: list[float]) -> bool:
    """Whether a mean rose by more than two standard errors of the difference."""
    errors = sum(stdev(values) ** 2 / len(values) for values in (before, after) if len(values) > 1)
    return fmean(after) - fmean(before) > 2 * errors**0.5
