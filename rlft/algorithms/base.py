"""An algorithm is two pure functions and a list of what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rlft.types import Batch

Need = Literal["old_logprobs", "ref_logprobs", "values"]
Aggregation = Literal["token", "sequence", "constant"]
Reduce = Callable[[Tensor], Tensor]  # sums a tensor over learner ranks; identity on one
AdvantageFn = Callable[[Batch, Reduce], Batch]
LossFn = Callable[[Tensor, Batch], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Algorithm:
    """Executed by every learner rank on its share of whole groups.

    Attributes:
        name: shown in logs.
        advantages: (batch, reduce) -> batch with `advantages` (and other streams) filled.
            Baselines over groups are local; statistics over the whole step go through `reduce`.
        loss: (logprobs [B, T], batch) -> (loss [B, T], metrics {name: [B, T], detached}).
            The learner averages metrics over trained tokens.
        needs: forward passes the learner runs before `advantages`.
        aggregation: how per-token losses become one number (algorithms/masking.py).
        max_length: tokens per trajectory of the "constant" aggregation's denominator.
    """

    name: str
    advantages: AdvantageFn
    loss: LossFn
    needs: frozenset[Need] = frozenset()
    aggregation: Aggregation = "token"
    max_length: int | None = None
