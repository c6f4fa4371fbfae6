"""KTO: a step by hand and against a naive oracle, where its reference point comes from, and the laws."""

import math
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.kto import kto
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.errors import ConfigError
from rlft.learner.batching import micro_batches
from rlft.testing.checks import check_algorithm, example_batch, on_ranks

OPTIONS = [{}, {"threshold": 0.0, "beta": 0.4}, {"threshold": -0.5, "desirable": 1.5, "undesirable": 0.5}]


def identity(x):
    return x


def close_to_reference(batch, drift):
    """The batch with a policy that, at the step's start, is `drift` nats per token above its reference."""
    return replace(batch, ref_logprobs=torch.where(batch.loss_mask, batch.old_logprobs - drift, 0.0))


def some_logprobs(batch):
    g = torch.Generator().manual_seed(5)
    return torch.where(batch.loss_mask, batch.old_logprobs + 0.5 * torch.randn(batch.token_ids.shape, generator=g), 0.0)


def weighed(algorithm, batch, reduce=identity):
    filled = algorithm.advantages(batch, reduce)
    return replace(filled, loss_weights=loss_weights(filled.loss_mask, filled.traj_ids, algorithm.aggregation, reduce))


def step(algorithm, batch, logprobs):
    logprobs = logprobs.detach().clone().requires_grad_()
    batch = weighed(algorithm, batch)
    loss = weighted_sum(algorithm.loss(logprobs, batch)[0], batch.loss_weights)
    loss.backward()
    return float(loss.detach()), logprobs.grad


