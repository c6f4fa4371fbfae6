"""Losses over preferences: by hand, by their gradients, and at extremes."""

import math

import pytest
import torch

from rlft.algorithms.preference import bradley_terry, dpo, ipo, kto


def test_a_table_worked_by_hand():
    chosen, rejected, margins = torch.tensor([[0.0, 2.0, 1.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]])
    expected = [math.log(2), math.log1p(math.exp(-1)), math.log1p(math.exp(3))]
    torch.testing.assert_close(bradley_terry(chosen, rejected, margins), torch.tensor(expected))


def test_its_gradient_is_the_chance_of_being_wrong():
    chosen = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    bradley_terry(chosen, rejected, torch.tensor([0.0, 0.5])).sum().backward()
    wrong = (rejected + torch.tensor([0.0, 0.5]) - chosen).sigmoid().detach()
    torch.testing.assert_close(chosen.grad, -wrong)
    torch.testing.assert_close(rejected.grad, wrong)


def test_only_differences_count():
    chosen, rejected, margins = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(bradley_terry(chosen + 9, rejected + 9, margins), bradley_terry(chosen, rejected, margins))


def test_scores_far_apart_give_finite_losses_and_gradients():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry(chosen, -chosen.detach(), torch.zeros(2))
    loss.sum().backward()
    assert loss.isfinite().all() and chosen.grad.isfinite().all() and loss.tolist() == [0.0, 2e4]


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_dpo_worked_by_hand():
    # x = 0.5 lead - margin: 0, 1, 0.5, -2
    lead, margins = torch.tensor([0.0, 2.0, 2.0, -4.0]), torch.tensor([0.0, 0.0, 0.5, 0.0])
    expected = torch.tensor([math.log(2), math.log1p(math.exp(-1)), math.log1p(math.exp(-0.5)), math.log1p(math.exp(2))])
    torch.testing.assert_close(dpo(lead, margins, 0.5), expected)
    # -log sigmoid(-x) = -log sigmoid(x) + x
    smooth = 0.9 * expected + 0.1 * (expected + torch.tensor([0.0, 1.0, 0.5, -2.0]))
    torch.testing.assert_close(dpo(lead, margins, 0.5, label_smoothing=0.1), smooth)


def test_dpos_gradient_is_beta_times_the_chance_of_being_wrong():
    lead, margins = doubles(0.0, 3.0, -1.0), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    dpo(lead, margins, 0.2).sum().backward()
    torch.testing.assert_close(lead.grad, -0.2 * (margins - 0.2 * lead.detach()).sigmoid())


def test_a_smoothed_label_wants_a_lead_of_its_log_odds():
    lead = doubles(math.log(0.9 / 0.1) / 0.2)
    dpo(lead, torch.zeros(1), 0.2, label_smoothing=0.1).backward()
    assert abs(float(lead.grad)) < 1e-12
    sure = doubles(math.log(0.9 / 0.1) / 0.2)
    dpo(sure, torch.zeros(1), 0.2).backward()
    assert float(sure.grad) < -0.01


def test_without_margin_and_smoothing_dpo_is_bradley_terry_of_the_implicit_rewards():
    chosen, rejected, margins = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(dpo(chosen - rejected, margins, 0.3), bradley_terry(0.3 * chosen, 0.3 * rejected, margins))


def test_ipo_worked_by_hand_is_least_at_a_finite_lead():
    # beta 0.25 wants a lead of 2
    lead = doubles(0.0, 2.0, 5.0)
    loss = ipo(lead, 0.25)
    assert loss.tolist() == [4.0, 0.0, 9.0]
    loss.sum().backward()
    assert lead.grad.tolist() == [-4.0, 0.0, 6.0]


def test_kto_worked_by_hand():
    # beta (log-ratio - z0) with beta 0.5, z0 1: 1, 1, 0, -1
    log_ratios, weights = doubles(3.0, 3.0, 1.0, -1.0), torch.tensor([1.0, -1.0, 2.0, -0.5], dtype=torch.float64)
    loss = kto(log_ratios, torch.ones(4), weights, 0.5)
    low, high = 1 / (1 + math.e), math.e / (1 + math.e)
    assert loss.tolist() == pytest.approx([low, high, 1.0, 0.5 * low])
    loss.sum().backward()
    slope = 0.5 * low * high
    assert log_ratios.grad.tolist() == pytest.approx([-slope, slope, -0.25, 0.5 * slope])


def test_log_ratios_far_apart_give_finite_losses_and_gradients():
    far = torch.tensor([1e4, -1e4])
    for loss in (lambda x: dpo(x, torch.zeros(2), 1.0, 0.1), lambda x: ipo(x, 1.0), lambda x: kto(x, far, far.sign(), 1.0)):
        x = far.clone().requires_grad_()
        value = loss(x)
        value.sum().backward()
        assert value.isfinite().all() and x.grad.isfinite().all()
