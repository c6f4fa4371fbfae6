"""Self-correction by multi-turn RL in two stages (SCoRe, arXiv:2409.12917)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from rlft.algorithms.advantages import group_centered, leave_one_out
from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.grpo import clipped
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.algorithms.turns import Turns, compare, on_turns, rewards_to_go, same_turn, turns_of
from rlft.types import Batch

BASELINES = {"leave_one_out": leave_one_out, "mean": group_centered}


def score(
    stage: Literal[1, 2],
    alpha: float | None = None,
    discount: float | None = None,
    baseline: Literal["leave_one_out", "mean"] = "leave_one_out",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    **shared: Unpack[Shared],
) -> Algorithm:
    """Two stages that teach a second attempt to mend the first, where an attempt is compared with the same one of its group.
    Attempt k is turn k.

    Stage 1 makes the second attempt worth while without touching the first: attempts after the first earn their own
    reward, the first earns nothing and is held to the reference by a KL of its own, larger weight. Stage 2 starts
    from stage 1's weights: the first attempt earns its reward r_1, and the second r_2 + alpha * (r_2 - r_1).

    We differ in the credit and in the clip. The paper's objective of stage 2 is the sum r_1 + r_2 + alpha * (r_2 - r_1) over
    both attempts. Taken literally, with rewards to go, the first attempt's tokens would earn r_2 + alpha * r_2 + (1 - alpha) * r_1:
    for alpha > 1 a wrong first attempt that is mended pays more than a right one that is kept. Here the bonus is the second
    attempt's alone, and a first attempt earns r_1. The surrogate is clipped, which at the step's first update has
    REINFORCE's gradient. A given first attempt (`Task.first_attempt`) enters the bonus and is not trained.

    Args:
        stage: 1 or 2.
        alpha: of the bonus for what an attempt improves on the one before, in stage 2; 10 where nothing is said, as in the paper.
        discount: share of the later attempts' rewards, without bonus, that an attempt earns too, in stage 2; 0 where nothing is said.
        baseline: "leave_one_out" or "mean" of the group's same attempts.
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        shared: see `policy_gradient.Shared`. kl_coef is 0.01 and kl "k2", in the loss, where nothing else is said;
            kl_turns is [10, 1] in stage 1, the first attempt's factor before the others'.

    Raises:
        ConfigError: a value out of range, an option of the other stage, or a stage 1 that does not hold the first attempt.
    """
    expect(stage in (1, 2) and not isinstance(stage, bool), "stage", "1 or 2", stage)
    expect(baseline in BASELINES, "baseline", f"one of {', '.join(BASELINES)}", baseline)
    for option, value in (("alpha", alpha), ("discount", discount)):
        expect(value is None or stage == 2, option, "nothing in stage 1, which pays no bonus", value)
        expect(value is None or is_number(value, 0), option, "at least 0", value)
    expect(discount is None or discount <= 1, "discount", "at most 1", discount)
    defaults: Shared = {"kl_coef": 0.01, "kl": "k2"}
    if stage == 1:
        defaults["kl_turns"] = (10.0, 1.0)
        chosen: dict[str, Any] = {**defaults, **shared}
        kl_coef, kl_turns = chosen["kl_coef"], chosen["kl_turns"]
        expect(bool(kl_coef), "kl_coef", "more than 0 in stage 1, where the KL alone holds the first attempt", kl_coef)
        own = len(kl_turns) > 1 and kl_turns[0] > max(kl_turns[1:])
        expect(own, "kl_turns", "a factor of the first attempt in stage 1, and smaller ones of the others", kl_turns)
        expect(chosen["kl"] != "k1", "kl", "a form that holds the first attempt: k1 in the loss has no gradient on average", "k1")
    expect(shared.get("kl_in", "loss") == "loss", "kl_in", "'loss': the bonus compares rewards without KL", shared.get("kl_in"))

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        turns = turns_of(batch)
        keys = same_turn(turns)
        if stage == 1:
            earned = turns.rewards
            keys = keys.index_fill(1, keys.new_zeros(1), -1)
        else:
            earned = improved(turns, 10.0 if alpha is None else alpha, discount or 0.0)
        return replace(batch, advantages=on_turns(batch, compare(BASELINES[baseline], earned, keys)))

    needs = ("old_logprobs", "turn_rewards")
    return policy_gradient("score", advantages, clipped(clip_low, clip_high), shared, defaults, needs=needs, signal="advantages")


def improved(turns: Turns, alpha: float, discount: float) -> Tensor:
    """What each attempt earns in stage 2, [M, K]: its reward, a share of the later ones', and the bonus
    alpha * (r_k - r_(k-1)) for every attempt but the first."""
    rewards = turns.rewards.double()
    before = torch.cat([rewards[:, :1], rewards], dim=1)[:, : rewards.shape[1]]
    return (rewards_to_go(rewards, discount) + alpha * (rewards - before)).to(turns.rewards.dtype)
