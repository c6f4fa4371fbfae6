"""The contract of an algorithm, as a check to call from your own test.

Axes: B rows, T tokens, M trajectories.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.masking import loss_weights, trajectory_mean, weighted_sum
from rlft.learner.batching import units
from rlft.types import PER_ROW, Batch, Source

Share = TypeVar("Share")
Result = TypeVar("Result")

RANK_DEADLINE_S = 30.0


def example_batch(group_sizes: Sequence[int] = (4, 3, 1), tokens: int = 12, seed: int = 0) -> Batch:
    """Random rows of uneven length, with every stream filled that a learner may fill.

    The first trajectory of each group of three or more is cut into two rows, the last one
    of the first group is truncated. Every trajectory has up to two turns; those of one that is cut
    have a row each. Rewards are multiples of 1/8, on the last tokens of turns. Trajectories are of several policy versions.
    """
    g = torch.Generator().manual_seed(seed)
    rows = [(traj, group, truncated) for traj, group, truncated, copies in _members(group_sizes) for _ in range(copies)]
    traj_ids, group_ids, truncated = (torch.tensor(column) for column in zip(*rows, strict=True))
    B, T = len(rows), tokens
    lengths = torch.randint(T // 2, T + 1, (B, 1), generator=g)
    t = torch.arange(T)
    real = t < lengths
    # Two prompt tokens, then the policy's with some of the environment's among them; the last is the policy's.
    trained = real & (t >= 2) & ((torch.rand(B, T, generator=g) < 0.7) | (t == lengths - 1))
    sources = torch.where(trained, Source.POLICY, torch.where(t < 2, Source.PROMPT, Source.ENVIRONMENT))

    def noise() -> Tensor:
        return torch.where(trained, -2 * torch.rand(B, T, generator=g), 0.0)

    def eighths(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=g) / 8

    second_row = torch.tensor([row > 0 and rows[row - 1][0] == traj for row, (traj, _, _) in enumerate(rows)])[:, None]
    cut = second_row | second_row.roll(-1, 0)
    later = ((t >= 2) & real & ~trained).cumsum(-1) > 0  # after the environment spoke
    turn_ids = torch.where(trained, torch.where(cut, second_row, later).long(), -1)
    ends = torch.where(turn_ids == 0, t, -1).amax(-1, keepdim=True) == t
    rewards = torch.where(t == lengths - 1, eighths(B, T), 0.0)

    return Batch(
        token_ids=torch.where(real, torch.randint(1, 50, (B, T), generator=g), 0),
        attention_mask=real,
        loss_mask=trained,
        sources=torch.where(real, sources, Source.PADDING),
        turn_ids=turn_ids,
        rewards=torch.where(ends & (turn_ids == 0), eighths(B, T), rewards),
        rollout_logprobs=noise(),
        traj_ids=traj_ids,
        group_ids=group_ids,
        policy_versions=traj_ids % 3,
        truncated=truncated,
        old_logprobs=noise(),
        ref_logprobs=noise(),
        values=noise(),
        entropy=-noise(),
        baselines=eighths(len(group_sizes))[group_ids],
        pass_rates=torch.rand(len(group_sizes), generator=g)[group_ids],
    )


def on_ranks(fn: Callable[[Share, Reduce], Result], shares: Sequence[Share]) -> list[Result]:
    """fn(share, reduce) once per share, on threads that play learner ranks.

    `reduce` sums over them, so every rank must call it equally often.
    Raises AssertionError when one waits for the others in vain.
    """
    barrier = threading.Barrier(len(shares), timeout=RANK_DEADLINE_S)
    posted: list[Tensor] = [torch.empty(0)] * len(shares)
    finished: list[int] = []

    def run(rank: int) -> Result:
        def reduce(x: Tensor) -> Tensor:
            if finished:
                raise threading.BrokenBarrierError
            posted[rank] = x
            barrier.wait()
            total = torch.stack(posted).sum(0)
            barrier.wait()
            return total

        try:
            return fn(shares[rank], reduce)
        finally:
            finished.append(rank)
            if barrier.n_waiting:
                barrier.abort()

    with ThreadPoolExecutor(len(shares)) as pool:
        futures = [pool.submit(run, rank) for rank in range(len(shares))]
        errors = [error for future in futures if (error := future.exception())]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors, "ranks: every rank must call `reduce` equally often"
    return [future.result() for future in futures]


def check_algorithm(algorithm: Algorithm, *, baseline: bool = True) -> None:
    """Raise AssertionError, naming the broken law, unless the algorithm keeps them all.

    Args:
        baseline: whether it promises a group baseline over whole trajectories: equal rewards give
            exactly 0, a constant added to all rewards changes nothing, and a trajectory keeps its
            reward when it is cut into rows. Pass False for others (a critic, plain REINFORCE, SFT).
    """
    given = _annotated(example_batch(), algorithm)
    filled = _check_advantages(algorithm, given, baseline)
    if baseline:
        _check_baseline(algorithm, given, filled)
    _check_late(algorithm, given, filled)
    _check_signal(algorithm, given)
    _check_ranks(algorithm, given, filled)
    losses = [algorithm] if algorithm.value_loss is None else [algorithm, replace(algorithm, loss=algorithm.value_loss)]
    for one in losses:
        _check_loss(one, filled)
        for logprobs in (_some_logprobs(filled), _balanced_logprobs(filled)):
            _check_split(one, filled, logprobs.detach())
        _check_mask(one, filled)
        _check_layout(one, given, filled)


def _annotated(batch: Batch, algorithm: Algorithm) -> Batch:
    """Only what the algorithm declared: an undeclared field is absent, as in a run."""
    absent = {"old_logprobs", "ref_logprobs", "values", "baselines"} - algorithm.needs
    g = torch.Generator().manual_seed(2)
    parts = torch.randint(-8, 9, (int(batch.traj_ids.max()) + 1, len(algorithm.parts)), generator=g)[batch.traj_ids] / 8
    batch = replace(batch, **dict.fromkeys(absent), parts=parts if algorithm.parts else None)
    if "demonstrations" not in algorithm.needs:
        return batch
    last = torch.zeros_like(batch.group_ids).scatter_reduce(0, batch.group_ids, batch.traj_ids, "amax")[batch.group_ids] == batch.traj_ids
    return replace(batch, sources=torch.where(batch.loss_mask & last[:, None], Source.DEMONSTRATION, batch.sources))


def _check_advantages(algorithm: Algorithm, given: Batch, baseline: bool) -> Batch:
    before = given.map(torch.clone)
    try:
        filled = algorithm.advantages(given, _identity)
        algorithm.loss(_some_logprobs(given), filled)
    except (TypeError, AttributeError, ValueError) as error:
        raise AssertionError(f"needs: failed on a batch with only {sorted(algorithm.needs)} filled: {error}") from error
    for f in fields(Batch):
        old, now = getattr(before, f.name), getattr(given, f.name)
        assert old is None or torch.equal(old, now), f"pure: advantages changed the given batch's {f.name} in place"
    for name in ("token_ids", "attention_mask", "traj_ids", "group_ids"):
        assert torch.equal(getattr(filled, name), getattr(given, name)), f"pure: advantages must return {name} unchanged"
    assert not (filled.loss_mask & ~given.loss_mask).any(), "mask: advantages may shrink the loss mask, never widen it"
    assert filled.loss_mask.any(), "mask: advantages leave no token to train on; is a need undeclared?"
    assert filled.advantages is not None or not baseline, "advantages: must fill Batch.advantages"
    if filled.advantages is not None:
        assert filled.advantages.isfinite().all(), "advantages: must be finite"
        assert not filled.advantages[~filled.loss_mask].any(), "advantages: must be 0 off the loss mask"
    return filled


def _check_baseline(algorithm: Algorithm, given: Batch, filled: Batch) -> None:
    last = _last_token(given)
    no_kl = {} if given.ref_logprobs is None or given.old_logprobs is None else {"ref_logprobs": given.old_logprobs}
    for reward in (0.0, 0.1, 1000.1):
        equal = replace(given, rewards=torch.where(last, reward, 0.0), **no_kl)
        advantages = algorithm.advantages(equal, _identity).advantages
        assert advantages is not None and not advantages.any(), f"baseline: equal rewards ({reward}) must give advantages of exactly 0"
    _, size = torch.unique(given.group_ids, return_counts=True)
    lone = size[given.group_ids] == 1
    assert not _advantages(filled)[lone].any(), "baseline: a group's lone member must get exactly 0"
    shifted = algorithm.advantages(replace(given, rewards=given.rewards + torch.where(last, 8.0, 0.0)), _identity)
    assert _close(shifted, filled), "baseline: a constant added to every reward must change nothing"
    origin, halves = _cut_in_two(given, row=2)
    cut = algorithm.advantages(halves, _identity)
    expected = torch.where(cut.loss_mask, _advantages(filled)[origin], 0.0)
    assert torch.allclose(_advantages(cut), expected, atol=1e-4), "rows: a trajectory cut into two rows must keep its reward"


def _check_late(algorithm: Algorithm, given: Batch, filled: Batch) -> None:
    late = algorithm.loss_only
    assert late <= algorithm.needs, f"loss_only: names {sorted(late - algorithm.needs)}, which is not in needs"
    try:
        without = algorithm.advantages(replace(given, **dict.fromkeys(late)), _identity)
        told = replace(filled, **dict.fromkeys(late))
        if algorithm.value_loss is not None:
            algorithm.value_loss(_some_logprobs(filled), told)
    except (TypeError, AttributeError, ValueError) as error:
        raise AssertionError(f"loss_only: advantages or value_loss read one of {sorted(late)}: {error}") from error
    for f in fields(Batch):
        one, other = getattr(told, f.name), getattr(without, f.name)
        same = one is other is None or (one is not None and other is not None and torch.equal(one, other))
        assert same, f"loss_only: {f.name} as advantages leave it must not depend on {sorted(late)}"


def _check_signal(algorithm: Algorithm, given: Batch) -> None:
    if algorithm.signal is None:
        return
    nothing = {name: torch.zeros_like(x) for name in ("rewards", "baselines", "parts") if (x := getattr(given, name)) is not None}
    filled = algorithm.advantages(replace(given, **nothing), _identity)
    filled = replace(filled, **{algorithm.signal: torch.zeros_like(filled.rewards)})
    _, gradient = _step(algorithm, filled, _some_logprobs(filled))
    assert not gradient.any(), f"signal: where {algorithm.signal} are 0 nothing may be learned, or the step cannot be skipped"


def _check_ranks(algorithm: Algorithm, given: Batch, filled: Batch) -> None:
    first = given.group_ids < int(given.group_ids.max())
    shares = [_renumbered(given.rows(rows)) for rows in (first, ~first)]
    parts = on_ranks(algorithm.advantages, shares)
    for name in ("advantages", "returns", "kl_coef", "ce_weights", "is_weights", "loss_mask", "pass_rates"):
        if (whole := getattr(filled, name)) is not None:
            got = torch.cat([getattr(part, name) for part in parts]).float()
            want = torch.cat([whole[first], whole[~first]]).float()
            assert torch.allclose(got, want, atol=1e-5), f"ranks: {name} must not depend on which rank holds which group"


def _check_loss(algorithm: Algorithm, filled: Batch) -> None:
    per_token, metrics = algorithm.loss(_some_logprobs(filled), filled)
    shape = filled.token_ids.shape
    assert per_token.shape == shape, f"loss: one number per token, expected {tuple(shape)}, got {tuple(per_token.shape)}"
    assert per_token[filled.loss_mask].isfinite().all(), "loss: must be finite on trained tokens"
    for name, metric in metrics.items():
        assert metric.shape == shape, f"metrics: one number per token, {name} is {tuple(metric.shape)}"
        assert not metric.requires_grad, f"metrics: {name} must be detached"


def _check_split(algorithm: Algorithm, filled: Batch, logprobs: Tensor) -> None:
    whole, gradient = _step(algorithm, filled, logprobs)
    weighed = _weighed(algorithm, filled)
    _, metrics = algorithm.loss(logprobs, weighed)
    total, pieces = 0.0, torch.zeros_like(gradient)
    kept = units(filled, algorithm.unit)
    for start in range(min(3, len(kept))):
        rows = [row for unit in kept[start::3] for row in unit]
        part, pieces[rows] = _backward(algorithm, weighed.rows(rows), logprobs[rows])
        total += part
        on = filled.loss_mask[rows]
        for name, metric in algorithm.loss(logprobs[rows], weighed.rows(rows))[1].items():
            same = torch.allclose(metric[on].float(), metrics[name][rows][on].float(), atol=1e-5)
            assert same, f"split: metric {name} must not depend on how rows are cut into micro-batches"
    same = abs(total - whole) < 1e-5 and torch.allclose(pieces, gradient, atol=1e-6)
    assert same, "split: loss and gradient must not depend on how rows are cut into micro-batches"


def _check_mask(algorithm: Algorithm, filled: Batch) -> None:
    mask = filled.loss_mask
    whole, gradient = _step(algorithm, filled, _some_logprobs(filled))
    assert gradient.isfinite().all() and not gradient[~mask].any(), "mask: tokens off the loss mask must receive no gradient"
    streams = ("rollout_logprobs", "old_logprobs", "ref_logprobs", "values", "entropy")
    holes = {name: torch.where(mask, x, torch.nan) for name in streams if (x := getattr(filled, name)) is not None}
    logprobs = torch.where(mask, _some_logprobs(filled).detach(), torch.nan)
    got, with_holes = _step(algorithm, replace(filled, **holes), logprobs)
    same = abs(got - whole) < 1e-6 and torch.allclose(with_holes, gradient, atol=1e-6)
    assert same, "mask: NaN off the loss mask must be harmless; pass a loss's inputs through `masking.masked`"


def _check_layout(algorithm: Algorithm, given: Batch, filled: Batch) -> None:
    logprobs = _some_logprobs(given).detach()
    whole, gradient = _step(algorithm, filled, logprobs)

    order = torch.arange(len(logprobs) - 1, -1, -1)
    turned = algorithm.advantages(given.rows(order), _identity)
    got, moved = _step(algorithm, turned, logprobs[order])
    same = abs(got - whole) < 1e-5 and torch.allclose(moved, gradient[order], atol=1e-6)
    assert same, "order: the order of rows must change nothing"

    wide = algorithm.advantages(_widened(given, 5), _identity)
    got, padded = _step(algorithm, wide, torch.nn.functional.pad(logprobs, (0, 5)))
    same = abs(got - whole) < 1e-5 and torch.allclose(padded[:, :-5], gradient, atol=1e-6) and not padded[:, -5:].any()
    assert same, "padding: more padding must change nothing"


def _members(group_sizes: Sequence[int]) -> list[tuple[int, int, bool, int]]:
    """(trajectory, group, truncated, rows) of each trajectory."""
    out: list[tuple[int, int, bool, int]] = []
    for group, size in enumerate(group_sizes):
        for i in range(size):
            out.append((len(out), group, group == 0 and i == size - 1, 2 if i == 0 and size >= 3 else 1))
    return out


def _identity(x: Tensor) -> Tensor:
    return x


def _some_logprobs(batch: Batch) -> Tensor:
    """Log-probabilities around the engine's, some ratios inside a usual clip and some beyond."""
    g = torch.Generator().manual_seed(1)
    around = batch.rollout_logprobs + 0.4 * torch.randn(batch.rollout_logprobs.shape, generator=g)
    return torch.where(batch.loss_mask, around, 0.0).requires_grad_()


