"""Policy losses and the critic's: pure functions that return one number per token.

Axes: B rows, T tokens. What the numbers weigh is decided in `masking.loss_weights`. Inputs are 0 off
the mask (`masking.masked`). Where a loss takes `mask` and `traj_ids`, it speaks of whole trajectories:
every row of one must be in the call, which `Algorithm.unit` "trajectory" sees to. A ratio counts as at most e^10,
with no gradient beyond (`ratios.bounded_exp`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlft.algorithms.masking import trajectory_mean, trajectory_sum
from rlft.algorithms.ratios import MAX_LOG_RATIO, bounded_exp

Level = Literal["token", "sequence"]

PASS_RATES = (0.02, 0.98)


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A): the clipped surrogate
    (arXiv:1707.06347, eq. 7) with a bound of its own on each side (DAPO, arXiv:2503.14476).

    Args:
        logprobs: [B, T], carries the gradient.
        old_logprobs, advantages: [B, T].

    Returns:
        loss [B, T], and clipped [B, T] bool: tokens whose gradient is cut.
    """
    return _pessimistic(bounded_exp(logprobs - old_logprobs), advantages, clip_low, clip_high)


def dual_clip(loss: Tensor, advantages: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """A loss of ratio times advantage, at most -bound * A where A < 0: a bad token that became likely cannot outweigh
    all others (arXiv:1912.09729, with 3).

    Args:
        loss, advantages: [B, T].
        bound: > 1, on the ratio.

    Returns:
        loss [B, T], and cut [B, T] bool: tokens whose gradient is cut.
    """
    most = -bound * advantages
    cut = (advantages < 0) & (loss.detach() > most)
    return torch.where(cut, most, loss), cut


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    traj_ids: Tensor,
    clip_low: float,
    clip_high: float,
    level: Level = "sequence",
) -> tuple[Tensor, Tensor]:
    """`ppo_clip` with the trajectory's ratio s = exp(mean log-ratio over its trained tokens) (arXiv:2507.18071).

    "sequence" has s itself on each token; "token" (the paper's GSPO-token) has s in value and the token's own
    gradient, for advantages that differ within a trajectory. Where they do not, both have the same gradient under
    aggregation "sequence", the paper's. The bounds are on s, hence small: 3e-4 and 4e-4 in the paper.
    """
    s = bounded_exp(trajectory_mean(logprobs - old_logprobs, mask, traj_ids)).expand_as(logprobs)
    if level == "token":
        s = s.detach() * (logprobs - logprobs.detach()).exp()
    return _pessimistic(s, advantages, clip_low, clip_high)


def cispo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """-clip(ratio, 1 - clip_low, 1 + clip_high) A log p, the clipped ratio without gradient (arXiv:2506.13585).

    No token's gradient is cut: a ratio out of bounds only weighs no more than the bound.

    Returns:
        loss [B, T], and clipped [B, T] bool: tokens whose weight is bounded.
    """
    ratio = bounded_exp(logprobs.detach() - old_logprobs)
    weight = ratio.clamp(min=1 - clip_low, max=1 + clip_high)
    return -weight * advantages * logprobs, weight != ratio


def gmpo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    traj_ids: Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Tensor]:
    """-A times the geometric mean of the trajectory's clipped token ratios (arXiv:2507.20673).

    Every log-ratio is clipped to [-clip_low, clip_high] on the side that A's sign rewards, then they are averaged
    over the trajectory's trained tokens; 0.4 on both sides in the paper. Under aggregation "sequence" a
    trajectory's tokens sum up to the paper's objective, and a clipped token gets no gradient of its own.
    """
    log_ratio = logprobs - old_logprobs
    bounded = log_ratio.clamp(-clip_low, clip_high)
    kept = torch.where(advantages < 0, torch.maximum(log_ratio, bounded), torch.minimum(log_ratio, bounded))
    return -bounded_exp(trajectory_mean(kept, mask, traj_ids)) * advantages, (kept != log_ratio).detach()


def nft(
    logprobs: Tensor,
    old_logprobs: Tensor,
    right: Tensor,
    pass_rates: Tensor,
    mask: Tensor,
    traj_ids: Tensor,
    level: Level = "token",
    eps_right: float = 0.0,
    eps_wrong: float = 1.0,
) -> Tensor:
    """Negative-aware fine-tuning (arXiv:2505.18116, eq. 10), [B, T]: likelihood of right answers under the
    policy, and of wrong ones under the policy that it implies for them.

    With R = policy / old and p the pass rate: -log max(R, eps_right) where right, else
    -log max((1 - p R) / (1 - p), eps_wrong). Each max is in value only: the gradient is that of the unclamped number
    over the clamped one. At R = 1 and eps_wrong <= 1 the gradient is -1 where right and p / (1 - p) where wrong.

    Args:
        right: [B, 1] bool.
        pass_rates: [B, 1], share of right answers to the row's task; clamped to [0.02, 0.98].
        level: R per "token", or the product over the "sequence", the same loss on each of its tokens.
        eps_right: a right answer less likely than this share of before is pulled back with less force; 0 for none.
        eps_wrong: > 0; 1 in the paper. Small ones push unlikely wrong tokens hard.
    """
    log_ratio = logprobs - old_logprobs
    if level == "sequence":
        log_ratio = trajectory_sum(log_ratio, mask, traj_ids).expand_as(log_ratio)
    log_ratio = log_ratio.clamp(max=MAX_LOG_RATIO)
    ratio, p = log_ratio.exp(), pass_rates.clamp(*PASS_RATES)
    for_right = _log_clamped(ratio, eps_right) if eps_right else log_ratio
    for_wrong = _log_clamped((1 - p * ratio) / (1 - p), eps_wrong)
    return -torch.where(right, for_right, for_wrong)


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None = None) -> tuple[Tensor, Tensor]:
    """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2: the critic's loss, pessimistic as the policy's.

    None leaves the second term out.

    Returns:
        loss [B, T], and clipped [B, T] bool: tokens whose gradient is cut.
    """
    free = (values - returns).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    bounded = (torch.minimum(torch.maximum(values, old_values - clip), old_values + clip) - returns).square()
    return torch.maximum(free, bounded) / 2, (bounded > free).detach()


def _pessimistic(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    free = ratio * advantages
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -torch.minimum(free, bounded), (bounded < free).detach()


def _log_clamped(x: Tensor, least: float) -> Tensor:
    """log max(x, least) with the gradient of x / max(x, least)."""
    return (x + (x.clamp(min=least) - x).detach()).log()
