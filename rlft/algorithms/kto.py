"""Kahneman-Tversky optimisation: each trajectory is desirable or not by its own reward; nothing is paired."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlft.algorithms import preference
from rlft.algorithms.advantages import outcomes
from rlft.algorithms.base import Algorithm, Need, Reduce
from rlft.algorithms.kl import k3
from rlft.algorithms.masking import masked, trajectory_sum
from rlft.algorithms.policy_gradient import expect, is_number
from rlft.types import Batch


def kto(beta: float = 0.1, threshold: float = 1.0, desirable: float = 1.0, undesirable: float = 1.0) -> Algorithm:
    """Mean over trajectories of w (1 - sigmoid(+-beta (log-ratio - z0))) (arXiv:2402.01306), + for the desirable ones.

    z0 is the mean log-ratio of the step's trajectories on all ranks at the step's start, at least 0, without
    gradient; it stands in `Batch.baselines`. On rollouts that is an unbiased estimate of KL(policy || reference).
    The paper, whose answers are given, estimates the same KL from answers put to other prompts; on data
    that the policy did not write ours is the data's mean log-ratio instead.

    Args:
        beta: how fast value saturates, per nat.
        threshold: the total from which a trajectory is desirable.
        desirable, undesirable: weights w; the paper advises desirable x its count over undesirable x its count between 1 and 4/3.

    Raises:
        ConfigError: a value out of range.
    """
    given = {"beta": beta, "desirable": desirable, "undesirable": undesirable}
    for option, value in given.items():
        expect(is_number(value) and value > 0, option, "more than 0", value)
    expect(is_number(threshold), "threshold", "a number", threshold)

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        mask = batch.loss_mask
        totals, _ = outcomes(batch)
        ids, row = torch.unique(batch.traj_ids, return_inverse=True)
        weights = torch.where(totals >= threshold, desirable, -undesirable)[row, None]
        log_ratios = masked(batch.old_logprobs, mask) - masked(batch.ref_logprobs, mask)
        trained = torch.bincount(row, mask.sum(-1), len(ids)) > 0
        total, count = reduce(torch.stack([log_ratios.sum(dtype=torch.float64), trained.sum().double()]))
        z0 = (total / count.clamp(min=1)).clamp(min=0).float()
        return replace(batch, advantages=masked(weights, mask), baselines=z0.expand(len(row)).clone())

    def loss(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch.loss_mask
        logprobs, ref_logprobs = masked(logprobs, mask), masked(batch.ref_logprobs, mask)
        log_ratios = trajectory_sum(logprobs - ref_logprobs, mask, batch.traj_ids)
        assert batch.baselines is not None
        z0, weights = batch.baselines[:, None], masked(batch.advantages, mask)
        lead = (weights.sign() * (log_ratios - z0)).detach()
        metrics = {"preference/accuracy": (lead > 0).float(), "preference/margin": lead, "preference/anchor": z0.expand(mask.shape)}
        return masked(preference.kto(log_ratios, z0, weights, beta), mask), {**metrics, "kl/ref": k3(logprobs.detach(), ref_logprobs)}

    needs: frozenset[Need] = frozenset({"old_logprobs", "ref_logprobs"})
    return Algorithm("kto", advantages, loss, needs, "sequence", unit="trajectory", may_truncate=True)
