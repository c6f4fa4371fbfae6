"""What held-out pairs say about a reward model: accuracy, calibration, length bias, margins.

Axes: P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from rlft.report.intervals import wilson

NUM_BINS = 10


@dataclass(frozen=True)
class Bin:
    """Pairs that the model tells apart with about the same confidence."""

    low: float
    high: float
    num_pairs: int
    confidence: float  # mean of what the model claims
    accuracy: float  # what it reaches


@dataclass(frozen=True)
class PreferenceReport:
    """Figures over held-out pairs. A share of no pair is NaN; a tie of scores counts as half right."""

    num_pairs: int
    accuracy: float
    low: float  # 95 % interval of the accuracy
    high: float
    loss: float  # nats a pair, without margins; ln 2 is a coin
    ece: float  # expected calibration error
    bins: tuple[Bin, ...]
    margin_mean: float  # of chosen less rejected
    margin_std: float
    margin_p10: float
    margin_p50: float
    margin_p90: float
    score_mean: float  # of all answers
    score_std: float
    num_shorter: int  # pairs whose chosen answer is the shorter one
    accuracy_shorter: float
    num_longer: int
    accuracy_longer: float
    length_correlation: float  # of score and length over all answers
    margin_length_correlation: float  # of the differences within pairs

    def figures(self) -> dict[str, float]:
        """Every single number, the accuracy under the name of an evaluation's mean."""
        numbers = {name: value for name, value in asdict(self).items() if name not in ("bins", "accuracy")}
        return {"mean": self.accuracy, **numbers}


def report(scores: np.ndarray, lengths: np.ndarray) -> PreferenceReport:
    """Judge a reward model by its scores [P, 2] of chosen and rejected answers, with their lengths [P, 2] in tokens.

    Calibration takes sigmoid(difference) as the claim of a Bradley-Terry model: of pairs told apart with
    confidence c = sigmoid(|difference|), the share c should be right. Its error is the mean |claim - share| over
    ten bins of equal width, weighed by their pairs (arXiv:1706.04599, eq. 3).
    """
    scores, lengths = np.asarray(scores, np.float64), np.asarray(lengths, np.float64)
    if scores.ndim != 2 or scores.shape != lengths.shape or scores.shape[1] != 2 or not len(scores):
        raise ValueError(f"report: expected scores and lengths [P, 2] of at least one pair, got {scores.shape} and {lengths.shape}")
    margins, longer = scores[:, 0] - scores[:, 1], lengths[:, 0] - lengths[:, 1]
    right = np.where(margins == 0, 0.5, margins > 0)
    low, high = wilson(float(right.mean()), len(right))
    bins = _bins(1 / (1 + np.exp(-np.abs(margins))), right)
    p10, p50, p90 = np.quantile(margins, (0.1, 0.5, 0.9))
    return PreferenceReport(
        num_pairs=len(right),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        loss=float(np.logaddexp(0, -margins).mean()),
        ece=sum(b.num_pairs * abs(b.confidence - b.accuracy) for b in bins) / len(right),
        bins=bins,
        margin_mean=float(margins.mean()),
        margin_std=float(margins.std()),
        margin_p10=float(p10),
        margin_p50=float(p50),
        margin_p90=float(p90),
        score_mean=float(scores.mean()),
        score_std=float(scores.std()),
        num_shorter=int((longer < 0).sum()),
        accuracy_shorter=_mean(right[longer < 0]),
        num_longer=int((longer > 0).sum()),
        accuracy_longer=_mean(right[longer > 0]),
        length_correlation=_correlation(scores.ravel(), lengths.ravel()),
        margin_length_correlation=_correlation(margins, longer),
    )


def show(console: Console, found: PreferenceReport) -> None:
    """Print the report as tables."""
    table = Table("held-out pairs", str(found.num_pairs), title="Reward model")
    table.add_row("pairwise accuracy", f"{found.accuracy:.3f} [{found.low:.3f}, {found.high:.3f}]")
    table.add_row(f"  where the chosen is shorter ({found.num_shorter})", _shown(found.accuracy_shorter))
    table.add_row(f"  where the chosen is longer ({found.num_longer})", _shown(found.accuracy_longer))
    table.add_row("loss (nats; a coin: 0.693)", f"{found.loss:.3f}")
    table.add_row("expected calibration error", f"{found.ece:.3f}")
    table.add_row("margin: mean ± std", f"{found.margin_mean:.3f} ± {found.margin_std:.3f}")
    table.add_row("margin: 10 %, 50 %, 90 %", f"{found.margin_p10:.3f}, {found.margin_p50:.3f}, {found.margin_p90:.3f}")
    table.add_row("score: mean ± std", f"{found.score_mean:.3f} ± {found.score_std:.3f}")
    table.add_row("correlation of score and length", _shown(found.length_correlation))
    table.add_row("  of their differences in a pair", _shown(found.margin_length_correlation))
    console.print(table)
    reliability = Table("confidence", "pairs", "claimed", "right", title="Reliability")
    for b in found.bins:
        reliability.add_row(f"{b.low:.2f}-{b.high:.2f}", str(b.num_pairs), f"{b.confidence:.3f}", f"{b.accuracy:.3f}")
    console.print(reliability)


def draw(found: PreferenceReport, scores: np.ndarray, lengths: np.ndarray, file: Path) -> Path:
    """Scores of both answers, reliability, and scores over lengths, as one PNG."""
    figure = Figure(figsize=(13.0, 4.0), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    edges = np.histogram_bin_edges(scores, 40)
    for side, name in enumerate(("chosen", "rejected")):
        left.hist(scores[:, side], edges, alpha=0.6, label=name)
    left.set(title="Scores of held-out answers", xlabel="score", ylabel="answers")
    left.legend()
    filled = [b for b in found.bins if b.num_pairs]
    middle.plot([0.5, 1], [0.5, 1], color="0.6", linestyle="--", label="calibrated")
    middle.plot([b.confidence for b in filled], [b.accuracy for b in filled], marker="o", label=f"ECE {found.ece:.3f}")
    middle.set(title="Reliability", xlabel="claimed chance to be right", ylabel="share right")
    middle.legend()
    shift = np.random.default_rng(0).uniform(-0.3, 0.3, lengths.shape)  # lengths are whole: points would hide each other
    for side, name in enumerate(("chosen", "rejected")):
        right.plot(lengths[:, side] + shift[:, side], scores[:, side], ".", alpha=0.4, label=name)
    right.set(title=f"Length (correlation {found.length_correlation:.2f})", xlabel="tokens of the answer", ylabel="score")
    right.legend()
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(file)
    return file


def _bins(confidence: np.ndarray, right: np.ndarray) -> tuple[Bin, ...]:
    edges = np.linspace(0.5, 1.0, NUM_BINS + 1)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, NUM_BINS - 1)
    held: Sequence[Any] = [place == i for i in range(NUM_BINS)]
    return tuple(
        Bin(float(edges[i]), float(edges[i + 1]), int(mine.sum()), _mean(confidence[mine]), _mean(right[mine]))
        for i, mine in enumerate(held)
        if mine.any()
    )


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's; NaN where one of them is constant."""
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(np.corrcoef(left, right)[0, 1])