def oracle(batch, logprobs, beta=0.1, threshold=1.0, desirable=1.0, undesirable=1.0):
    """One trajectory at a time, with floats."""
    start, now, total = {}, {}, {}
    for i, m in enumerate(batch.traj_ids.tolist()):
        total[m] = total.get(m, 0.0) + float(batch.rewards[i].sum())
        for t in batch.loss_mask[i].nonzero().flatten().tolist():
            start[m] = start.get(m, 0.0) + float(batch.old_logprobs[i, t]) - float(batch.ref_logprobs[i, t])
            now[m] = now.get(m, 0.0) + float(logprobs[i, t]) - float(batch.ref_logprobs[i, t])
    z0 = max(0.0, math.fsum(start.values()) / len(start))
    losses = []
    for m in now:
        good = total[m] >= threshold
        value = 1 / (1 + math.exp(-beta * (now[m] - z0 if good else z0 - now[m])))
        losses.append((desirable if good else undesirable) * (1 - value))
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("drift", [0.3, -0.3])
def test_a_step_agrees_with_a_naive_oracle(options, drift):
    batch = close_to_reference(example_batch((4, 3, 1, 5), tokens=14, seed=2), drift)
    logprobs = some_logprobs(batch)
    assert step(kto(**options), batch, logprobs)[0] == pytest.approx(oracle(batch, logprobs, **options), rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_combination_keeps_the_laws(options):
    check_algorithm(kto(**options), baseline=False)


def two_answers():
    """A desirable trajectory of two tokens and an undesirable one of one token."""
    mask = torch.tensor([[False, True, True, False], [False, True, False, False]])
    rewards = torch.zeros(2, 4)
    rewards[0, 2] = 1.0
    batch = replace(example_batch((2,), tokens=4), loss_mask=mask, rewards=rewards)
    old = torch.tensor([[0.0, -1.0, -1.0, 0.0], [0.0, -2.0, 0.0, 0.0]])
    ref = torch.tensor([[0.0, -2.0, -3.0, 0.0], [0.0, -3.0, 0.0, 0.0]])
    return replace(batch, old_logprobs=old, ref_logprobs=ref)


def test_a_step_worked_by_hand():
    # log-ratios 1 + 2 = 3 and 1 at the start: z0 is their mean, 2. With beta 1: 1 above it and 1 below, both as they should be.
    loss, gradient = step(kto(beta=1.0, desirable=3.0), two_answers(), two_answers().old_logprobs)
    low = 1 / (1 + math.e)
    assert loss == pytest.approx((3 * low + low) / 2)
    slope = low * (1 - low) / 2
    torch.testing.assert_close(gradient, torch.tensor([[0, -3 * slope, -3 * slope, 0], [0, slope, 0, 0]]))
    batch = weighed(kto(beta=1.0), two_answers())
    _, metrics = kto(beta=1.0).loss(two_answers().old_logprobs, batch)
    shown = {name: metrics[name].expand(2, 4)[batch.loss_mask].tolist() for name in metrics if name != "kl/ref"}
    assert shown == {"preference/accuracy": [1.0] * 3, "preference/margin": [1.0] * 3, "preference/anchor": [2.0] * 3}
    k3 = [math.exp(d) - 1 - d for d in (-1, -2, -1)]
    assert metrics["kl/ref"][batch.loss_mask].tolist() == pytest.approx(k3)


def test_the_reference_point_stays_where_the_step_started():
    algorithm, batch = kto(threshold=0.0), close_to_reference(example_batch(), 0.3)
    filled = algorithm.advantages(batch, identity)
    assert torch.equal(filled.baselines, algorithm.advantages(replace(batch, rollout_logprobs=batch.ref_logprobs), identity).baselines)
    moved = algorithm.advantages(replace(batch, old_logprobs=batch.old_logprobs + 0.1), identity)
    tokens = batch.loss_mask.sum() / len(batch.traj_ids.unique())
    torch.testing.assert_close(filled.baselines, (0.3 * tokens).expand(len(batch.traj_ids)), rtol=1e-4, atol=0)
    torch.testing.assert_close(moved.baselines, filled.baselines + 0.1 * tokens, rtol=1e-4, atol=0)


def test_the_reference_point_is_never_below_0():
    batch = close_to_reference(example_batch(), -0.3)
    assert kto().advantages(batch, identity).baselines.tolist() == [0.0] * len(batch.traj_ids)


def test_the_reference_point_is_the_mean_over_all_ranks():
    batch = close_to_reference(example_batch((4, 3, 5)), 0.3)
    whole = kto().advantages(batch, identity).baselines
    first = batch.group_ids < 1
    parts = on_ranks(kto().advantages, [batch.rows(first), batch.rows(~first)])
    torch.testing.assert_close(torch.cat([part.baselines for part in parts]), torch.cat([whole[first], whole[~first]]))
    alone = kto().advantages(batch.rows(first), identity).baselines
    assert (alone - whole[first]).abs().min() > 0.01


def test_a_trajectory_is_judged_as_a_whole_over_its_rows():
    batch = example_batch((4, 3, 5), seed=1)
    algorithm, logprobs = kto(threshold=0.0, beta=1.0), some_logprobs(batch)
    filled = weighed(algorithm, replace(batch, values=logprobs))
    whole, _ = step(algorithm, batch, logprobs)

    def cut(unit):
        micros = micro_batches(filled, 1, unit=unit)
        return sum(float(weighted_sum(algorithm.loss(m.values, m)[0], m.loss_weights)) for m in micros)

    assert cut(algorithm.unit) == pytest.approx(whole, rel=1e-5)
    assert abs(cut("row") - whole) > 1e-4


def test_a_step_without_a_trained_token_costs_nothing():
    batch = example_batch((2,))
    batch = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    loss, gradient = step(kto(), batch, some_logprobs(batch))
    assert loss == 0 and not gradient.any()


REFUSED = [
    ({"beta": 0.0}, "beta: expected more than 0, got 0.0"),
    ({"desirable": 0}, "desirable: expected more than 0, got 0"),
    ({"undesirable": -1.0}, "undesirable: expected more than 0"),
    ({"threshold": None}, "threshold: expected a number, got None"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"^algorithm.{message}"):
        kto(**options)
