"""Plain numbers about a step: what its rollouts earned, and where its time went."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, pstdev

from rich.table import Table

from rlft.report.attempts import attempt_metrics
from rlft.types import GroupRef

STEP = "time/step_s"
OTHER = "other"


def rollout_metrics(groups: Sequence[GroupRef], version: int, metric: str = "", threshold: float = 1.0) -> dict[str, float]:
    """Means over a step's trajectories; `version` is that of the weights they are to train.

    `reward/*` covers graded trajectories only and is absent without any; `rollout/*` covers all.
    `attempt/*` are those of `attempts.attempt_metrics`, with `metric` and `threshold`.
    `reward/std` is the population's; `rollout/staleness` is the worst lag of a trajectory that holds tokens.

    Raises:
        ValueError: no trajectory, or a reward part named like a statistic.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    if not trajectories:
        raise ValueError("rollout_metrics: expected at least one trajectory, got none")
    graded = [t for t in trajectories if t.status != "failed"]
    parts: dict[str, list[float]] = defaultdict(list)
    for t in graded:
        for part, value in t.parts.items():
            parts[part].append(value)
    if clash := {"mean", "std"} & parts.keys():
        raise ValueError(f"reward part {sorted(clash)}: the name is taken by a statistic; rename the reward")
    outcomes = [t.outcome for t in graded]
    return {
        **({"reward/mean": fmean(outcomes), "reward/std": pstdev(outcomes)} if outcomes else {}),
        **{f"reward/{part}": fmean(values) for part, values in parts.items()},
        **{f"attempt/{name}": value for name, value in attempt_metrics(trajectories, metric, threshold).items()},
        **({"rollout/reward_min": min(outcomes), "rollout/reward_max": max(outcomes)} if outcomes else {}),
        "rollout/failed": len(trajectories) - len(graded),
        "rollout/ungraded": fmean(t.status == "failed" or bool(t.ungraded) for t in trajectories),
        **Counter(f"ungraded/{part}/{cause}" for t in trajectories for part, cause in t.ungraded.items()),
        "rollout/truncated": fmean(t.status == "truncated" for t in trajectories),
        "rollout/tokens": fmean(t.num_sampled for t in trajectories),
        "rollout/tokens_max": max(t.num_sampled for t in trajectories),
        "rollout/tokens_total": sum(t.num_sampled for t in trajectories),
        "rollout/prompt_tokens": fmean(t.num_prompt for t in trajectories),
        "rollout/turns": fmean(len(t.turns) for t in trajectories),
        "rollout/no_signal": fmean(not group.has_signal for group in groups),
        "rollout/staleness": max((version - t.policy_version for t in trajectories if t.num_sampled), default=0),
    }


class Stopwatch:
    """Attributes a step's wall time to named spans; whatever no span covers is "other".

    with watch.span("rollout"):
        groups = await rollouts.collect(tasks)
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._start, self._open = clock, clock(), ""
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time a block; the same name adds up. Spans do not nest: their sum has to stay a partition of the step."""
        if self._open or name in ("", "step", OTHER):
            raise ValueError(f"span {name!r}: " + (f"{self._open!r} is still open" if self._open else "this name is taken"))
        self._open, start = name, self._clock()
        try:
            yield
        finally:
            self._seconds[name] += self._clock() - start
            self._open = ""

    def split(self, source: str, seconds: Mapping[str, float]) -> None:
        """Attribute parts of a span to other names, as workers measured them inside it; the rest stays.

        Parts that add up to more than the span are scaled down to it: workers that ran ahead of
        the step, or another machine's clock, cannot make a step longer than it was.
        """
        held, measured = self._seconds[source], sum(seconds.values())
        scale = min(1.0, held / measured) if measured else 0.0
        self._seconds[source] -= scale * measured
        for name, value in seconds.items():
            self._seconds[name] += scale * value

    def metrics(self) -> dict[str, float]:
        """`time/<name>_s` of every span, `time/other_s`, and their sum `time/step_s`, up to now."""
        wall = self._clock() - self._start
        spans = {**self._seconds, OTHER: wall - sum(self._seconds.values())}
        return {**{f"time/{name}_s": seconds for name, seconds in spans.items()}, STEP: wall}


def spans(metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds by name of every `time/<name>_s` but the step's own."""
    keys = [key for key in metrics if key.startswith("time/") and key.endswith("_s") and key != STEP]
    return {key.removeprefix("time/").removesuffix("_s"): metrics[key] for key in keys}


@dataclass(frozen=True)
class TimeShare:
    """One line of the table of where a run's time went."""

    name: str
    total_s: float
    share: float  # of all steps' wall time
    per_step_s: float


def time_shares(rows: Sequence[Mapping[str, float]]) -> list[TimeShare]:
    """Total every `time/<name>_s` over the rows that hold `time/step_s`, in order of appearance, "other" last."""
    steps = [row for row in rows if STEP in row]
    totals: dict[str, float] = {}
    for row in steps:
        for name, seconds in spans(row).items():
            totals[name] = totals.get(name, 0.0) + seconds
    wall = sum(row[STEP] for row in steps)
    names = sorted(totals, key=lambda name: name == OTHER)
    return [TimeShare(name, totals[name], totals[name] / wall if wall else 0.0, totals[name] / len(steps)) for name in names]


def time_table(rows: Sequence[Mapping[str, float]]) -> Table:
    """Where the time of a run went, for the screen; `rows` are its metrics rows."""
    table = Table("part", title="Where the time went")
    for heading in ("total (s)", "share", "per step (s)"):
        table.add_column(heading, justify="right")
    for line in time_shares(rows):
        table.add_row(line.name, f"{line.total_s:.1f}", f"{line.share:.1%}", f"{line.per_step_s:.3f}")
    steps = [row[STEP] for row in rows if STEP in row]
    table.add_section()
    table.add_row("all steps", f"{sum(steps):.1f}", "100.0%" if steps else "-", f"{fmean(steps):.3f}" if steps else "-")
    return table
