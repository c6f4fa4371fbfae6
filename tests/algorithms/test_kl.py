"""KL estimators against exact enumeration over a small categorical policy."""

import math
from typing import get_args

import pytest
import torch

from rlft.algorithms.kl import ESTIMATORS, Form, k1, k2, k3, penalty
from rlft.errors import ConfigError

REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()


def policy():
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    return logits, logits.log_softmax(-1)


def kl(p, q):
    return (p.exp() * (p - q)).sum()


def gradient_of(build):
    logits, logprobs = policy()
    (gradient,) = torch.autograd.grad(build(logprobs), logits)
    return gradient


def as_loss(estimate):
    """Expected gradient of the estimate as a loss: the samples are given, only log-probabilities carry gradient."""
    return gradient_of(lambda lp: (lp.exp().detach() * estimate(lp, REF)).sum())


def as_reward(estimate):
    """Expected score-function gradient of the detached estimate as a cost."""
    return gradient_of(lambda lp: (lp.exp().detach() * estimate(lp, REF).detach() * lp).sum())


FORWARD = gradient_of(lambda lp: kl(lp, REF))  # KL(policy || ref)
REVERSE = gradient_of(lambda lp: kl(REF, lp))  # KL(ref || policy)


@pytest.mark.parametrize(
    ("ratio", "expected"),  # ratio = other / policy
    [
        (1.0, (0.0, 0.0, 0.0)),
        (2.0, (-math.log(2), math.log(2) ** 2 / 2, 1 - math.log(2))),
        (0.5, (math.log(2), math.log(2) ** 2 / 2, -0.5 + math.log(2))),
    ],
)
def test_estimates_are_as_worked_by_hand(ratio, expected):
    logprobs = torch.tensor([[-1.0]], dtype=torch.float64)
    got = [float(estimate(logprobs, logprobs + math.log(ratio))) for estimate in (k1, k2, k3)]
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("estimate", [k1, k3])
def test_k1_and_k3_have_the_value_of_kl(estimate):
    _, lp = policy()
    torch.testing.assert_close((lp.exp() * estimate(lp, REF)).sum(), kl(lp, REF))


def test_k2_is_biased():
    _, lp = policy()
    assert abs(float(((lp.exp() * k2(lp, REF)).sum() - kl(lp, REF)).detach())) > 1e-3


@pytest.mark.parametrize("estimate", [k2, k3])
def test_k2_and_k3_are_never_negative(estimate):
    gap = torch.linspace(-3, 3, 601)[None]
    assert (estimate(gap, torch.zeros_like(gap)) >= 0).all()
    assert (k1(gap, torch.zeros_like(gap)) < 0).any()  # the control


def test_as_a_loss_k1_has_no_expected_gradient():
    assert as_loss(k1).abs().max() < 1e-12 < FORWARD.abs().max()


def test_as_a_loss_k2_has_the_gradient_of_kl_from_the_policy():
    torch.testing.assert_close(as_loss(k2), FORWARD)


def test_as_a_loss_k3_has_the_gradient_of_kl_from_the_reference():
    torch.testing.assert_close(as_loss(k3), REVERSE)
    assert (FORWARD - REVERSE).abs().max() > 1e-3  # the control: they differ here


def test_in_the_reward_k1_has_the_gradient_of_kl_from_the_policy():
    torch.testing.assert_close(as_reward(k1), FORWARD)


def test_in_the_reward_k3_has_the_difference_of_both_gradients_and_k2_neither():
    torch.testing.assert_close(as_reward(k3), FORWARD - REVERSE)
    assert (as_reward(k2) - FORWARD).abs().max() > 1e-3 and (as_reward(k2) - REVERSE).abs().max() > 1e-3


def test_k3_keeps_its_precision_for_policies_that_nearly_agree():
    gap = torch.tensor([[1e-4]])
    assert float(k3(torch.zeros(1, 1), gap)) == pytest.approx(5e-9, rel=1e-2)
    assert float(gap.exp() - 1 - gap) != pytest.approx(5e-9, rel=1e-2)  # the control: float32's spacing at 1


