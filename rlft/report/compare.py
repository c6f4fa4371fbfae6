"""Several runs side by side: what their run files set differently, and what came of it."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from rlft.errors import ConfigError
from rlft.files import read_text
from rlft.report.folder import RunFolder, flat
from rlft.report.metrics import STEP
from rlft.report.nearby import check_run
from rlft.report.results import before_and_after, figures, with_interval

RESTORE = "restore it, or leave this run out"
SHARE = 0.1  # of the steps, at either end, that a figure is the mean of
# The mean over the first steps and the last ones; what a run does not record it has no line for.
FIGURES = {
    "reward/mean": "reward",
    "sft/cross_entropy": "loss (nats per token)",
    "loss/preference": "loss (nats)",
    "preference/accuracy": "accuracy (share)",
    "rollout/tokens": "length (tokens)",
    "rollout/truncated": "truncated (share)",
    "kl/ref": "kl to the reference (nats per token)",
}


@dataclass(frozen=True)
class Run:
    """What the folder of a run tells, whether or not the run has ended."""

    name: str
    config: Mapping[str, Any]  # by dotted key
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]  # empty before the first is written
    alarms: Mapping[str, int]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in these folders, under names that tell them apart. Raises ConfigError."""
    for path in paths:
        check_run(path)
    short = Counter(path.resolve().name for path in paths)
    return [_read(path, path.resolve().name if short[path.resolve().name] == 1 else str(path)) for path in paths]


def compare(console: Console, runs: Sequence[Run]) -> None:
    """Print what differs in the run files, and the results of each run."""
    settings = differences(runs)
    if settings:
        console.print(_table("Run files", "key", runs, settings))
    else:
        console.print("run files: the same but for run_dir")
    console.print(_table("Results", "", runs, results(runs)))
    console.print(f"start, end: means over the first and the last {SHARE:.0%} of the steps", style="dim", highlight=False, soft_wrap=True)


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Every key that the runs do not set alike, with each run's value; where the runs write to does not count."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "run_dir")
    values = {key: [json.dumps(run.config[key], default=str) if key in run.config else "unset" for run in runs] for key in keys}
    return {key: told for key, told in sorted(values.items()) if len(set(told)) > 1}


def results(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The lines of the table of results; a run that lacks a figure has "-" there."""
    measured = [before_and_after(run.rows) for run in runs]
    lines = {"state": [_state(run) for run in runs]}
    for name in dict.fromkeys(name for found in measured for name in figures(found.get("start", {}))):
        for end in ("start", "end"):
            told = [with_interval(found[end], name) if found.get(end, {}).get(name) is not None else "-" for found in measured]
            lines[f"eval {name}, {end}"] = told
    components = dict.fromkeys(key for run in runs for row in run.rows for key in row if key.startswith("reward/"))
    names = {**FIGURES, **{key: f"  {key.removeprefix('reward/')}" for key in components if key not in ("reward/mean", "reward/std")}}
    order = sorted(names, key=lambda key: (not key.startswith("reward/"), key != "reward/mean"))
    for key in order:
        ends = [_ends(run.rows, key) for run in runs]
        if any(ends):
            lines[f"{names[key]}, start -> end"] = [f"{pair[0]:.4g} -> {pair[1]:.4g}" if pair else "-" for pair in ends]
    lines["time of steps (s)"] = [f"{sum(_values(run.rows, STEP)):,.0f}" for run in runs]
    speeds = [_speed(run.rows) for run in runs]
    if any(speeds):
        lines["sampled tokens/s"] = [f"{speed:,.0f}" if speed else "-" for speed in speeds]
    lines["alarms"] = [", ".join(f"{name} {count}" for name, count in run.alarms.items()) or "none" for run in runs]
    return lines


def _read(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    try:
        config = flat(tomllib.loads(read_text(folder.config)))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{folder.config}: not valid TOML: {error}; {RESTORE}") from error
    summary = next(_objects(folder.summary, whole=True), {})
    alarms = Counter(alarm["name"] for alarm in _objects(folder.alarms))
    return Run(name, config, list(_objects(folder.metrics)), summary, alarms)


def _objects(path: Path, whole: bool = False) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of the run: one a line, or the `whole` file; a last line that is not finished is none."""
    text = read_text(path) if path.exists() else ""
    for number, line in enumerate([text] if whole and text else text.split("\n")[:-1], start=1):
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not valid JSON: {error}; {RESTORE}") from error
        if not isinstance(found, dict):
            raise ConfigError(f"{path}, line {number}: expected an object, got {line!r}; {RESTORE}")
        yield found


def _state(run: Run) -> str:
    done = max((row["step"] for row in run.rows), default=0)
    return f"ended at step {done}" if run.summary and not run.summary.get("running") else f"at step {done}, not ended"


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _ends(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float] | None:
    values = _values(rows, key)
    few = max(1, round(SHARE * len(values)))
    return (fmean(values[:few]), fmean(values[-few:])) if values else None


def _speed(rows: Sequence[Mapping[str, Any]]) -> float | None:
    steps = [row for row in rows if row.get("rollout/tokens_total") and row.get(STEP)]
    return sum(row["rollout/tokens_total"] for row in steps) / sum(row[STEP] for row in steps) if steps else None


def _table(title: str, first: str, runs: Sequence[Run], lines: Mapping[str, Sequence[str]]) -> Table:
    table = Table(title=title)
    table.add_column(first, overflow="fold")
    for run in runs:
        table.add_column(run.name, overflow="fold")
    for name, values in lines.items():
        table.add_row(name, *values)
    return table