def _balanced_logprobs(batch: Batch) -> Tensor:
    """Log-probabilities that leave the old policy's token by token, but not in the mean of a trajectory:
    inside the narrowest clip of whole trajectories."""
    g, mask = torch.Generator().manual_seed(3), batch.loss_mask
    old = batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs
    apart = 0.3 * torch.randn(old.shape, generator=g)
    return torch.where(mask, old + apart - trajectory_mean(apart, mask, batch.traj_ids), 0.0)


def _weighed(algorithm: Algorithm, batch: Batch) -> Batch:
    weights = loss_weights(batch.loss_mask, batch.traj_ids, algorithm.aggregation, _identity, algorithm.max_length)
    return replace(batch, loss_weights=weights)


def _backward(algorithm: Algorithm, weighed: Batch, logprobs: Tensor) -> tuple[float, Tensor]:
    logprobs = logprobs.detach().clone().requires_grad_()
    per_token, _ = algorithm.loss(logprobs, weighed)
    assert weighed.loss_weights is not None
    total = weighted_sum(per_token, weighed.loss_weights)
    assert total.requires_grad, "loss: does not depend on logprobs"
    (gradient,) = torch.autograd.grad(total, logprobs)
    return float(total.detach()), gradient


def _step(algorithm: Algorithm, filled: Batch, logprobs: Tensor) -> tuple[float, Tensor]:
    """Loss and gradient [B, T] of the whole batch as one optimizer step."""
    return _backward(algorithm, _weighed(algorithm, filled), logprobs)


