"""The clipped surrogate, defined by a table."""

import math

import pytest
import torch

from rlft.algorithms.losses import ppo_clip


def column(values):
    return torch.tensor([values])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "cut"),
    [
        (1.1, 2.0, -2.2, False),  # inside
        (1.5, 2.0, -2.6, True),  # a good token is likely enough: bounded at 1.3
        (0.5, 2.0, -1.0, False),  # a good token became unlikely: pull it back
        (1.1, -2.0, 2.2, False),
        (1.5, -2.0, 3.0, False),  # a bad token became likely: push it down
        (0.5, -2.0, 1.6, True),  # a bad token is unlikely enough: bounded at 0.8
    ],
)
def test_six_rows_define_the_clip(ratio, advantage, expected, cut):
    logprobs = column([math.log(ratio) - 1.0]).requires_grad_()
    loss, clipped = ppo_clip(logprobs, column([-1.0]), column([advantage]), clip_low=0.2, clip_high=0.3)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, abs=1e-6) and bool(clipped) is cut
    assert logprobs.grad.item() == pytest.approx(0.0 if cut else -ratio * advantage, abs=1e-6)


def test_at_ratio_one_the_gradient_is_reinforces():
    old = column([-0.1, -2.0, -5.0])
    advantages = column([1.0, -0.5, 0.0])
    logprobs = old.clone().requires_grad_()
    loss, clipped = ppo_clip(logprobs, old, advantages, 0.2, 0.2)
    loss.sum().backward()
    assert torch.equal(logprobs.grad, -advantages) and not clipped.any()


def test_the_loss_agrees_with_a_naive_loop():
    g = torch.Generator().manual_seed(0)
    logprobs, old, advantages = (torch.randn(5, 9, generator=g) for _ in range(3))
    loss, _ = ppo_clip(logprobs, old, advantages, 0.1, 0.4)
    for i in range(5):
        for t in range(9):
            ratio, a = math.exp(float(logprobs[i, t] - old[i, t])), float(advantages[i, t])
            assert float(loss[i, t]) == pytest.approx(-min(ratio * a, min(max(ratio, 0.9), 1.4) * a), rel=1e-5, abs=1e-6)


def test_the_clip_indicator_carries_no_gradient():
    _, clipped = ppo_clip(column([0.5]).requires_grad_(), column([0.0]), column([1.0]), 0.2, 0.2)
    assert clipped.dtype == torch.bool and not clipped.requires_grad
