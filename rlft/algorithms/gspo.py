"""Group Sequence Policy Optimization (arXiv:2507.18071): one ratio a trajectory."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack, get_args

from torch import Tensor

from rlft.algorithms import losses
from rlft.algorithms.advantages import group_centered, group_normalized, outcome
from rlft.algorithms.base import AdvantageFn, Algorithm, Reduce
from rlft.algorithms.losses import Level
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.algorithms.turns import compare, on_turns, rewards_to_go, same_turn, turns_of
from rlft.types import Batch


def gspo(
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    level: Level = "sequence",
    normalize: bool = True,
    **shared: Unpack[Shared],
) -> Algorithm:
    """GRPO's advantages with the ratio of the whole trajectory, exp of its mean log-ratio per token.

    Args:
        clip_low, clip_high: that ratio is kept in [1 - clip_low, 1 + clip_high]. It hardly leaves 1, so the bounds are
            a thousandth of GRPO's; the defaults are the paper's.
        level: "sequence" has one advantage a trajectory, from everything that it earned. "token" (GSPO-token) gives every
            turn its own: what it and later turns earned, against the same turn of the group's other members. In
            episodes of one turn both are the same.
        normalize: divide by the group's std; False only centers.
        shared: see `policy_gradient.Shared`; the aggregation is "sequence" unless set.
    """
    expect(is_number(clip_low, 0) and clip_low <= 1, "clip_low", "0 to 1", clip_low)
    expect(is_number(clip_high, 0), "clip_high", "at least 0", clip_high)
    expect(level in get_args(Level), "level", f"one of {', '.join(get_args(Level))}", level)
    estimator = group_normalized if normalize else group_centered

    def by_turn(batch: Batch, reduce: Reduce) -> Batch:
        turns = turns_of(batch)
        return replace(batch, advantages=on_turns(batch, compare(estimator, rewards_to_go(turns.rewards), same_turn(turns))))

    def surrogate(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch.loss_mask
        old_logprobs, advantages = masked(batch.old_logprobs, mask), masked(batch.advantages, mask)
        per_token, cut = losses.gspo(logprobs, old_logprobs, advantages, mask, batch.traj_ids, clip_low, clip_high, level)
        return per_token, {"ratio/clipped": cut.float()}

    advantages: AdvantageFn = outcome(estimator) if level == "sequence" else by_turn
    defaults, by_outcome = Shared(aggregation="sequence"), level == "sequence"
    return policy_gradient(
        "gspo", advantages, surrogate, shared, defaults, unit="trajectory", signal="advantages", by_outcome=by_outcome
    )
