"""metrics.jsonl as pictures: what was earned, held out, learned, how far the policy moved, and where the time went."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlft.errors import ConfigError
from rlft.report.metrics import OTHER, STEP, spans

Rows = Sequence[Mapping[str, Any]]
SIZE = (7.0, 4.0)  # inches of a picture with one panel
MORE = 2.6  # inches that each further panel adds
DPI = 120
# Paul Tol's "muted" palette: nine colours that stay apart with every kind of colour blindness, the darkest first.
PALETTE = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#AA4499", "#44AA99", "#882255", "#999933")
GREY = "#BBBBBB"
STYLES = ("-", "--", ":", "-.")
KL_FLOOR = 0.01  # nats per token: less than that in the picture would be noise made large
SHARE = (-0.02, 1.02)  # axis of what lies between 0 and 1
SHARES = ("rollout/truncated", "rollout/ungraded", "rollout/no_signal")
TAKEN = {"reward/mean", "reward/std"}


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `draw` puts the curves of a run there."""

    title: str
    label: str  # of the y axis, with its unit
    draw: Callable[[Rows, Axes], None]
    keys: Callable[[Rows], Sequence[str]]  # metrics that there must be one of


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Write a PNG for every picture that `rows` hold numbers for, and `summary.png` with all of them; returns the files.

    A reader finds an old picture or a new one, never half of one. Nothing of matplotlib's global state (pyplot) is
    touched, so any thread may call this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: [panel for panel in panels if panel.keys(rows)] for name, panels in PICTURES.items()}
    pictures = {name: panels for name, panels in pictures.items() if panels}
    files = [_stacked(rows, panels, folder / f"{name}.png") for name, panels in pictures.items()]
    if files:
        files.append(_grid(rows, [panel for panels in pictures.values() for panel in panels], folder / "summary.png"))
    return files