def test_estimators_have_the_names_of_their_functions():
    assert {name: fn.__name__ for name, fn in ESTIMATORS.items()} == {"k1": "k1", "k2": "k2", "k3": "k3"}


OLD = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()


def expected(form, sampled_from):
    """Value of the penalty over all outcomes, with the gradient that its samples give."""
    return lambda lp: (sampled_from(lp).exp().detach() * penalty(form, lp, REF, OLD)).sum()


def on_policy(lp):
    return lp


def off_policy(lp):
    return OLD


def value_of(build):
    return build(policy()[1]).detach()


KL = value_of(lambda lp: kl(lp, REF))


def test_the_policies_of_these_tests_tell_all_answers_apart():
    zero = torch.zeros_like(FORWARD)
    for i, one in enumerate([FORWARD, REVERSE, zero]):
        for other in [FORWARD, REVERSE, zero][i + 1 :]:
            assert (one - other).abs().max() > 0.05
    assert (OLD - policy()[1]).abs().max() > 0.5 and KL > 0.05


@pytest.mark.parametrize("form", ["k1", "k3", "k1+", "k3+"])
def test_a_penalty_of_the_policys_own_samples_has_the_value_of_kl(form):
    torch.testing.assert_close(value_of(expected(form, on_policy)), KL)
    assert abs(value_of(expected("k2", on_policy)) - KL) > 1e-3  # the control


@pytest.mark.parametrize("form", ["k2", "k1+", "k3+"])
def test_a_penalty_of_the_policys_own_samples_pulls_like_kl(form):
    torch.testing.assert_close(gradient_of(expected(form, on_policy)), FORWARD)


def test_the_penalties_k1_and_k3_pull_otherwise():
    assert gradient_of(expected("k1", on_policy)).abs().max() < 1e-12
    torch.testing.assert_close(gradient_of(expected("k3", on_policy)), REVERSE)


def test_k3_ratio_has_value_and_gradient_of_kl_from_samples_of_the_old_policy():
    torch.testing.assert_close(value_of(expected("k3_ratio", off_policy)), KL)
    torch.testing.assert_close(gradient_of(expected("k3_ratio", off_policy)), FORWARD)


@pytest.mark.parametrize("form", sorted(set(get_args(Form)) - {"k3_ratio"}))
def test_no_other_form_has_value_and_gradient_of_kl_from_samples_of_the_old_policy(form):
    far = abs(value_of(expected(form, off_policy)) - KL) > 0.01
    assert far and (gradient_of(expected(form, off_policy)) - FORWARD).abs().max() > 0.01


def test_k3_ratio_without_the_ratios_own_gradient_would_pull_toward_another_kl():
    cut = gradient_of(lambda lp: (OLD.exp() * (lp - OLD).exp().detach() * k3(lp, REF)).sum())
    torch.testing.assert_close(cut, REVERSE)


@pytest.mark.parametrize(
    ("form", "value", "slope"),
    [  # policy e^-1, reference 2 e^-1, old policy e^-1 / 3: log r = log 2, the ratio to the old policy is 3
        ("k1", -math.log(2), 1.0),
        ("k2", math.log(2) ** 2 / 2, -math.log(2)),
        ("k3", 1 - math.log(2), -1.0),  # d(r - 1 - log r) = 1 - r
        ("k1+", -math.log(2), -math.log(2)),
        ("k3+", 1 - math.log(2), -math.log(2)),
        ("k3_ratio", 3 * (1 - math.log(2)), 3 * (1 - math.log(2)) - 3),  # product rule: 3 k3 + 3 (1 - r)
    ],
)
def test_penalties_and_their_slopes_are_as_worked_by_hand(form, value, slope):
    logprobs = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    got = penalty(form, logprobs, logprobs.detach() + math.log(2), logprobs.detach() - math.log(3))
    got.sum().backward()
    assert (got.item(), logprobs.grad.item()) == (pytest.approx(value), pytest.approx(slope))


def test_an_unknown_form_names_the_known_ones():
    with pytest.raises(ConfigError, match="algorithm.kl: expected one of k1, k2, k3, .*, got 'k4'"):
        penalty("k4", torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))  # pyright: ignore
