"""Per-token estimates of KL(policy || other) from tokens that the policy sampled.

With r = other / policy at the sampled token (Schulman, "Approximating KL divergence", 2020).
Two gradients matter, both in expectation over the policy's own samples:

| estimate | value      | gradient as a loss     | gradient as a (detached) cost in the reward       |
|----------|------------|------------------------|---------------------------------------------------|
| k1       | unbiased   | 0: noise, no penalty   | that of KL(policy || other)                       |
| k2       | biased     | of KL(policy || other) | of neither                                        |
| k3       | unbiased   | of KL(other || policy) | difference: KL(policy || other) - KL(other || policy) |

So k2 belongs into the loss and k1 into the reward when KL(policy || other) is meant; k3 in
the loss is what GRPO (arXiv:2402.03300, eq. 4) uses. Off-policy, all of this holds
approximately. Every argument and result is [B, T], in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def k1(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """-log r: unbiased, of either sign, high variance."""
    return logprobs - other_logprobs


def k2(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """(log r)^2 / 2: biased, never negative."""
    return (logprobs - other_logprobs).square() / 2


def k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """r - 1 - log r: unbiased, never negative, low variance.

    `expm1` keeps precision near r = 1, where r - 1 would round to float32's spacing at 1.
    """
    log_ratio = other_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
