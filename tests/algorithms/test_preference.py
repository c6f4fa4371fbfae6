"""The Bradley-Terry loss: by hand, by its gradient, and at extremes."""

import math

import torch

from rlft.algorithms.preference import bradley_terry


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
