"""Policy losses: pure functions that return one number per token.

Axes: B rows, T tokens. What the numbers weigh is decided in `masking.loss_weights`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ppo_clip(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A): the clipped surrogate
    (arXiv:1707.06347, eq. 7) with a bound of its own on each side (DAPO, arXiv:2503.14476).

    Args:
        logprobs: [B, T], carries the gradient.
        old_logprobs, advantages: [B, T].

    Returns:
        loss [B, T], and clipped [B, T] bool: tokens whose gradient is cut.
    """
    ratio = (logprobs - old_logprobs).exp()
    free = ratio * advantages
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -torch.minimum(free, bounded), (bounded < free).detach()
