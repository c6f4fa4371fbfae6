"""What a run says when it is done: summary.json, a before/after table, samples, and where the time went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.errors import visible
from rlft.report.evaluation import Evaluation
from rlft.report.folder import RunFolder
from rlft.report.metrics import time_table
from rlft.report.results import before_and_after, figures, interval, with_interval
from rlft.report.results import summarize_run as summarize_run

NUM_SAMPLES = 5
SHOWN = ("reward/", "loss/", "preference/accuracy", "rollout/failed", "rollout/truncated", "rollout/tokens", "kl/ref", "kl/old")
HIDDEN = ("reward/std", "rollout/tokens_max", "rollout/tokens_total")


def read_summary(folder: RunFolder) -> dict[str, Any]:
    """summary.json as it lies in the run folder."""
    return json.loads(folder.summary.read_text())


def show_run(console: Console, folder: RunFolder, evaluations: Mapping[int, Evaluation]) -> None:
    """Print everything a person wants to see first; of `evaluations`, samples of the first and the last."""
    rows = folder.rows()
    if evaluations:
        measured = before_and_after(rows)
        console.print(before_after(measured["start"], measured["end"]))
        show_samples(console, {step: evaluations[step] for step in (min(evaluations), max(evaluations))})
    console.print(course(rows))
    console.print(time_table(rows))
    drawn, checkpoint = ", ".join(str(path) for path in sorted(folder.plots.glob("*.png"))), read_summary(folder).get("checkpoint")
    told = {"plots": drawn, "checkpoint": checkpoint, "run folder": folder.path}
    for what, where in told.items():
        console.print(f"{what}: {where}", markup=False, highlight=False, soft_wrap=True)


def show_evaluation(console: Console, folder: RunFolder, model: str, evaluation: Evaluation) -> None:
    """What `rlft eval` found: every figure with its interval, samples, where the results lie."""
    summary = evaluation.summary
    lost = f", {summary['num_failed']:g} could not be graded" if summary["num_failed"] else ""
    title = f"{model} on {summary['num_tasks']:g} tasks, {summary['num_samples']:g} samples{lost}"
    table = Table("", "estimate", "95 % interval", title=title)
    for name in figures(summary):
        ends = interval(summary, name)
        table.add_row(name, f"{summary[name]:.3f}", f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "")
    console.print(table)
    show_samples(console, {0: evaluation}, ["said"])
    for what, where in {"results by task": folder.evaluations, "run folder": folder.path}.items():
        console.print(f"{what}: {where}", markup=False, highlight=False, soft_wrap=True)


def course(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Of what moved in the run: its mean over the first and the last tenth of the steps, and its extremes."""
    steps = [row for row in rows if "time/step_s" in row]
    names = [name for name in dict.fromkeys(key for row in steps for key in row) if name.startswith(SHOWN) and name not in HIDDEN]
    some = max(1, len(steps) // 10)
    table = Table("metric", title=f"{len(steps)} steps")
    for heading in (f"first {some}", f"last {some}", "least", "most"):
        table.add_column(heading, justify="right")
    for name in names:
        values = [row[name] for row in steps if row.get(name) is not None]
        if values:
            table.add_row(name, *(f"{value:.4g}" for value in (fmean(values[:some]), fmean(values[-some:]), min(values), max(values))))
    return table


def before_after(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Held-out figures before and after training, with their intervals."""
    table = Table("held-out", "before", "after", title=f"Evaluation on {before['num_tasks']} tasks")
    for name in [key for key in figures(before) if key in after]:
        table.add_row(name, with_interval(before, name), with_interval(after, name))
    return table


def show_samples(console: Console, evaluations: Mapping[int, Evaluation], headings: Sequence[str] = ()) -> None:
    """The first tasks with what the policy said at each evaluation, and what it earned."""
    first = next(iter(evaluations.values()))
    table = Table("prompt", "answer", *(headings or [f"step {step}" for step in evaluations]), title="Samples")
    for i, sampled in enumerate(first.sampled[:NUM_SAMPLES]):
        said = [_said(evaluation, i) for evaluation in evaluations.values()]
        told = (str(sampled.task.messages[-1]["content"])[-200:], str(sampled.task.answer), *said)
        table.add_row(*(Text(visible(text)) for text in told))  # a text alone would be read as markup
    console.print(table)


def _said(evaluation: Evaluation, i: int) -> str:
    sampled = evaluation.sampled[i]
    shown = zip((sampled.shown or sampled.said)[:3], sampled.trajectories[:3], strict=True)
    return "\n".join(f"{' -> '.join(repr(text[-200:]) for text in turns)} ({info.outcome:g})" for turns, info in shown)
