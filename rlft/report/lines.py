"""Steps and evaluations in one line, of whatever width there is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

BAR, MIN_BAR = 20, 5  # columns of the bar
STATISTICS = ("mean", "std")  # of the reward; what else stands under reward/ is a component
# Where a line is too short the largest rank goes first: the interval, then what is rarely looked at.
ALWAYS, OUTCOME, TROUBLE, EVALUATION, SPEED, COMPONENT, DETAIL, INTERVAL = range(8)


@dataclass(frozen=True)
class Part:
    """A piece of a line. Where not all fit, the last one of the largest `rank` goes first."""

    text: str
    rank: int
    before: str = "  "


@dataclass(frozen=True)
class StepLine:
    """A step, its figures and the time that is left."""

    step: int
    steps: int
    parts: Sequence[Part]
    left_s: float

    @property
    def counter(self) -> str:
        return f"step {self.step}/{self.steps}"

    @property
    def left(self) -> str:
        return f"left {timedelta(seconds=round(self.left_s))}"

    def plain(self) -> str:
        """Everything, on one line."""
        return f"{self.counter}{joined(self.parts)}  {self.left}"

    def fitted(self, width: int, doing: str = "") -> tuple[int, str]:
        """Columns of the bar, and the text behind it, of a line of `width` columns: the step and the time left always stay.

        Args:
            doing: what goes on at the moment, told before any figure and cut where it is too long.
        """
        room = width - len(self.counter) - len(self.left) - 2
        bar = BAR if room >= BAR + 1 else room - 1 if room >= MIN_BAR + 1 else 0
        room -= bar + 2 if bar else 1
        now = [Part(doing[: max(0, room)], ALWAYS, "")] if doing else []
        shown = joined(fit([*now, *self.parts], room)).strip()
        return bar, f"{shown}  {self.left}" if shown else self.left


def joined(parts: Sequence[Part]) -> str:
    return "".join(part.before + part.text for part in parts)


def fit(parts: Sequence[Part], width: int) -> list[Part]:
    """The parts that `width` columns hold, in their order."""
    kept = list(parts)
    while kept and len(joined(kept).strip()) > width:
        last = max(part.rank for part in kept)
        kept.remove(next(part for part in reversed(kept) if part.rank == last))
    return kept


def step_parts(metrics: Mapping[str, Any], tokens_per_s: float | None, evaluation: Mapping[str, Any] | None) -> list[Part]:
    """A step in a few words: reward (or loss, where nothing is rewarded) with its components, the last evaluation, answers that were
    cut or could not be graded, their length, KL to the reference (else to the policy before), speed."""
    reward = metrics.get("reward/mean")
    loss = metrics.get("loss/policy", metrics.get("loss/preference", math.nan))
    parts = [Part(f"loss {loss:.3f}" if reward is None else f"reward {reward:.3f}", OUTCOME)]
    components = {name.removeprefix("reward/"): value for name, value in metrics.items() if name.startswith("reward/")}
    parts += [Part(f"{name} {value:.3g}", COMPONENT) for name, value in components.items() if name not in STATISTICS]
    parts += evaluation_parts(evaluation) if evaluation else []
    if accuracy := metrics.get("preference/accuracy"):
        parts.append(Part(f"accuracy {accuracy:.3f}", DETAIL))
    if cut := metrics.get("rollout/truncated"):
        parts.append(Part(f"cut {cut:.0%}", TROUBLE))
    if failed := metrics.get("rollout/failed"):
        parts.append(Part(f"failed {failed:g}", TROUBLE))
    if (length := metrics.get("rollout/tokens")) is not None:
        parts.append(Part(f"length {length:.3g}", DETAIL))
    if (kl := metrics.get("kl/ref", metrics.get("kl/old"))) is not None:
        parts.append(Part(f"kl {kl:.2g}", DETAIL))
    return parts + ([Part(f"{tokens_per_s:,.0f} tokens/s", SPEED)] if tokens_per_s else [])


def evaluation_parts(summary: Mapping[str, Any]) -> list[Part]:
    """An evaluation's mean, its interval where it has one, and the greedy answers' mean."""
    low, high, greedy = (summary.get(name) for name in ("low", "high", "greedy"))
    parts = [Part(f"eval {summary['mean']:.3f}", EVALUATION)]
    if low is not None and high is not None and math.isfinite(low):
        parts.append(Part(f"[{low:.3f}, {high:.3f}]", INTERVAL, " "))
    return parts + ([] if greedy is None else [Part(f"greedy {greedy:.3f}", DETAIL, " ")])


def evaluation_text(summary: Mapping[str, Any]) -> str:
    """An evaluation in a few words."""
    return joined(evaluation_parts(summary)).strip()