def _advantages(batch: Batch) -> Tensor:
    assert batch.advantages is not None, "advantages: must fill Batch.advantages"
    return batch.advantages


def _close(one: Batch, other: Batch) -> bool:
    return torch.allclose(_advantages(one), _advantages(other), atol=1e-4)


def _last_token(batch: Batch) -> Tensor:
    """One token of each trajectory, [B, T] bool: the last real one of its last row."""
    B, T = batch.token_ids.shape
    later = torch.triu(batch.traj_ids[:, None] == batch.traj_ids, diagonal=1).any(-1)
    return ~later[:, None] & (torch.arange(T) == batch.attention_mask.sum(-1, keepdim=True) - 1)


def _cut_in_two(batch: Batch, row: int) -> tuple[list[int], Batch]:
    """The batch with one more row, which takes over the last token of `row` and part of its
    reward; and the row that each came from."""
    origin = [*range(len(batch.traj_ids)), row]
    cut = batch.rows(origin)
    last = int(batch.attention_mask[row].sum()) - 1
    loss_mask, rewards = cut.loss_mask.clone(), cut.rewards.clone()
    loss_mask[row, last:], loss_mask[-1, :last] = False, False
    rewards[-1, :last] = 0.0
    rewards[row, last], rewards[row, last - 1] = 0.0, rewards[row, last - 1] + 0.5
    rewards[-1, last] -= 0.5
    return origin, replace(cut, loss_mask=loss_mask, rewards=rewards)


def _renumbered(batch: Batch) -> Batch:
    """Ids counted from 0, as on a learner rank."""
    return replace(batch, traj_ids=batch.traj_ids - batch.traj_ids.min(), group_ids=batch.group_ids - batch.group_ids.min())


def _widened(batch: Batch, by: int) -> Batch:
    fill = {"sources": int(Source.PADDING), "turn_ids": -1}
    wide = {
        f.name: torch.nn.functional.pad(x, (0, by), value=fill.get(f.name, 0))
        for f in fields(Batch)
        if f.name not in PER_ROW and (x := getattr(batch, f.name)) is not None
    }
    return Batch(**{name: getattr(batch, name) for name in PER_ROW}, **wide)
