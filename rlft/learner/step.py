"""One update around the models: which streams are filled when, whether there is anything to learn, and what is measured.

Axes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlft.algorithms.base import Algorithm, Need
from rlft.algorithms.corrections import mismatch
from rlft.learner.batching import minibatches
from rlft.learner.meter import Meter
from rlft.learner.rows import Row
from rlft.types import Batch, Setting, Source


@dataclass(frozen=True)
class Part:
    """The trajectories of one optimizer step, and its place among the steps of an update."""

    batch: Batch
    done: float  # share of the steps before it
    share: float  # of one step


def parts(batch: Batch, num_epochs: int, num_minibatches: int, generator: torch.Generator) -> list[Part]:
    """An update's optimizer steps, in order."""
    cut = [part for _ in range(num_epochs) for part in minibatches(batch, num_minibatches, generator)]
    return [Part(part, i / len(cut), 1 / len(cut)) for i, part in enumerate(cut)]


def early_needs(algorithm: Algorithm) -> frozenset[Need]:
    """What must be filled before `algorithm.advantages`."""
    return algorithm.needs - algorithm.loss_only


def late_needs(algorithm: Algorithm, num_steps: int) -> frozenset[Need]:
    """What must be filled after `algorithm.advantages`, for an update of `num_steps` optimizer steps of the policy.

    In an update of one step the policy has not moved when the loss is taken: `old_logprobs` are what the loss's own
    forward finds, so a pass before it would find the same once more (`with_own_old_logprobs`).
    """
    return algorithm.loss_only - ({"old_logprobs"} if num_steps == 1 else set())


def with_own_old_logprobs(micro: Batch, logprobs: Tensor, algorithm: Algorithm) -> Batch:
    """A micro-batch with `old_logprobs` as the loss's forward found them, where the algorithm needs them and no pass filled them."""
    if micro.old_logprobs is not None or "old_logprobs" not in algorithm.needs:
        return micro
    return replace(micro, old_logprobs=logprobs.detach())


def num_signals(batch: Batch, algorithm: Algorithm) -> Tensor:
    """This rank's trained tokens from which the algorithm can learn, float64 []; 0 on all ranks is a step without signal.

    They are the tokens of the loss mask, and where the algorithm names its `signal` those of them on which it is not 0.
    """
    stream = getattr(batch, algorithm.signal) if algorithm.signal else None
    told = batch.loss_mask if stream is None else batch.loss_mask & (stream != 0)
    return told.sum().double()


def with_setting(batch: Batch, rows: Sequence[Row], setting: Setting) -> Batch:
    """The batch with the numbers that the driver sent along: pass rates by group, controls on every token."""
    rates = [setting.pass_rates.get(row.group_id, 0.5) for row in rows] or [0.5]
    controls = {name: torch.full_like(batch.rewards, value) for name, value in setting.controls.items()}
    return replace(batch, pass_rates=torch.tensor(rates), **controls)


def measure_rollout_gap(batch: Batch, meter: Meter) -> None:
    """How far the engine's log-probabilities are from the learner's, on trained tokens that the policy sampled."""
    if batch.old_logprobs is None:
        return
    sampled = batch.loss_mask & (batch.sources == Source.POLICY)
    gap = torch.where(sampled, batch.rollout_logprobs - batch.old_logprobs, 0.0)
    meter.add_ratio("kl/rollout", gap.sum(), sampled.sum())
    meter.most("kl/rollout_abs_max", gap.abs().max())
    for name, distance in mismatch(batch.old_logprobs, batch.rollout_logprobs).items():
        meter.add_ratio(name, torch.where(sampled, distance, 0.0).sum(), sampled.sum())
