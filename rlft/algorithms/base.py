"""An algorithm is two pure functions and a list of what they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from rlft.types import Batch, Unit

Need = Literal["old_logprobs", "ref_logprobs", "values", "baselines", "demonstrations", "turn_rewards"]
Signal = Literal["advantages", "ce_weights"]
Aggregation = Literal["token", "sequence", "constant"]
Reduce = Callable[[Tensor], Tensor]  # sums a tensor over learner ranks; identity on one
AdvantageFn = Callable[[Batch, Reduce], Batch]
LossFn = Callable[[Tensor, Batch], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Control:
    """A number that moves with the run.

    Attributes:
        start: its value in the first step.
        next: (value, metrics of the step that used it, number of steps done) -> the next step's value. Pure.
    """

    start: float
    next: Callable[[float, Mapping[str, float], int], float]


@dataclass(frozen=True)
class Algorithm:
    """Executed by every learner rank on its share of whole groups.

    Attributes:
        name: shown in logs.
        advantages: (batch, reduce) -> batch with `advantages` (and other streams) filled.
            Baselines over groups are local; statistics over the whole step go through `reduce`.
        loss: (logprobs [B, T], batch) -> (loss [B, T], metrics {name: [B, T], detached}).
            The learner averages metrics over trained tokens.
        needs: what a run must provide before `advantages`. Forward passes of the learner: "old_logprobs",
            "ref_logprobs", "values" (a critic). From the rollouts: "baselines" (the reward of a greedy answer),
            "demonstrations" (a row with the task's answer beside the sampled ones, sources DEMONSTRATION),
            "turn_rewards" (a reward for every turn).
        aggregation: how per-token losses become one number (algorithms/masking.py).
        max_length: tokens per trajectory of the "constant" aggregation's denominator.
        value_loss: (values [B, T], batch) -> the same for the critic. With "values" in needs only.
        unit: rows that the loss has to see together: "row" alone, all of a "trajectory", or all of a "pair".
        tags: turns that are trained on, by their tag; empty for all.
        parts: reward parts that stand in `Batch.parts`, in this order.
        controls: numbers that move with the run, by the stream of the batch that each fills ("kl_coef").
        min_group: trajectories of a task from which on their rewards teach anything; 2 where they are compared with each other.
        may_truncate: whether samples may come from a truncated distribution (top_p, top_k, min_p). A ratio of probabilities and
            the gradient of an expectation hold for what was sampled from alone; imitation and preferences take any sample.
        loss_only: those of `needs` that `loss` alone reads, neither `advantages` nor `value_loss`. The learner fills them after
            `advantages`, and where an update is one optimizer step `old_logprobs` are the loss's own log-probabilities, detached.
        signal: the stream without which the loss has no gradient. Where it is 0 on all trained tokens of a step, the step
            is skipped. None: every step with a trained token is made.
        by_outcome: whether a group teaches by what its members earned in all, compared with each other, and by nothing else:
            where that is equal, the surrogate has no gradient, and `rollout.drop_no_signal` may leave the group out.
    """

    name: str
    advantages: AdvantageFn
    loss: LossFn
    needs: frozenset[Need] = frozenset()
    aggregation: Aggregation = "token"
    max_length: int | None = None
    value_loss: LossFn | None = None
    unit: Unit = "row"
    tags: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    controls: Mapping[str, Control] = field(default_factory=dict)
    min_group: int = 1
    may_truncate: bool = False
    loss_only: frozenset[Need] = frozenset()
    signal: Signal | None = None
    by_outcome: bool = False
