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
approximately. For the loss alone there are three more forms, see `penalty`.
Every argument and result is [B, T], in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from rlft.algorithms.ratios import MAX_LOG_RATIO, bounded_exp
from rlft.errors import ConfigError

Estimator = Literal["k1", "k2", "k3"]
Form = Literal["k1", "k2", "k3", "k1+", "k3+", "k3_ratio"]


def k1(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """-log r: unbiased, of either sign, high variance."""
    return logprobs - other_logprobs


def k2(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """(log r)^2 / 2: biased, never negative."""
    return (logprobs - other_logprobs).square() / 2


def k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """r - 1 - log r: unbiased, never negative, low variance.

    `expm1` keeps precision near r = 1, where r - 1 would round to float32's spacing at 1. Beyond log r = 10 it grows no more,
    and has no gradient.
    """
    log_ratio = (other_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


ESTIMATORS: Mapping[Estimator, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def penalty(form: Form, logprobs: Tensor, ref_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """What a loss adds, times its coefficient, to keep the policy near the reference.

    Value and gradient in expectation over the samples of the policy that `samples` names:

    | form     | value                 | gradient              | samples |
    |----------|-----------------------|-----------------------|---------|
    | k1       | of KL(policy || ref)  | 0: no penalty at all  | policy  |
    | k2       | biased                | of KL(policy || ref)  | policy  |
    | k3       | of KL(policy || ref)  | of KL(ref || policy)  | policy  |
    | k1+, k3+ | of KL(policy || ref)  | of KL(policy || ref)  | policy  |
    | k3_ratio | of KL(policy || ref)  | of KL(policy || ref)  | old     |

    "k1+" and "k3+" have the number of k1 or k3 and the gradient of k2 (straight-through), so these
    three train alike and differ in what is logged. "k3_ratio" is policy / old times k3, both
    with gradient: exact also after the policy has moved away from the one that sampled, with the
    variance of an unclipped ratio. At the step's first update its gradient has the same expectation
    as k2's. As terms of one loss per token, all leave out what a token does to the states after it.

    Raises:
        ConfigError: an unknown form.
    """
    match form:
        case "k1" | "k2" | "k3":
            return ESTIMATORS[form](logprobs, ref_logprobs)
        case "k1+":
            return _straight_through(k1(logprobs, ref_logprobs), k2(logprobs, ref_logprobs))
        case "k3+":
            return _straight_through(k3(logprobs, ref_logprobs), k2(logprobs, ref_logprobs))
        case "k3_ratio":
            return bounded_exp(logprobs - old_logprobs) * k3(logprobs, ref_logprobs)
    raise ConfigError(f"algorithm.kl: expected one of {', '.join(get_args(Form))}, got {form!r}")


def _straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """The number of one with the gradient of the other."""
    return value.detach() + gradient - gradient.detach()
