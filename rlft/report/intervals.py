"""Estimates over tasks: a mean's interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

CONFIDENCE = 0.95


def interval(task_values: Sequence[float], bounded: bool = False, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Normal interval of the mean over tasks, from the standard error over tasks (arXiv:2411.00640, sec. 2).

    A task's samples are one cluster and enter as one number, so drawing more of them cannot fake precision.
    NaN for a lone task, about whose population nothing is known. It is too narrow for a dozen tasks or
    where nearly all pass. `bounded` clips it to [0, 1].
    """
    if len(task_values) < 2:
        return math.nan, math.nan
    mean = fmean(task_values)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * stdev(task_values) / math.sqrt(len(task_values))
    low, high = mean - reach, mean + reach
    return (max(0.0, low), min(1.0, high)) if bounded else (low, high)
