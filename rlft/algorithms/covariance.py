"""Tokens whose log-probability and advantage vary together: what drives entropy down (arXiv:2505.22617).

A policy loses entropy where likely tokens are rewarded. Clip-Cov takes some such tokens out of an update,
KL-Cov holds the strongest back. Both are chosen here, once a step and over the whole step: the authors' code chooses
again in each micro-batch, from the log-probabilities of that moment, so that its choice depends on how rows are cut.
At a step's first update both see the same log-probabilities.
Axes: B rows, T tokens, N trained tokens of all ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlft.algorithms.base import Reduce
from rlft.algorithms.masking import masked


def covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor, reduce: Reduce) -> Tensor:
    """(log p - mean)(A - mean) of every trained token, [B, T] float32 without gradient, 0 off the mask.

    The means are over the N tokens. `reduce` is called once.
    """
    logprobs, advantages = masked(logprobs.detach().double(), mask), masked(advantages.double(), mask)
    count, logprob, advantage = reduce(torch.stack([mask.sum().double(), logprobs.sum(), advantages.sum()])).unbind()
    count = count.clamp(min=1)
    return masked((logprobs - logprob / count) * (advantages - advantage / count), mask).float()


def random_in_band(
    covariances: Tensor, mask: Tensor, low: float, high: float, fraction: float, token_ids: Tensor, seeds: Tensor, reduce: Reduce
) -> Tensor:
    """Clip-Cov's choice, [B, T] bool: of the tokens with low <= covariance <= high each with the same chance,
    fraction * N of them in expectation, or all when there are fewer (the paper draws exactly that number).

    A token's draw is a hash of its row up to it and of the row's seed. So the choice is the same on any rank, in any
    order of rows and with any padding; and two rows that begin alike with one seed draw alike there.

    Args:
        fraction: of the N tokens; 2e-4 in the paper, with a band of 1 to 5.
        seeds: [B] int64; the policy's version gives a prefix another draw in another step.
        reduce: called once.
    """
    band = mask & (covariances >= low) & (covariances <= high)
    total, inside = reduce(torch.stack([mask.sum(), band.sum()]).double()).unbind()
    return band & (_draws(token_ids, seeds) < fraction * total / inside.clamp(min=1))


def highest(covariances: Tensor, mask: Tensor, fraction: float, reduce: Reduce) -> Tensor:
    """KL-Cov's choice, [B, T] bool: the tokens with the highest covariances, fraction * N of them but at least one.

    Tokens as high as the last one chosen are chosen too; a covariance that is not positive never is, also
    when fewer remain.

    Args:
        fraction: of the N tokens; 2e-3 in the paper for 7B, 2e-4 for 32B.
        reduce: called 32 times, whatever the data: the threshold is bisected by counts of all ranks.
    """
    bits = masked(covariances, mask & (covariances > 0)).view(torch.int32)  # positive floats are ordered as their bits
    wanted = (reduce(mask.sum().double()) * fraction).floor().clamp(min=1)
    threshold = 0
    for bit in reversed(range(31)):
        higher = threshold | 1 << bit
        if reduce((bits >= higher).sum().double()) >= wanted:
            threshold = higher
    return bits >= max(threshold, 1)


def _draws(token_ids: Tensor, seeds: Tensor) -> Tensor:
    """A number in [0, 1) for every token, from the ids and places of its row up to it: [B, T], [B] -> [B, T] float64."""
    place = torch.arange(token_ids.shape[1], device=token_ids.device)
    prefix = _mixed(_mixed(token_ids) + place).cumsum(-1) + _mixed(seeds)[:, None]
    return _shifted(_mixed(prefix), 11).double() / 2**53


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's output function: int64 in, int64 out, every bit depends on all. Products wrap around."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """x >> by with zeros shifted in: torch shifts in the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    """64 bits as a signed number."""
    return constant - (1 << 64)
