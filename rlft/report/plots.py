"""metrics.jsonl as pictures: reward, evaluation, lengths, KL and entropy, timings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlft.report.metrics import OTHER, STEP, spans

Rows = Sequence[Mapping[str, Any]]
SIZE = (7.0, 4.0)  # inches
DPI = 120


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Write a PNG for every plot that `rows` hold numbers for; returns the files.

    Nothing of matplotlib's global state (pyplot) is touched, so any thread may call this.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in {"reward": reward, "evaluation": evaluation, "lengths": lengths, "kl": kl, "timings": timings}.items():
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        if plot(rows, figure):
            files.append(folder / f"{name}.png")
            FigureCanvasAgg(figure).print_png(files[-1])
    return files


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and finite values [S] of one metric, by step."""
    points = sorted((row["step"], row[key]) for row in rows if row.get(key) is not None and np.isfinite(row[key]))
    return np.array([step for step, _ in points]), np.array([value for _, value in points], float)


def reward(rows: Rows, figure: Figure) -> bool:
    """Mean reward with a band of one standard deviation over trajectories."""
    steps, mean = series(rows, "reward/mean")
    if not len(steps):
        return False
    axes = _axes(figure, "Reward per trajectory", "reward")
    axes.plot(steps, mean, color="C0", label="mean", marker=_marker(steps))
    std = dict(zip(*series(rows, "reward/std"), strict=True))
    band = np.array([std.get(step, 0.0) for step in steps])
    axes.fill_between(steps, mean - band, mean + band, color="C0", alpha=0.2, linewidth=0, label="± std over trajectories")
    axes.legend()
    return True


def evaluation(rows: Rows, figure: Figure) -> bool:
    """Evaluation mean with its 95 % interval, beside pass@k and greedy decoding."""
    steps, mean = series(rows, "eval/mean")
    if not len(steps):
        return False
    axes = _axes(figure, "Held-out evaluation (step 0: before training)", "score")
    low, high = (dict(zip(*series(rows, key), strict=True)) for key in ("eval/low", "eval/high"))
    reach = [[m - low.get(s, m) for s, m in zip(steps, mean, strict=True)], [high.get(s, m) - m for s, m in zip(steps, mean, strict=True)]]
    axes.errorbar(steps, mean, yerr=reach, color="C0", marker="o", capsize=4, label="mean, 95 % interval over tasks")
    others = [key for key in _keys(rows, "eval/pass@") if not key.endswith(("_low", "_high"))] + _keys(rows, "eval/greedy")
    for i, key in enumerate(others, start=1):
        at, values = series(rows, key)
        axes.plot(at, values, color=f"C{i}", marker=".", linestyle="--", label=key.removeprefix("eval/"))
    axes.legend()
    return True


def lengths(rows: Rows, figure: Figure) -> bool:
    """Sampled tokens per trajectory, and the share that ran into a limit."""
    steps, mean = series(rows, "rollout/tokens")
    if not len(steps):
        return False
    axes = _axes(figure, "Length of trajectories", "sampled tokens")
    axes.plot(steps, mean, color="C0", label="mean", marker=_marker(steps))
    axes.plot(*series(rows, "rollout/tokens_max"), color="C0", alpha=0.4, label="longest", marker=_marker(steps))
    axes.set_ylim(bottom=0)
    at, truncated = series(rows, "rollout/truncated")
    if len(at):
        right = axes.twinx()
        right.plot(at, 100 * truncated, color="C3", linestyle=":", label="truncated (right)", marker=_marker(at))
        right.set_ylabel("truncated (%)")
        right.set_ylim(-2, 102)
    figure.legend(loc="outside upper center", ncols=3)
    return True


def kl(rows: Rows, figure: Figure) -> bool:
    """Every mean `kl/*` above (extremes would flatten them), `policy/entropy` below, whichever are there."""
    means = [key for key in _keys(rows, "kl/") if not key.endswith("_max")]
    panels = [("KL divergence", means), ("Entropy", _keys(rows, "policy/entropy"))]
    panels = [(title, keys) for title, keys in panels if keys]
    for i, (title, keys) in enumerate(panels, start=1):
        axes = _axes(figure, title, "nats per token", (len(panels), 1, i))
        for key in keys:
            steps, values = series(rows, key)
            axes.plot(steps, values, label=key, marker=_marker(steps))
        axes.legend()
    return bool(panels)


def timings(rows: Rows, figure: Figure) -> bool:
    """Wall time of every step, stacked by what it went to."""
    rows = sorted((row for row in rows if row.get(STEP) is not None), key=lambda row: row["step"])
    if not rows:
        return False
    names = sorted(dict.fromkeys(name for row in rows for name in spans(row)), key=lambda name: name == OTHER)
    axes = _axes(figure, "Where a step's time goes", "wall time (s)")
    steps = np.array([row["step"] for row in rows])
    base = np.zeros(len(steps))
    for i, name in enumerate(names):
        values = np.array([spans(row).get(name, 0.0) for row in rows])
        axes.bar(steps, values, 1.0, base, label=name, color="0.7" if name == OTHER else f"C{i}", linewidth=0)
        base += values
    figure.legend(loc="outside right upper", reverse=True)
    return True


def _axes(figure: Figure, title: str, label: str, place: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    axes = figure.add_subplot(*place)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return axes


def _keys(rows: Rows, prefix: str) -> list[str]:
    """Metrics that start with `prefix` and hold a number, in order of appearance."""
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith(prefix) and len(series(rows, key)[0])]


def _marker(steps: np.ndarray) -> str:
    return "o" if len(steps) < 3 else ""
