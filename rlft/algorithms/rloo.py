"""REINFORCE with a leave-one-out baseline (RLOO, arXiv:2402.14740)."""

from __future__ import annotations

from typing import Unpack

from rlft.algorithms.advantages import leave_one_out, outcome
from rlft.algorithms.base import Algorithm
from rlft.algorithms.grpo import clipped
from rlft.algorithms.policy_gradient import Shared, policy_gradient


def rloo(clip_low: float = 0.2, clip_high: float = 0.2, **shared: Unpack[Shared]) -> Algorithm:
    """A trajectory's reward less the mean of its group's others, with the KL in the reward.

    We differ: the surrogate is clipped, which at the step's first update has REINFORCE's gradient and
    allows for more than one update; the paper has one.

    Args:
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        shared: see `policy_gradient.Shared`. kl_in is "reward" and kl "k1" where nothing else is said.
    """
    surrogate, defaults = clipped(clip_low, clip_high), Shared(kl_in="reward", kl="k1")
    return policy_gradient("rloo", outcome(leave_one_out), surrogate, shared, defaults, signal="advantages", by_outcome=True)
