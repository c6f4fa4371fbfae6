"""REINFORCE++ (arXiv:2501.03262): advantages normalised over the whole step, without a critic."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch

from rlft.algorithms.advantages import group_centered, on_trajectories, outcomes, whiten
from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.gae import gae
from rlft.algorithms.grpo import clipped
from rlft.algorithms.policy_gradient import Shared, policy_gradient
from rlft.types import Batch


def reinforce_pp(clip_low: float = 0.2, clip_high: float = 0.2, **shared: Unpack[Shared]) -> Algorithm:
    """What a token's trajectory earns from it on, whitened over all trained tokens of the step.

    With the KL in the reward, a token bears its own penalty and its successors'. One sample a task is enough.

    Args:
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        shared: see `policy_gradient.Shared`. kl_in is "reward" and kl "k1" where nothing else is said.
    """

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        to_go, _ = gae(batch, torch.zeros_like(batch.rewards), gamma=1.0, lam=1.0)
        return replace(batch, advantages=whiten(to_go, batch.loss_mask, reduce))

    surrogate, defaults = clipped(clip_low, clip_high), Shared(kl_in="reward", kl="k1")
    return policy_gradient("reinforce_pp", advantages, surrogate, shared, defaults, min_group=1, signal="advantages")


def reinforce_pp_baseline(clip_low: float = 0.2, clip_high: float = 0.2, **shared: Unpack[Shared]) -> Algorithm:
    """The trajectory's reward less its group's mean, scaled over all trained tokens of the step.

    We differ: the scaling does not center a second time. The group's mean is the center already, and another one
    over tokens would give answers of groups without signal an advantage, by how long the others' were.

    Args:
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        shared: see `policy_gradient.Shared`. The KL is in the loss, as k2, where nothing else is said.
    """

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        centered = on_trajectories(batch, group_centered(*outcomes(batch)))
        return replace(batch, advantages=whiten(centered, batch.loss_mask, reduce, center=False))

    return policy_gradient("reinforce_pp_baseline", advantages, clipped(clip_low, clip_high), shared, {"kl": "k2"}, signal="advantages")
