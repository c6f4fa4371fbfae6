"""Corrections for the engine and the learner assigning different probabilities to a token.

Both hold the same weights, but other kernels, precisions and (when rollouts lag) versions.
Axes: B rows, T tokens.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from rlft.algorithms.masking import masked, trajectory_mean, trajectory_sum
from rlft.errors import ConfigError

Level = Literal["token", "sequence", "geometric"]
Mode = Literal["truncate", "mask"]

MAX_LOG_RATIO = 80.0  # its exp, and 1 over it, are float32 numbers


def importance_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    traj_ids: Tensor,
    level: Level = "token",
    mode: Mode = "truncate",
    cap: float = 2.0,
    floor: float = 0.0,
) -> Tensor:
    """Learner over engine at what the engine sampled, bounded and without gradient: [B, T], 0 off the mask.

    Multiplied with the policy loss, it makes up for tokens drawn from the engine's distribution.
    A bound limits the variance at the price of a bias where it acts.

    Args:
        old_logprobs, rollout_logprobs: [B, T], learner's and engine's.
        mask: [B, T] bool, trained tokens.
        traj_ids: [B]; a trajectory's rows are all here.
        level: "token": each token its own ratio. "sequence": every token the product over its trajectory's
            trained tokens, which alone is unbiased for whole trajectories and grows with their length.
            "geometric": the geometric mean of these, a measure per token that lengths share.
        mode: "truncate": min(ratio, cap) (truncated importance sampling). "mask": the ratio inside
            [floor, cap], 0 outside (masked importance sampling); it stays in the loss's denominators.
        cap: > 0; 2 is usual for tokens. Ratios beyond e^80 count as e^80.
        floor: >= 0, for "mask" only.

    Raises:
        ConfigError: an unknown level or mode, or a floor without effect.
    """
    gap = masked(old_logprobs - rollout_logprobs, mask).detach()
    if level == "sequence":
        gap = trajectory_sum(gap, mask, traj_ids).expand_as(gap)
    elif level == "geometric":
        gap = trajectory_mean(gap, mask, traj_ids).expand_as(gap)
    elif level != "token":
        raise ConfigError(f"algorithm.is_level: expected 'token', 'sequence' or 'geometric', got {level!r}")
    ratio = gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if mode == "mask":
        return masked(ratio, mask & (ratio >= floor) & (ratio <= cap))
    if mode != "truncate":
        raise ConfigError(f"algorithm.is_mode: expected 'truncate' or 'mask', got {mode!r}")
    if floor:
        raise ConfigError(f"algorithm.is_floor needs is_mode = 'mask', got {mode!r}")
    return masked(ratio.clamp(max=cap), mask)


def mismatch(old_logprobs: Tensor, rollout_logprobs: Tensor) -> dict[str, Tensor]:
    """How far learner and engine are apart, as metrics per token {name: [B, T]}.

    "mismatch/abs": |old - rollout| in nats, 0 when they agree.
    "mismatch/ratio": old / rollout, whose mean is 1 for samples of the engine.
    "mismatch/prob": |p_old - p_rollout|, 0 to 1: what rare tokens hardly move.
    "mismatch/exp_abs": e^|old - rollout|, 1 when they agree: what single tokens far apart move most.
    """
    old, rollout = old_logprobs.detach(), rollout_logprobs.detach()
    gap = old - rollout
    return {
        "mismatch/abs": gap.abs(),
        "mismatch/ratio": gap.exp(),
        "mismatch/prob": (old.exp() - rollout.exp()).abs(),
        "mismatch/exp_abs": gap.abs().exp(),
    }
