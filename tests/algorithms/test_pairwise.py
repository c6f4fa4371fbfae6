"""Losses of whole pairs: one step by hand and against a naive oracle, and what holds however a step is cut."""

import math
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.dpo import dpo, ipo, spin
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.learner.batching import micro_batches, minibatches
from rlft.testing.checks import check_algorithm, example_batch, on_ranks

OPTIONS = [
    (dpo, {}),
    (dpo, {"pairs": "ranked", "margin_coef": 0.5, "beta": 0.7}),
    (dpo, {"pairs": "correct_wrong", "threshold": 0.0, "label_smoothing": 0.2}),
    (dpo, {"pairs": "ranked", "min_gap": 1.0, "suffix": True}),
    (ipo, {"beta": 0.3, "average": False}),
    (ipo, {"pairs": "ranked", "average": True}),
]


def identity(x):
    return x


def some_logprobs(batch):
    g = torch.Generator().manual_seed(5)
    return torch.where(batch.loss_mask, batch.ref_logprobs + 0.5 * torch.randn(batch.token_ids.shape, generator=g), 0.0)


def weighed(algorithm, batch, reduce=identity):
    filled = algorithm.advantages(batch, reduce)
    return replace(filled, loss_weights=loss_weights(filled.loss_mask, filled.traj_ids, algorithm.aggregation, reduce))


def step(algorithm, batch, logprobs):
    """Loss and gradient of a step that is computed as a whole."""
    logprobs = logprobs.detach().clone().requires_grad_()
    batch = weighed(algorithm, batch)
    loss = weighted_sum(algorithm.loss(logprobs, batch)[0], batch.loss_weights)
    loss.backward()
    return float(loss.detach()), logprobs.grad


