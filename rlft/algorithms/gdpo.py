"""Group reward-Decoupled normalisation Policy Optimization (GDPO, arXiv:2601.05242): several rewards, each on its own scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Unpack

from rlft.algorithms.advantages import of_trajectories, on_trajectories, outcomes, parts_normalized, whiten
from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.grpo import clipped
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.types import Batch


def gdpo(
    weights: Mapping[str, float] | None = None, clip_low: float = 0.2, clip_high: float = 0.2, **shared: Unpack[Shared]
) -> Algorithm:
    """Every reward part normalised over its group, their weighted sum scaled over all trained tokens of the step.

    What the rewards add up to is not looked at, nor are rewards of the environment, so the KL belongs in
    the loss. We differ: the scaling over the step does not center a second time, as in `reinforce_pp_baseline`.

    Args:
        weights: by the name of the reward part; at least one, and none may be 0.
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        shared: see `policy_gradient.Shared`.
    """
    weights = dict(weights or {})
    expect(len(weights) > 0, "weights", "a table of reward parts and their weights", weights)
    for part, weight in weights.items():
        expect(is_number(weight) and weight != 0, f"weights.{part}", "a number other than 0", weight)
    expect(shared.get("kl_in", "loss") == "loss", "kl_in", "'loss', as the advantages are those of reward parts", shared.get("kl_in"))

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        _, group_ids = outcomes(batch)
        per_trajectory = parts_normalized(of_trajectories(batch, batch.parts), tuple(weights.values()), group_ids)
        return replace(batch, advantages=whiten(on_trajectories(batch, per_trajectory), batch.loss_mask, reduce, center=False))

    return policy_gradient("gdpo", advantages, clipped(clip_low, clip_high), shared, parts=tuple(weights), signal="advantages")
