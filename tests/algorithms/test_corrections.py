"""Importance weights between engine and learner."""

import math

import pytest
import torch

from rlft.algorithms.corrections import mismatch, truncated_importance

ENGINE = torch.tensor([0.5, 0.25, 0.2, 0.05], dtype=torch.float64).log()
LEARNER = torch.tensor([0.4, 0.1, 0.25, 0.25], dtype=torch.float64).log()


@pytest.mark.parametrize(("ratio", "weight"), [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (2.1, 2.0), (1e30, 2.0)])
def test_the_weight_is_learner_over_engine_up_to_the_cap(ratio, weight):
    rollout = torch.tensor([[-1.5]])
    assert float(truncated_importance(rollout + math.log(ratio), rollout)) == pytest.approx(weight, rel=1e-5)


def test_without_truncation_an_expectation_over_the_engine_becomes_one_over_the_learner():
    value = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    weights = truncated_importance(LEARNER, ENGINE, cap=math.inf)
    torch.testing.assert_close((ENGINE.exp() * weights * value).sum(), (LEARNER.exp() * value).sum())
    capped = truncated_importance(LEARNER, ENGINE, cap=2.0)  # the control: 0.25 / 0.05 is cut
    assert abs(float((ENGINE.exp() * capped * value).sum() - (LEARNER.exp() * value).sum())) > 0.01


def test_the_weight_carries_no_gradient():
    assert not truncated_importance(torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1)).requires_grad


def test_mismatch_is_a_distance_in_nats_and_a_ratio_of_mean_one():
    metrics = mismatch(LEARNER, ENGINE)
    assert metrics["mismatch/abs"].tolist() == pytest.approx([abs(float(x)) for x in LEARNER - ENGINE])
    assert float((ENGINE.exp() * metrics["mismatch/ratio"]).sum()) == pytest.approx(1.0)
