"""What a run says when it is done: summary.json, a before/after table, samples, and where the time went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rlft.report.evaluation import Evaluation
from rlft.report.metrics import time_table
from rlft.report.plots import draw
from rlft.report.tracking import RunFolder

WORST = ("publish/max_diff", "ratio/first_max_dev", "kl/rollout_abs_max")  # largest over the run, kept in summary.json
NUM_SAMPLES = 5


def summarize_run(folder: RunFolder, steps: int) -> dict[str, Any]:
    """Evaluation before and after, the worst of the checks that every step makes, the last checkpoint."""
    rows = folder.rows()
    summary: dict[str, Any] = {"checkpoint": str(folder.checkpoints / f"step-{steps:06d}")}
    for name, measured in _before_and_after(rows).items():
        summary[f"eval_{name}"] = measured["mean"]
        summary |= {f"eval_{name}_{key}": value for key, value in measured.items() if key != "mean"}
    for metric in WORST:
        values = [row[metric] for row in rows if row.get(metric) is not None]
        if values:
            summary[f"max {metric}"] = max(values)
    return summary


def read_summary(folder: RunFolder) -> dict[str, Any]:
    """summary.json as it lies in the run folder."""
    return json.loads(folder.summary.read_text())


def show_run(console: Console, folder: RunFolder, evaluations: Mapping[int, Evaluation]) -> None:
    """Draw the plots and print everything a person wants to see first; of `evaluations`, samples of the first and the last."""
    rows = folder.rows()
    plots = draw(rows, folder.plots)
    if evaluations:
        measured = _before_and_after(rows)
        console.print(before_after(measured["start"], measured["end"]))
        show_samples(console, {step: evaluations[step] for step in (min(evaluations), max(evaluations))})
    console.print(time_table(rows))
    console.print(f"plots: {', '.join(str(path) for path in plots)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"run folder: {folder.path}", markup=False, highlight=False, soft_wrap=True)


def before_after(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Held-out figures before and after training, with their intervals."""
    table = Table("held-out", "before", "after", title=f"Evaluation on {before['num_tasks']} tasks")
    for name in [key for key in before if key in after and (key in ("mean", "greedy") or (key.startswith("pass@") and "_" not in key))]:
        table.add_row(name, _with_interval(before, name), _with_interval(after, name))
    return table


def _before_and_after(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first and the last evaluation, without the prefix of their names; nothing without any."""
    found = [row for row in rows if "eval/mean" in row]
    ends = {"start": found[0], "end": found[-1]} if found else {}
    return {name: {key.removeprefix("eval/"): row[key] for key in row if key.startswith("eval/")} for name, row in ends.items()}


def show_samples(console: Console, evaluations: Mapping[int, Evaluation]) -> None:
    """The first tasks with what the policy said at each evaluation, and what it earned."""
    first = next(iter(evaluations.values()))
    table = Table("prompt", "answer", *(f"step {step}" for step in evaluations), title="Samples")
    for i, sampled in enumerate(first.sampled[:NUM_SAMPLES]):
        said = [_said(evaluation, i) for evaluation in evaluations.values()]
        table.add_row(str(sampled.task.messages[-1]["content"])[-200:], str(sampled.task.answer), *said)
    console.print(table, markup=False)


def _said(evaluation: Evaluation, i: int) -> str:
    sampled = evaluation.sampled[i]
    shown = zip((sampled.shown or sampled.said)[:3], sampled.trajectories[:3], strict=True)
    return "\n".join(f"{' -> '.join(repr(text[-200:]) for text in turns)} ({info.outcome:g})" for turns, info in shown)


def _with_interval(summary: Mapping[str, float], name: str) -> str:
    ends = ("low", "high") if name == "mean" else (f"{name}_low", f"{name}_high")
    interval = f" [{summary[ends[0]]:.3f}, {summary[ends[1]]:.3f}]" if summary.get(ends[0]) is not None else ""
    return f"{summary[name]:.3f}{interval}"
