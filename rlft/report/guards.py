"""What watches a run for rewards that go wrong without an error: pure judgements over its metrics.

Five alarms: "ungraded" (too many trajectories without a verdict), "length" (answers that grow or shrink
far from where they began), "drift" (a reward part that rises while the held-out score falls: the reward
is being gamed), "mismatch" (engine and learner no longer mean the same policy), "no_signal" (nothing that
could be learned from, several steps in a row).
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
NO_SIGNAL = "no_signal"


@dataclass(frozen=True)
class Alarm:
    """One thing that looks wrong."""

    name: str  # "ungraded", "length", "drift", "mismatch" or "no_signal"
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
        self._flat: list[Mapping[str, Any]] = []  # the last steps, as far as none had signal
        self._since: dict[str, list[float]] = defaultdict(list)  # part -> its means since the last evaluation
        self._best: tuple[float, float, dict[str, list[float]]] | None = None  # held-out mean, its reach, parts up to it

    def step(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Alarms of a training step."""
        for name, value in metrics.items():
            if name.startswith(REWARD) and name not in STATISTICS:
                self._since[name].append(value)
        found = [self._ungraded(step, metrics), self._length(step, metrics), self._mismatch(step, metrics), self._no_signal(step, metrics)]
        return self._news(found, ("ungraded", "length", "mismatch", NO_SIGNAL))

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

    def _no_signal(self, step: int, metrics: Mapping[str, Any]) -> Alarm | None:
        if "rollout/no_signal" not in metrics:
            return None
        limit = self._config.no_signal
        self._flat = [*self._flat, metrics][-max(1, limit) :] if teaches_nothing(metrics) else []
        if not limit or len(self._flat) < limit:
            return None
        causes = likely_causes(self._flat)
        return Alarm(NO_SIGNAL, step, f"nothing to learn from for {len(self._flat)} steps: {causes[0]}. Likely: {'; or '.join(causes[1:])}")

    def _news(self, found: Sequence[Alarm | None], judged: tuple[str, ...]) -> list[Alarm]:
        """Alarms that were not sounding already; those of a judged kind that are over may sound again."""
        alarms = [alarm for alarm in found if alarm]
        now = {(alarm.name, alarm.key) for alarm in alarms}
        fresh = [alarm for alarm in alarms if (alarm.name, alarm.key) not in self._sounding]
        self._sounding = {pair for pair in self._sounding if pair[0] not in judged} | now
        return fresh


def teaches_nothing(metrics: Mapping[str, Any]) -> bool:
    """Whether a step had no differences that its algorithm learns from, or all of its answers earned the same."""
    trained_on_nothing = not any(name.startswith(("loss/", "learner/")) for name in metrics) and metrics["rollout/no_signal"] == 1
    return bool(trained_on_nothing or metrics.get("learner/no_signal") or metrics.get("reward/std") == 0)


def likely_causes(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What steps without signal have in common, then what it may come from, the likeliest first."""
    earned = {step.get("reward/mean") for step in steps}
    components = [name for name in steps[-1] if name.startswith(REWARD) and name not in STATISTICS | {"reward/mean"}]
    cut = all(step.get("rollout/truncated") == 1 for step in steps)
    turns = max(step.get("rollout/turns", 1) for step in steps)
    why = ["every answer was cut by a limit of tokens, context or turns: raise rollout.max_tokens"] if cut else []
    if any(step.get("reward/std") for step in steps):
        alike = "the answers to a task are all alike: raise rollout.temperature or rollout.group_size"
        tasks = "tasks are far too easy or too hard for this model: mix them (data.curriculum), or start from a better one"
        return ["the answers to each task earned the same as each other", *why, alike, tasks]
    if earned == {0} and not components:
        where = "the environment gave none of its turns a reward" if turns > 1 else "no reward was given"
        return [f"{where}, and there is no component of [reward]", *why, "return Step(reward=...) in the environment, or name a [reward]"]
    if len(earned) > 1:
        return ["all answers of a step earned the same", *why, "the reward looks at something else than the answer"]
    if earned == {0}:
        form = "the reward reads answers of another form than the model gives (look below, and run `rlft check`)"
        return ["every answer earned 0", *why, form, "the tasks are too hard for this model: warm it up (`rlft sft`), or take easier ones"]
    always = "the reward pays whatever is said (run `rlft check`)"
    return [f"every answer earned {earned.pop():g}", *why, always, "that is its maximum, and all is learned: take harder tasks"]


def _rose(before: list[float], after: list[float]) -> bool:
    """Whether a mean rose by more than two standard errors of the difference."""
    errors = sum(stdev(values) ** 2 / len(values) for values in (before, after) if len(values) > 1)
    return fmean(after) - fmean(before) > 2 * errors**0.5
