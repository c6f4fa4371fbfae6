"""A loss of whole preference pairs as an algorithm, and the checks of what pairs are made by.

Axes: B rows, T tokens, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

import torch
from torch import Tensor

from rlft.algorithms.base import AdvantageFn, Algorithm, Need
from rlft.algorithms.kl import k3
from rlft.algorithms.masking import masked
from rlft.algorithms.pairs import Rule
from rlft.algorithms.policy_gradient import expect, is_number
from rlft.errors import ConfigError
from rlft.types import Batch


def over_pairs(
    name: str,
    advantages: AdvantageFn,
    per_pair: Callable[[Tensor, Tensor], Tensor],
    average: bool = False,
    needs: Iterable[Need] = (),
    min_group: int = 2,
    by_outcome: bool = True,
) -> Algorithm:
    """A loss of whole pairs, (lead [P], gaps [P]) -> [P], as an algorithm whose step loss is its mean over pairs.

    Every token of a pair carries the pair's loss, and with aggregation "sequence" each of its two trajectories half the pair's weight.
    """

    def loss(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch.loss_mask
        logprobs, ref_logprobs, sides = masked(logprobs, mask), masked(batch.ref_logprobs, mask), masked(batch.advantages, mask)
        assert batch.pair_ids is not None
        ids, pair = torch.unique(batch.pair_ids, return_inverse=True)

        def total(x: Tensor, at: Tensor) -> Tensor:
            per_row = masked(x, at).sum(-1, dtype=torch.float64)
            return per_row.new_zeros(len(ids)).index_add(0, pair, per_row)

        def log_ratio(at: Tensor) -> Tensor:
            tokens = total(torch.ones_like(sides), at).clamp(min=1) if average else 1.0
            return total(logprobs - ref_logprobs, at) / tokens

        chosen, rejected = log_ratio(sides > 0), log_ratio(sides < 0)
        gaps = chosen.new_zeros(len(ids)).scatter_reduce(0, pair, 2 * sides.abs().amax(-1).to(chosen.dtype), "amax")
        lead = chosen - rejected

        def spread(x: Tensor) -> Tensor:
            return masked(x[pair, None].to(logprobs.dtype), mask)

        shown = {"preference/accuracy": lead > 0, "preference/margin": lead, "preference/chosen": chosen, "preference/rejected": rejected}
        metrics = {name: spread(x.detach()) for name, x in shown.items()}
        return spread(per_pair(lead, gaps)), {**metrics, "kl/ref": k3(logprobs.detach(), ref_logprobs)}

    needed: frozenset[Need] = frozenset({"ref_logprobs", *needs})
    return Algorithm(
        name,
        advantages,
        loss,
        needed,
        "sequence",
        unit="pair",
        min_group=min_group,
        may_truncate=True,
        loss_only=frozenset({"ref_logprobs"}),
        by_outcome=by_outcome,
    )


def check_pairing(beta: float, pairs: str, threshold: float, min_gap: float) -> None:
    """Refuse options of the making of pairs that are out of range, or have no effect. Raises ConfigError."""
    by_threshold = pairs == "correct_wrong"
    expect(is_number(beta) and beta > 0, "beta", "more than 0", beta)
    expect(pairs in get_args(Rule), "pairs", f"one of {', '.join(get_args(Rule))}", pairs)
    expect(is_number(threshold), "threshold", "a number", threshold)
    expect(is_number(min_gap, 0), "min_gap", "at least 0", min_gap)
    if threshold != 1.0 and not by_threshold:
        raise ConfigError(f"algorithm.threshold needs pairs = 'correct_wrong', got {pairs!r}")
    if min_gap and by_threshold:
        raise ConfigError("algorithm.min_gap needs pairs = 'best_worst' or 'ranked', got 'correct_wrong'")