def oracle(make, batch, logprobs, beta=0.1, pairs="best_worst", threshold=1.0, min_gap=0.0, margin_coef=0.0, label_smoothing=0.0,
           suffix=False, average=False):  # fmt: skip
    """The mean over pairs, with one list of tokens for each trajectory."""
    total, group, tokens = {}, {}, {}
    for i, m in enumerate(batch.traj_ids.tolist()):
        group[m] = int(batch.group_ids[i])
        total[m] = total.get(m, 0.0) + float(batch.rewards[i].sum())
        tokens.setdefault(m, []).extend((i, t) for t in range(batch.token_ids.shape[1]) if batch.loss_mask[i, t])
    found = []
    for g in sorted(set(group.values())):
        members = sorted((m for m in total if group[m] == g), key=lambda m: (-total[m], m))
        if pairs == "correct_wrong":
            right, wrong = (sorted(m for m in members if (total[m] >= threshold) == yes) for yes in (True, False))
            found += zip(right, wrong, strict=False)
        else:
            facing = [(members[k], members[-1 - k]) for k in range(len(members) // 2)][: 1 if pairs == "best_worst" else None]
            found += [(a, b) for a, b in facing if total[a] - total[b] >= max(min_gap, 1e-9)]
    losses = []
    for a, b in found:
        sums = [math.fsum(float(logprobs[i, t]) - float(batch.ref_logprobs[i, t]) for i, t in tokens[m]) for m in (a, b)]
        if average:
            sums = [x / len(tokens[m]) for x, m in zip(sums, (a, b), strict=True)]
        lead = sums[0] - sums[1]
        x = beta * lead - margin_coef * (total[a] - total[b])
        sure = [math.log1p(math.exp(-x)), math.log1p(math.exp(x))]
        losses.append((lead - 0.5 / beta) ** 2 if make is ipo else (1 - label_smoothing) * sure[0] + label_smoothing * sure[1])
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize(("make", "options"), OPTIONS, ids=str)
def test_a_step_agrees_with_a_naive_oracle(make, options):
    batch = example_batch((4, 3, 1, 5), tokens=14, seed=2)
    logprobs = some_logprobs(batch)
    assert step(make(**options), batch, logprobs)[0] == pytest.approx(oracle(make, batch, logprobs, **options), rel=1e-5)


@pytest.mark.parametrize(("make", "options"), [*OPTIONS, (spin, {}), (spin, {"beta": 0.4, "suffix": True})], ids=str)
def test_every_combination_keeps_the_laws(make, options):
    check_algorithm(make(**options), baseline=False)


def one_pair():
    """Trajectory 0 of two tokens, earning 1, and trajectory 1 of three, earning 0, between environment tokens."""
    batch = example_batch((2,), tokens=6)
    mask = torch.tensor([[False, True, True, False, False, False], [False, True, False, True, True, False]])
    rewards = torch.zeros(2, 6)
    rewards[0, 2] = 1.0
    return replace(batch, loss_mask=mask, rewards=rewards, ref_logprobs=torch.where(mask, -1.0, 0.0))


def test_a_pair_worked_by_hand():
    logprobs = torch.tensor([[0.0, -0.5, -1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, -1.5, -2.0, 0.0]])
    # log-ratios 0.5 + 0 and 0 - 0.5 - 1, so the lead is 2; beta 0.5, margin 0.5
    loss, gradient = step(dpo(beta=0.5, margin_coef=0.5), one_pair(), logprobs)
    assert loss == pytest.approx(math.log1p(math.exp(-0.5)))
    slope = 0.5 / (1 + math.exp(0.5))
    expected = [[0, -slope, -slope, 0, 0, 0], [0, slope, 0, slope, slope, 0]]
    torch.testing.assert_close(gradient, torch.tensor(expected))
    # means 0.25 and -0.5: a lead of 0.75 where 1 is wanted
    assert step(ipo(beta=0.5), one_pair(), logprobs)[0] == pytest.approx(0.0625)
    assert step(ipo(beta=0.5, average=False), one_pair(), logprobs)[0] == pytest.approx(1.0)


def test_metrics_of_a_pair_worked_by_hand():
    logprobs = torch.tensor([[0.0, -0.5, -1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, -1.5, -2.0, 0.0]])
    batch = weighed(dpo(), one_pair())
    _, metrics = dpo().loss(logprobs, batch)
    on = batch.loss_mask
    assert {name: x[on].tolist() for name, x in metrics.items() if name != "kl/ref"} == {
        "preference/accuracy": [1.0] * 5,
        "preference/margin": [2.0] * 5,
        "preference/chosen": [0.5] * 5,
        "preference/rejected": [-1.5] * 5,
    }
    # k3 = exp(d) - 1 - d of d = reference - policy: -0.5, 0, 0, 0.5, 1
    k3 = [math.exp(-0.5) - 0.5, 0, 0, math.exp(0.5) - 1.5, math.e - 2]
    assert metrics["kl/ref"][on].tolist() == pytest.approx(k3, abs=1e-6)
    assert not any(x[~on].any() for x in metrics.values())


def test_at_the_reference_every_pair_costs_log_2_and_pulls_by_half_of_beta():
    batch = example_batch((4, 3, 5))
    loss, gradient = step(dpo(beta=0.2, pairs="ranked"), batch, batch.ref_logprobs)
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    sides = dpo(pairs="ranked").advantages(batch, identity).advantages.sign()
    pairs = 5  # of 4, 3 and 5 trajectories, each half rounded down, all of different rewards
    torch.testing.assert_close(gradient, -sides * 0.2 / 2 / pairs)


@pytest.mark.parametrize(("make", "options"), OPTIONS, ids=str)
def test_the_gradient_is_that_of_the_plain_formula(make, options):
    algorithm, batch = make(**options), example_batch((4, 3, 5), seed=3)
    logprobs = some_logprobs(batch)
    filled = algorithm.advantages(batch, identity)
    wide = logprobs.double().requires_grad_()
    losses = []
    for pair in range(int(filled.pair_ids.max()) + 1):
        won, lost = ((filled.pair_ids == pair)[:, None] & filled.loss_mask & (side * filled.advantages > 0) for side in (1, -1))
        gap = 2 * float(filled.advantages[won].mean())
        reduce = torch.mean if options.get("average") else torch.sum
        lead = reduce((wide - batch.ref_logprobs)[won]) - reduce((wide - batch.ref_logprobs)[lost])
        beta, smoothing = options.get("beta", 0.1), options.get("label_smoothing", 0.0)
        x = torch.sigmoid(beta * lead - options.get("margin_coef", 0.0) * gap)
        losses.append((lead - 1 / (2 * beta)) ** 2 if make is ipo else -(1 - smoothing) * x.log() - smoothing * (1 - x).log())
    mean = torch.stack(losses).mean()
    mean.backward()
    loss, gradient = step(algorithm, batch, logprobs)
    torch.testing.assert_close(gradient.double(), wide.grad, atol=1e-6, rtol=1e-4)
    assert loss == pytest.approx(float(mean.detach()), rel=1e-5)


def in_micro_batches(algorithm, batch, logprobs, budget, unit):
    """Loss of a step, computed in micro-batches as a learner does."""
    batch = weighed(algorithm, replace(batch, old_logprobs=logprobs))  # the stream comes along through cuts and orders
    micros = micro_batches(batch, budget, unit=unit)
    return sum(float(weighted_sum(algorithm.loss(m.old_logprobs, m)[0], m.loss_weights)) for m in micros), len(micros)


@pytest.mark.parametrize("budget", [1, 40, 80])
def test_no_cut_into_micro_batches_that_keeps_pairs_whole_changes_the_loss(budget):
    batch = example_batch((4, 3, 1, 5), seed=1)
    algorithm, logprobs = dpo(pairs="ranked", margin_coef=0.3), some_logprobs(batch)
    whole, _ = step(algorithm, batch, logprobs)
    cut, number = in_micro_batches(algorithm, batch, logprobs, budget, algorithm.unit)
    assert number > 2 and cut == pytest.approx(whole, rel=1e-5)
    apart, _ = in_micro_batches(algorithm, batch, logprobs, budget, "row")
    assert abs(apart - whole) > 1e-3


def test_minibatches_hold_whole_pairs_and_each_is_the_mean_over_its_own():
    batch = dpo(pairs="ranked").advantages(example_batch((4, 4, 4), seed=4), identity)
    parts = minibatches(batch, 3, torch.Generator().manual_seed(0))
    seen = [set(part.pair_ids[part.pair_ids >= 0].tolist()) for part in parts]
    assert sorted(pair for part in seen for pair in part) == list(range(6))
    for part in parts:
        weights = loss_weights(part.loss_mask, part.traj_ids, "sequence", identity)
        assert float(weighted_sum(dpo().loss(part.ref_logprobs, part)[0], weights)) == pytest.approx(math.log(2), abs=1e-6)


def test_over_ranks_the_loss_is_the_mean_over_all_pairs():
    batch = example_batch((4, 3, 1, 5), seed=2)
    algorithm, logprobs = ipo(pairs="ranked"), some_logprobs(batch)
    whole, _ = step(algorithm, batch, logprobs)
    first = batch.group_ids < 2
    shares = [replace(batch, old_logprobs=logprobs).rows(rows) for rows in (first, ~first)]

    def part(share, reduce):
        filled = weighed(algorithm, share, reduce)
        return float(weighted_sum(algorithm.loss(share.old_logprobs, filled)[0], filled.loss_weights))

    assert sum(on_ranks(part, shares)) == pytest.approx(whole, rel=1e-5)
    assert abs(sum(part(share, identity) for share in shares) - whole) > 1e-3


def test_a_rank_without_a_pair_has_a_loss_of_0_that_can_be_backpropagated():
    batch = example_batch((1, 1))
    loss, gradient = step(dpo(), batch, some_logprobs(batch))
    assert loss == 0 and not gradient.any()


def test_trajectories_in_no_pair_get_no_gradient():
    batch = example_batch((4, 3))
    filled = dpo().advantages(batch, identity)
    out = (filled.pair_ids < 0)[:, None] & batch.loss_mask
    _, gradient = step(dpo(), batch, some_logprobs(batch))
    assert out.any() and not gradient[out].any() and gradient[filled.loss_mask].all()
