"""What a run's rows say of it so far: evaluations before and after, the worst of the checks, the last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlft.report.folder import RunFolder

WORST = ("publish/max_diff", "ratio/first_max_dev", "kl/rollout_abs_max")  # largest over the run, kept in summary.json


def summarize_run(folder: RunFolder, steps: int) -> dict[str, Any]:
    """Evaluation before and after, the worst of the checks that every step makes, the last checkpoint."""
    rows = folder.rows()
    summary: dict[str, Any] = {"checkpoint": str(folder.checkpoints / f"step-{steps:06d}")}
    for name, measured in before_and_after(rows).items():
        summary[f"eval_{name}"] = measured["mean"]
        summary |= {f"eval_{name}_{key}": value for key, value in measured.items() if key != "mean"}
    for metric in WORST:
        values = [row[metric] for row in rows if row.get(metric) is not None]
        if values:
            summary[f"max {metric}"] = max(values)
    return summary


def before_and_after(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first ("start") and the last evaluation ("end"), without the prefix of their names; nothing without any."""
    found = [row for row in rows if "eval/mean" in row]
    ends = {"start": found[0], "end": found[-1]} if found else {}
    return {name: {key.removeprefix("eval/"): row[key] for key in row if key.startswith("eval/")} for name, row in ends.items()}


def figures(summary: Mapping[str, float]) -> list[str]:
    """The names of an evaluation's figures: what has, or may have, an interval."""
    return [name for name in summary if name in ("mean", "greedy") or (name.startswith("pass@") and "_" not in name)]


def interval(summary: Mapping[str, float], name: str) -> tuple[float, float] | None:
    """A figure's interval, where it has one."""
    low, high = ("low", "high") if name == "mean" else (f"{name}_low", f"{name}_high")
    ends = summary.get(low), summary.get(high)
    return None if ends[0] is None or ends[1] is None or math.isnan(ends[0]) else (ends[0], ends[1])


def with_interval(summary: Mapping[str, float], name: str) -> str:
    """A figure of an evaluation, with its interval where it has one."""
    ends = interval(summary, name)
    return f"{summary[name]:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
