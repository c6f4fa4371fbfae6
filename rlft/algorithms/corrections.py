"""Corrections for the engine and the learner assigning different probabilities to a token.

Both hold the same weights, but other kernels, precisions and (when rollouts lag) versions.
Axes: B rows, T tokens.
"""

from __future__ import annotations

from torch import Tensor


def truncated_importance(old_logprobs: Tensor, rollout_logprobs: Tensor, cap: float = 2.0) -> Tensor:
    """min(old / rollout, cap) per token, without gradient: truncated importance sampling.

    Multiplied with the policy loss, it makes up for tokens drawn from the engine's
    distribution. The cap bounds the variance at the price of a bias where it acts.

    Args:
        old_logprobs, rollout_logprobs: [B, T], learner's and engine's.
        cap: > 0; 2 is usual.
    """
    return (old_logprobs - rollout_logprobs).exp().clamp(max=cap).detach()


def mismatch(old_logprobs: Tensor, rollout_logprobs: Tensor) -> dict[str, Tensor]:
    """How far learner and engine are apart, as metrics per token {name: [B, T]}.

    "mismatch/abs": |old - rollout| in nats, 0 when they agree.
    "mismatch/ratio": old / rollout, whose mean is 1 for samples of the engine.
    """
    gap = (old_logprobs - rollout_logprobs).detach()
    return {"mismatch/abs": gap.abs(), "mismatch/ratio": gap.exp()}