def draw_runs(runs: Mapping[str, Rows], file: Path) -> Path:
    """One picture of several runs, by name: a panel for every curve that at least one of them has. Returns the file.

    Raises:
        ConfigError: no run holds any of the curves.
    """
    shown = {key: what for key, what in COMPARED.items() if any(len(series(rows, key)[0]) for rows in runs.values())}
    if not shown:
        raise ConfigError("no run holds a curve that could be compared, and there is nothing to draw: leave the plot out")
    figure, places = _places(len(shown))
    for (key, (title, label)), place in zip(shown.items(), places, strict=True):
        axes = _axes(figure, title, label, place)
        for i, (name, rows) in enumerate(runs.items()):
            steps, values = series(rows, key)
            line = axes.plot(steps, values, label=name, marker=_marker(steps), **_style(i))[0]
            if key == "eval/mean":
                line.set_marker("o")
                _band(axes, rows, steps, line.get_color())
        _limit(axes, key)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(runs)))
    return _save(figure, file)


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and finite values [S] of one metric, by step."""
    points = sorted((row["step"], row[key]) for row in rows if row.get(key) is not None and np.isfinite(row[key]))
    return np.array([step for step, _ in points]), np.array([value for _, value in points], float)


def reward(rows: Rows, axes: Axes) -> None:
    """Mean reward with a band of one standard deviation over trajectories, no wider than what any trajectory earned."""
    steps, mean = series(rows, "reward/mean")
    axes.plot(steps, mean, label="mean", marker=_marker(steps), color=PALETTE[0])
    std, low, high = (dict(zip(*series(rows, key), strict=True)) for key in ("reward/std", "rollout/reward_min", "rollout/reward_max"))
    if not std:
        return
    reach = np.array([std.get(step, 0.0) for step in steps])
    bottom = np.maximum(mean - reach, [low.get(step, -math.inf) for step in steps])
    top = np.minimum(mean + reach, [high.get(step, math.inf) for step in steps])
    axes.fill_between(steps, bottom, top, color=PALETTE[4], alpha=0.4, linewidth=0, label="± std over trajectories")


def evaluation(rows: Rows, axes: Axes) -> None:
    """Evaluation mean with its 95 % interval, beside pass@k and greedy decoding."""
    steps, mean = series(rows, "eval/mean")
    low, high = (dict(zip(*series(rows, key), strict=True)) for key in ("eval/low", "eval/high"))
    reach = [[m - low.get(s, m) for s, m in zip(steps, mean, strict=True)], [high.get(s, m) - m for s, m in zip(steps, mean, strict=True)]]
    axes.errorbar(steps, mean, yerr=reach, color=PALETTE[0], marker="o", capsize=4, label="mean, 95 % interval")
    others = [key for key in _keys(rows, "eval/pass@") if not key.endswith(("_low", "_high"))] + _keys(rows, "eval/greedy")
    for i, key in enumerate(others, start=1):
        at, values = series(rows, key)
        axes.plot(at, values, marker=".", label=key.removeprefix("eval/"), **_style(i))


def lengths(rows: Rows, axes: Axes) -> None:
    """Sampled tokens per trajectory: the mean and the most."""
    for i, (key, name) in enumerate({"rollout/tokens": "mean", "rollout/tokens_max": "longest"}.items()):
        steps, values = series(rows, key)
        axes.plot(steps, values, label=name, marker=_marker(steps), **_style(i))
    axes.set_ylim(bottom=0)


def timings(rows: Rows, axes: Axes) -> None:
    """Wall time of every step, stacked by what it went to; parts beyond the nine largest are "other"."""
    rows = sorted((row for row in rows if row.get(STEP) is not None), key=lambda row: row["step"])
    totals: dict[str, float] = {}
    for row in rows:
        for name, value in spans(row).items():
            totals[name] = totals.get(name, 0.0) + (value or 0.0)
    named = sorted(totals.keys() - {OTHER}, key=lambda name: -totals[name])[: len(PALETTE)]
    edges = np.array([[row["step"] - 0.5, row["step"] + 0.5] for row in rows]).ravel()
    parts = [spans(row) for row in rows]
    base = np.zeros(len(rows))
    for i, name in enumerate([*named, OTHER]):
        mine = {name} if name != OTHER else totals.keys() - set(named)
        values = np.array([sum(part.get(one) or 0.0 for one in mine) for part in parts])
        color = GREY if name == OTHER else PALETTE[i]  # one shape a part: a bar for every step would take seconds
        axes.fill_between(edges, np.repeat(base, 2), np.repeat(base + values, 2), label=name, color=color, linewidth=0)
        base = base + values
    axes.set_ylim(bottom=0)


def lines(*prefixes: str, but: Sequence[str] = (), limit: Callable[[Axes], None] | None = None) -> Any:
    """What draws every metric that begins with one of the prefixes, and what finds them."""

    def keys(rows: Rows) -> list[str]:
        return [key for prefix in prefixes for key in _keys(rows, prefix) if key not in but and not key.endswith("_max")]

    def plot(rows: Rows, axes: Axes) -> None:
        for i, key in enumerate(keys(rows)):
            steps, values = series(rows, key)
            axes.plot(steps, values, label=key, marker=_marker(steps), **_style(i))
        if limit:
            limit(axes)

    return plot, keys


def _of(*names: str) -> Callable[[Rows], Sequence[str]]:
    return lambda rows: [name for name in names if len(series(rows, name)[0])]


def _supervised(rows: Rows) -> list[str]:
    """The losses that tell something: those of what is given. A policy-gradient loss is no measure of progress."""
    if len(series(rows, "reward/mean")[0]):
        return []
    losses = ("sft/cross_entropy", "loss/preference", "loss/policy")
    return [name for name in losses if len(series(rows, name)[0])][:1]


def _losses(rows: Rows, axes: Axes) -> None:
    for i, key in enumerate([*_supervised(rows), *_of("eval/loss")(rows)]):
        steps, values = series(rows, key)
        axes.plot(steps, values, label=key, marker="o" if key.startswith("eval/") else _marker(steps), **_style(i))


def _accuracy(rows: Rows, axes: Axes) -> None:
    steps, values = series(rows, "preference/accuracy")
    axes.plot(steps, values, label="of the step's pairs", marker=_marker(steps), color=PALETTE[0])
    at, mean = series(rows, "eval/mean")
    if len(at):
        axes.plot(at, mean, label="held out, 95 % interval", marker="o", color=PALETTE[1])
        _band(axes, rows, at, PALETTE[1])
    axes.axhline(0.5, color=GREY, linestyle=":")
    axes.set_ylim(*SHARE)


def _shares(axes: Axes) -> None:
    axes.set_ylim(*SHARE)


def _floor(axes: Axes) -> None:
    """An axis never narrower than KL_FLOOR around 0: differences of rounding stay as small as they are."""
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.1 * KL_FLOOR), max(high, KL_FLOOR))


PICTURES: Mapping[str, Sequence[Panel]] = {
    "reward": (
        Panel("Reward per trajectory", "reward", reward, _of("reward/mean")),
        Panel("Reward components, mean", "value of the component", *lines("reward/", but=sorted(TAKEN))),
    ),
    "evaluation": (Panel("Held-out evaluation (step 0: before training)", "score", evaluation, _of("eval/mean")),),
    "loss": (
        Panel("Loss", "loss (nats)", _losses, _supervised),
        Panel("Accuracy on pairs", "share right", _accuracy, _of("preference/accuracy")),
        Panel("Margin of chosen over rejected", "score or nats", *lines("preference/", but=("preference/accuracy",))),
    ),
    "lengths": (
        Panel("Length of trajectories", "sampled tokens", lengths, _of("rollout/tokens")),
        Panel("Cut off, without a verdict, equal in their group", "share", *lines(*SHARES, limit=_shares)),
    ),
    "kl": (
        Panel("KL divergence, mean", "nats per token", *lines("kl/", but=("kl/held_back", "kl/bounded"), limit=_floor)),
        Panel("Entropy", "nats per token", *lines("policy/entropy")),
    ),
    "timings": (Panel("Where a step's time goes", "wall time (s)", timings, _of(STEP)),),
}  # fmt: skip
COMPARED: Mapping[str, tuple[str, str]] = {
    "reward/mean": ("Reward per trajectory, mean", "reward"),
    "eval/mean": ("Held-out evaluation, 95 % interval", "score"),
    "sft/cross_entropy": ("Loss", "nats per token"),
    "loss/preference": ("Loss", "nats"),
    "preference/accuracy": ("Accuracy on pairs", "share right"),
    "rollout/tokens": ("Length of trajectories, mean", "sampled tokens"),
    "kl/ref": ("KL divergence to the reference", "nats per token"),
    "policy/entropy": ("Entropy", "nats per token"),
    STEP: ("Time of a step", "wall time (s)"),
}


def _stacked(rows: Rows, panels: Sequence[Panel], file: Path) -> Path:
    """Panels of one picture, one above the other."""
    figure = Figure(figsize=(SIZE[0], SIZE[1] + MORE * (len(panels) - 1)), dpi=DPI, layout="constrained")
    for i, panel in enumerate(panels, start=1):
        _fill(rows, figure, panel, (len(panels), 1, i))
    return _save(figure, file)


def _grid(rows: Rows, panels: Sequence[Panel], file: Path) -> Path:
    """All panels of a run in one picture."""
    figure, places = _places(len(panels))
    for panel, place in zip(panels, places, strict=True):
        _fill(rows, figure, panel, place)
    return _save(figure, file)


def _places(number: int) -> tuple[Figure, list[tuple[int, int, int]]]:
    columns = min(3, number)
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(5.2 * columns, 3.4 * lines), dpi=DPI, layout="constrained")
    return figure, [(lines, columns, i) for i in range(1, number + 1)]


def _fill(rows: Rows, figure: Figure, panel: Panel, place: tuple[int, int, int]) -> None:
    axes = _axes(figure, panel.title, panel.label, place)
    panel.draw(rows, axes)
    many = len(axes.get_legend_handles_labels()[1]) > 4
    outside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if many else {}
    axes.legend(fontsize="small", reverse=panel.draw is timings, **outside)  # bars stand as their names do


def _save(figure: Figure, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.tmp")
    FigureCanvasAgg(figure).print_png(scratch)
    os.replace(scratch, file)
    return file


def _axes(figure: Figure, title: str, label: str, place: tuple[int, int, int]) -> Axes:
    axes = figure.add_subplot(*place)
    axes.set_prop_cycle(color=PALETTE)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return axes


def _style(i: int) -> dict[str, Any]:
    """Colour and line of the i-th curve: beyond the palette it is told by its line."""
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": STYLES[(i + i // len(PALETTE)) % len(STYLES)]}


def _band(axes: Axes, rows: Rows, steps: np.ndarray, color: Any) -> None:
    """The interval of an evaluation."""
    low, high = (dict(zip(*series(rows, key), strict=True)) for key in ("eval/low", "eval/high"))
    known = [step for step in steps if step in low and step in high]
    axes.fill_between(known, [low[s] for s in known], [high[s] for s in known], color=color, alpha=0.2, linewidth=0)


def _limit(axes: Axes, key: str) -> None:
    if key.startswith("kl/"):
        _floor(axes)
    if key == "preference/accuracy":
        _shares(axes)


def _keys(rows: Rows, prefix: str) -> list[str]:
    """Metrics that start with `prefix` and hold a number, in order of appearance."""
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith(prefix) and len(series(rows, key)[0])]


def _marker(steps: np.ndarray) -> str:
    return "o" if len(steps) < 3 else ""
