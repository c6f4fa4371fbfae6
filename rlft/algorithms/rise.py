"""Recursive introspection (RISE, arXiv:2407.18219): imitate the turns that did better than their like."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from rlft.algorithms.advantages import group_centered
from rlft.algorithms.base import Algorithm, Need, Reduce
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.algorithms.turns import compare, on_turns, same_turn, turns_of
from rlft.types import Batch


def rise(temperature: float = 1.0, max_weight: float = 20.0, **shared: Unpack[Shared]) -> Algorithm:
    """Reward-weighted regression on single turns: exp(A / temperature) times the cross-entropy of a turn's tokens.

    A is what the turn earned less the mean of the group's same turn. A turn that did no better than that weighs 0, so
    a wrong attempt is no target, but stays in the context of the turns after it. One that did better weighs more than 1,
    the exp of a positive number. We differ: the paper samples several improved answers in each state, where we compare
    the same turn of the group's trajectories. From the second turn on their contexts may differ, so that "better" is
    relative to other states too: A also holds how good a start the turns before gave.

    Args:
        temperature: in units of the reward, > 0. The larger, the more alike the weights of all better turns; a small
            one favours those that are rarely got right.
        max_weight: bound of the weights, at least 1.
        shared: see `policy_gradient.Shared`.
    """
    expect(is_number(temperature, 0) and temperature > 0, "temperature", "more than 0", temperature)
    expect(is_number(max_weight, 1), "max_weight", "at least 1", max_weight)

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        turns = turns_of(batch)
        better = on_turns(batch, compare(group_centered, turns.rewards, same_turn(turns)))
        weights = torch.where(better > 0, (better / temperature).exp().clamp(max=max_weight), 0.0)
        return replace(batch, ce_weights=weights)

    def surrogate(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weights = masked(batch.ce_weights, batch.loss_mask)
        return -weights * logprobs, {"rise/weight": weights, "rise/better": (weights > 0).float()}

    needs: tuple[Need, ...] = ("turn_rewards",)
    return policy_gradient("rise", advantages, surrogate, shared, needs=needs, may_truncate=True, signal="ce_weights", ratio=False)
