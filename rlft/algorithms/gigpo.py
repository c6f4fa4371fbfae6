"""Group-in-Group Policy Optimization (GiGPO, arXiv:2505.10978): episodes compared with episodes, steps with steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from rlft.algorithms.advantages import group_centered, group_normalized, on_trajectories, outcomes
from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.grpo import clipped
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.algorithms.turns import compare, on_turns, rewards_to_go, same_state, turns_of
from rlft.types import Batch


def gigpo(
    gamma: float = 0.95,
    step_weight: float = 1.0,
    normalize: bool = True,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    **shared: Unpack[Shared],
) -> Algorithm:
    """A = A_episode + step_weight * A_step, for environments that put many trajectories into the same states.

    A_episode compares the trajectory's reward within its group. A_step compares what a turn earns from it on with
    every turn of the group that was taken in the same state. A state is what the environment said last, token
    for token (`turns.same_state`); a turn in a state of its own has A_step 0.

    Args:
        gamma: 0 to 1, discount per turn of what a turn earns from it on.
        step_weight: of A_step, > 0.
        normalize: divide by the std of what is compared; False only centers.
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        shared: see `policy_gradient.Shared`.
    """
    expect(is_number(gamma, 0) and gamma <= 1, "gamma", "0 to 1", gamma)
    expect(is_number(step_weight, 0) and step_weight > 0, "step_weight", "more than 0; grpo has no steps", step_weight)
    estimator = group_normalized if normalize else group_centered

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        episode = on_trajectories(batch, estimator(*outcomes(batch)))
        step = compare(estimator, rewards_to_go(turns_of(batch).rewards, gamma), same_state(batch))
        return replace(batch, advantages=episode + step_weight * on_turns(batch, step))

    return policy_gradient("gigpo", advantages, clipped(clip_low, clip_high), shared, signal="advantages")
