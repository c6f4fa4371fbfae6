"""REINFORCE with a greedy answer's reward as the baseline (ReMax, arXiv:2310.10505)."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from rlft.algorithms.advantages import greedy_baseline, of_trajectories, on_trajectories
from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.grpo import clipped
from rlft.algorithms.policy_gradient import Shared, policy_gradient
from rlft.types import Batch


def remax(clip_low: float = 0.2, clip_high: float = 0.2, **shared: Unpack[Shared]) -> Algorithm:
    """A trajectory's reward less what a greedy answer to the same task earns; one sample a task is enough.

    The run plays every task once more, greedily; a task whose greedy answer could not be graded, a baseline of
    NaN, leaves the loss. We differ: the surrogate is clipped, as in `rloo`.

    Args:
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        shared: see `policy_gradient.Shared`. With kl_in = "reward" the greedy answer bears no penalty.
    """

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        graded = ~of_trajectories(batch, batch.baselines).isnan()
        mask = on_trajectories(batch, graded.float()) > 0
        return greedy_baseline(replace(batch, loss_mask=mask), reduce)

    surrogate = clipped(clip_low, clip_high)
    return policy_gradient("remax", advantages, surrogate, shared, needs=("old_logprobs", "baselines"), min_group=1, signal="advantages")
