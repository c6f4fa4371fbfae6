"""What is said about a reward model, against figures worked out by hand and by simulation."""

import math

import numpy as np
import pytest

from rlft.report.intervals import wilson
from rlft.report.preferences import draw, report


def test_a_table_worked_by_hand():
    scores = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [1.0, -1.0]])
    lengths = np.array([[5, 9], [9, 5], [4, 4], [8, 2]])
    found = report(scores, lengths)
    assert found.num_pairs == 4 and found.accuracy == (1 + 0 + 0.5 + 1) / 4
    assert (found.num_shorter, found.accuracy_shorter, found.num_longer, found.accuracy_longer) == (1, 1.0, 2, 0.5)
    sure, unsure = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    assert [(b.num_pairs, b.accuracy) for b in found.bins] == [(1, 0.5), (1, 0.0), (2, 1.0)]
    assert found.ece == pytest.approx((0 + unsure + 2 * (1 - sure)) / 4)
    assert found.loss == pytest.approx((2 * math.log1p(math.exp(-2)) + math.log1p(math.e) + math.log(2)) / 4)
    assert (found.margin_mean, found.score_mean) == (0.75, 1.125)
    assert found.length_correlation == pytest.approx(np.corrcoef(scores.ravel(), lengths.ravel())[0, 1])


def simulated(scale, pairs=20_000):
    """Scores of a model whose differences are `scale` times the true ones, with answers drawn from the truth."""
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 2, pairs)
    first_better = rng.random(pairs) < 1 / (1 + np.exp(-truth))
    margin = scale * np.where(first_better, truth, -truth)
    return np.stack([margin, np.zeros(pairs)], 1)


@pytest.mark.parametrize(("scale", "low", "high"), [(1.0, 0.0, 0.01), (4.0, 0.05, 0.5), (0.2, 0.05, 0.5)])
def test_only_a_calibrated_model_has_no_calibration_error(scale, low, high):
    found = report(simulated(scale), np.ones((20_000, 2)))
    assert low <= found.ece <= high
    assert found.accuracy == report(simulated(1.0), np.ones((20_000, 2))).accuracy  # which accuracy does not see


def test_a_model_that_scores_length_is_found_out():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 50, (2000, 2))
    biased, fair = report(lengths * 0.1, lengths), report(rng.normal(size=(2000, 2)) + [2, 0], lengths)
    assert (biased.accuracy_shorter, biased.accuracy_longer) == (0.0, 1.0)
    assert biased.length_correlation == pytest.approx(1) and biased.margin_length_correlation == pytest.approx(1)
    assert abs(fair.accuracy_shorter - fair.accuracy_longer) < 0.05 and abs(fair.length_correlation) < 0.1


def test_what_cannot_be_told_is_nan_and_not_zero():
    found = report(np.array([[1.0, 0.0]]), np.array([[3, 3]]))
    assert math.isnan(found.accuracy_shorter) and math.isnan(found.length_correlation)


def test_the_interval_is_wilsons():
    assert wilson(0.9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # as published tables have it
    assert wilson(1.0, 10)[0] < 0.75 and wilson(1.0, 10)[1] == 1.0  # where the normal interval would have no width


def test_one_row_of_scores_and_lengths_per_pair():
    with pytest.raises(ValueError, match=r"\[P, 2\]"):
        report(np.zeros((3, 2)), np.zeros((2, 2)))


def test_the_picture_is_drawn_also_where_lengths_are_all_the_same(tmp_path):
    scores = np.random.default_rng(0).normal(size=(30, 2))
    file = draw(report(scores, np.ones((30, 2))), scores, np.ones((30, 2)), tmp_path / "plots" / "preferences.png")
    assert file.read_bytes().startswith(b"\x89PNG")
