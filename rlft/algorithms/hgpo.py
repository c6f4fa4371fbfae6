"""Hybrid Group Policy Optimization (HGPO, arXiv:2505.14631): learn when to think, and to answer well either way."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from rlft.algorithms.advantages import on_trajectories, outcomes, two_level
from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.grpo import clipped
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.types import Batch


def hgpo(
    mode_coef: float = 1.0,
    margin: float = 1e-6,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    **shared: Unpack[Shared],
) -> Algorithm:
    """The answer's advantage within its mode on every token, and its mode's among the modes on the mode token.

    An answer's mode is its first sampled token, such as that of <think> or <no_think>: sample so that
    a group has answers of each. `advantages.two_level` tells both advantages, and where we differ.

    Args:
        mode_coef: of the mode's advantage, > 0.
        margin: in units of the reward; a mode earns only if its mean leads by more than this.
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        shared: see `policy_gradient.Shared`.
    """
    expect(is_number(mode_coef, 0) and mode_coef > 0, "mode_coef", "more than 0", mode_coef)
    expect(is_number(margin, 0), "margin", "at least 0", margin)

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        first, mode_ids = first_tokens(batch)
        intra, inter = two_level(*outcomes(batch), mode_ids, margin)
        choice = torch.where(first, on_trajectories(batch, inter), 0.0)
        return replace(batch, advantages=on_trajectories(batch, intra) + mode_coef * choice)

    return policy_gradient("hgpo", advantages, clipped(clip_low, clip_high), shared, signal="advantages")


def first_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Where each trajectory's first sampled token stands, over all its rows: [B, T] bool, and its id, [M].

    The id is -1 for a trajectory without one. An answer that is left out of the loss still has its mode.
    """
    ids, row = torch.unique(batch.traj_ids, return_inverse=True)
    T = batch.token_ids.shape[1]
    never = torch.iinfo(torch.int64).max
    sampled = batch.turn_ids >= 0
    order = torch.where(sampled, batch.turn_ids * T + torch.arange(T, device=row.device), never)
    earliest = torch.full_like(ids, never).scatter_reduce_(0, row, order.amin(-1), "amin")
    first = sampled & (order == earliest[row, None])
    mode_ids = torch.full_like(ids, -1)
    mode_ids[row[:, None].expand_as(first)[first]] = batch.token_ids[first]
    return first, mode_ids
