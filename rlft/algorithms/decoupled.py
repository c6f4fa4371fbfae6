"""Decoupled PPO for rollouts that lag behind (AReaL, arXiv:2505.24298)."""

from __future__ import annotations

from typing import Unpack

from rlft.algorithms.advantages import group_centered, group_normalized, outcome
from rlft.algorithms.base import Algorithm
from rlft.algorithms.grpo import clipped
from rlft.algorithms.policy_gradient import Shared, expect, policy_gradient


def decoupled_ppo(clip_low: float = 0.2, clip_high: float = 0.2, normalize: bool = True, **shared: Unpack[Shared]) -> Algorithm:
    """The clip keeps the policy near the weights at the step's start (the proximal policy), not near those that
    sampled; what those sampled is weighed by proximal / behaviour, `policy_gradient`'s importance weights.

    So it is `grpo` with `is_cap`, under its own name and with the authors' bounds: tokens with a weight over
    5 are left out, where `is_mode = "truncate"` would bound their weight.

    Args:
        clip_low, clip_high: the ratio to the proximal policy is kept in [1 - clip_low, 1 + clip_high].
        normalize: divide by the group's std; False only centers.
        shared: see `policy_gradient.Shared`; is_cap is 5 and is_mode "mask" unless set.
    """
    expect(shared.get("is_cap", 5.0) is not None, "is_cap", "a number, or 'grpo' for no weights", None)
    estimator = group_normalized if normalize else group_centered
    surrogate, defaults = clipped(clip_low, clip_high), Shared(is_cap=5.0, is_mode="mask")
    return policy_gradient("decoupled_ppo", outcome(estimator), surrogate, shared, defaults, signal="advantages", by_outcome=True)
