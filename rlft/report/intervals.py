"""Estimates over tasks: intervals of a mean and of a share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance

CONFIDENCE = 0.95


def interval(task_values: Sequence[float], bounded: bool = False, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the mean over tasks. NaN for a lone task, about whose population nothing is known.

    A task's samples are one cluster and enter as one number, so drawing more of them cannot fake precision
    (arXiv:2411.00640, sec. 2).

    Args:
        bounded: the values lie in [0, 1], as pass rates do. Then the interval is Wilson's of a share, with as many trials as give
            a share the values' standard error: it holds where nearly all tasks pass or fail, and where they are few. Else it is the
            normal one, which is too narrow for a dozen tasks.
    """
    if len(task_values) < 2:
        return math.nan, math.nan
    mean, per_task = fmean(task_values), variance(task_values)
    if bounded:
        trials = max(len(task_values), len(task_values) * mean * (1 - mean) / per_task) if per_task else len(task_values)
        return wilson(mean, trials, confidence)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(per_task / len(task_values))
    return mean - reach, mean + reach


def wilson(share: float, trials: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22): it holds near 0 and 1 and for few trials."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    weight = 1 / (1 + z * z / trials)
    center = weight * (share + z * z / (2 * trials))
    reach = weight * z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, center - reach), min(1.0, center + reach)
