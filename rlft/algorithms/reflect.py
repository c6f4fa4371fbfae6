"""Reflect, retry, reward (arXiv:2505.24726): a reflection is as good as the retry that follows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch

from rlft.algorithms.advantages import group_centered, group_normalized, on_trajectories, outcomes
from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.grpo import clipped
from rlft.algorithms.policy_gradient import Shared, policy_gradient
from rlft.algorithms.turns import compare
from rlft.types import Batch


def reflect_retry_reward(
    clip_low: float = 0.2, clip_high: float = 0.2, normalize: bool = True, **shared: Unpack[Shared]
) -> Algorithm:
    """GRPO on the tokens of the turns tagged "reflection" alone, with the environment "reflect_retry".

    So the policy learns to reflect, not the answers of the tasks. A trajectory is compared with those of its
    group that train a token too: one whose first answer was right says nothing of reflections. We differ:
    the paper's groups reflect on one and the same answer, which `Task.first_attempt` gives; without it, on their own.

    Args:
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        normalize: divide by the std of what is compared; False only centers.
        shared: see `policy_gradient.Shared`. What overlong = "filter" leaves out takes no part in the comparison.
    """
    estimator = group_normalized if normalize else group_centered

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        totals, group_ids = outcomes(batch)
        ids, row = torch.unique(batch.traj_ids, return_inverse=True)
        trained = torch.zeros_like(ids).index_add_(0, row, batch.loss_mask.sum(-1)) > 0
        keys = torch.where(trained, group_ids, -1)
        return replace(batch, advantages=on_trajectories(batch, compare(estimator, totals, keys)))

    surrogate = clipped(clip_low, clip_high)
    return policy_gradient("reflect_retry_reward", advantages, surrogate, shared, tags=("reflection",), signal="advantages")
