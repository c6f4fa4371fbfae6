"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal


def lr_factor(
    step: float,
    total_steps: float,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
    warmup_steps: float = 0,
    min_ratio: float = 0.0,
) -> float:
    """Learning rate of step 0, 1, ... over its peak, in (0, 1] during warm-up and [min_ratio, 1] after.

    Warm-up rises as (step + 1) / warmup_steps, so step 0 already learns. The decay starts at 1 where
    warm-up ends and reaches `min_ratio` at `total_steps`; beyond it the factor stays there.
    """
    if step < warmup_steps:
        return min(1.0, (step + 1) / warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[schedule]
    return min_ratio + (1.0 - min_ratio) * shape
