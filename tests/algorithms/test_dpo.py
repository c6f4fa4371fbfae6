"""DPO, IPO and SPIN: what their options do, and which are refused."""

import math
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.dpo import dpo, ipo, spin
from rlft.errors import ConfigError
from rlft.testing.checks import example_batch
from rlft.types import Source


def identity(x):
    return x


def loss_at(algorithm, lead, gap):
    """Loss of one pair whose chosen answer leads by so many nats and earned so much more."""
    batch = example_batch((2,))
    ends = torch.arange(batch.token_ids.shape[1]) == batch.attention_mask.sum(-1, keepdim=True) - 1
    earned = torch.tensor([[0.0], [gap]])
    batch = replace(batch, rewards=torch.where(ends, earned, 0.0), ref_logprobs=torch.zeros_like(batch.rewards))
    logprobs = torch.where(ends & (earned > 0), lead, 0.0)
    filled = algorithm.advantages(batch, identity)
    (loss,) = algorithm.loss(logprobs, filled)[0][filled.loss_mask].unique().tolist()
    return loss


def test_beta_scales_the_lead():
    assert loss_at(dpo(beta=0.2), 3.0, 1.0) == pytest.approx(loss_at(dpo(beta=0.1), 6.0, 1.0)) != loss_at(dpo(beta=0.1), 3.0, 1.0)


def test_a_margin_takes_the_place_of_a_lead():
    assert loss_at(dpo(beta=0.1, margin_coef=0.25), 10.0, 2.0) == pytest.approx(loss_at(dpo(beta=0.1), 5.0, 2.0))
    assert loss_at(dpo(beta=0.1), 10.0, 2.0) == loss_at(dpo(beta=0.1), 10.0, 4.0)


def test_smoothing_makes_a_large_lead_cost():
    assert loss_at(dpo(label_smoothing=0.1), 100.0, 1.0) > loss_at(dpo(label_smoothing=0.1), 22.0, 1.0)
    assert loss_at(dpo(), 100.0, 1.0) < loss_at(dpo(), 22.0, 1.0)


def test_ipo_wants_a_lead_of_half_over_beta():
    summed = ipo(beta=0.1, average=False)
    assert loss_at(summed, 5.0, 1.0) == pytest.approx(0.0) and loss_at(summed, 4.0, 1.0) == pytest.approx(1.0)


def test_spin_learns_from_demonstrations_and_not_from_rewards():
    batch = example_batch((3, 2))
    shown = torch.tensor([2, 4])  # the last trajectory of each group
    sources = torch.where(torch.isin(batch.traj_ids, shown)[:, None] & batch.loss_mask, Source.DEMONSTRATION, batch.sources)
    batch = replace(batch, sources=sources)
    filled = spin().advantages(batch, identity)
    assert torch.equal(filled.advantages, spin().advantages(replace(batch, rewards=-batch.rewards), identity).advantages)
    sides = {int(m): float(x[x != 0].unique()) for m, x in zip(batch.traj_ids, filled.advantages, strict=True) if x.any()}
    assert sides == {0: -0.5, 2: 0.5, 3: -0.5, 4: 0.5}
    assert not spin().advantages(example_batch((3, 2)), identity).loss_mask.any()


def test_spin_is_dpo_with_the_demonstration_as_the_winner():
    batch = example_batch((2,))
    shown = (batch.traj_ids == 0)[:, None] & batch.loss_mask
    filled = spin(beta=0.5).advantages(replace(batch, sources=torch.where(shown, Source.DEMONSTRATION, batch.sources)), identity)
    on, tokens = filled.loss_mask, int(shown.sum())
    loss, _ = spin(beta=0.5).loss(torch.where(shown, batch.ref_logprobs + 3.0 / tokens, batch.ref_logprobs), filled)
    torch.testing.assert_close(loss[on], torch.full_like(loss[on], math.log1p(math.exp(-1.5))))


def test_what_each_needs():
    assert dpo().needs == ipo().needs == {"ref_logprobs"}
    assert spin().needs == {"ref_logprobs", "demonstrations"}
    assert {(made.unit, made.aggregation) for made in (dpo(), ipo(), spin())} == {("pair", "sequence")}


REFUSED = [
    (dpo, {"beta": 0}, "beta: expected more than 0, got 0"),
    (ipo, {"beta": -1.0}, "beta: expected more than 0"),
    (spin, {"beta": "0.1"}, "beta: expected more than 0, got '0.1'"),
    (dpo, {"pairs": "best"}, "pairs: expected one of best_worst, correct_wrong, ranked, got 'best'"),
    (ipo, {"pairs": "demonstration"}, "pairs: expected one of"),
    (dpo, {"min_gap": -0.5, "pairs": "ranked"}, "min_gap: expected at least 0"),
    (dpo, {"threshold": 0.5}, "threshold needs pairs = 'correct_wrong', got 'best_worst'"),
    (dpo, {"threshold": "high", "pairs": "correct_wrong"}, "threshold: expected a number"),
    (ipo, {"min_gap": 0.5, "pairs": "correct_wrong"}, "min_gap needs pairs = 'best_worst' or 'ranked'"),
    (dpo, {"margin_coef": -1.0}, "margin_coef: expected at least 0"),
    (dpo, {"label_smoothing": 0.5}, "label_smoothing: expected 0 to below 0.5"),
    (dpo, {"label_smoothing": -0.1}, "label_smoothing: expected 0 to below 0.5"),
]


@pytest.mark.parametrize(("make", "options", "message"), REFUSED, ids=str)
def test_wrong_and_idle_options_are_refused(make, options, message):
    with pytest.raises(ConfigError, match=f"^algorithm.{message}"):
        make(**options)


TAKEN = [{"min_gap": 0.5}, {"pairs": "correct_wrong", "threshold": 0.5}, {"pairs": "ranked", "min_gap": 1}]


@pytest.mark.parametrize("options", TAKEN, ids=str)
def test_options_that_apply_are_taken(options):
    assert dpo(**options).name == "dpo" and ipo(**options).name == "ipo"
