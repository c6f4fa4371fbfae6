import math
import random
from dataclasses import replace
from itertools import combinations, product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.config import EvalConfig
from rlft.errors import RewardError
from rlft.report.evaluation import Evaluation, interval, pass_at_k, summarize, task_results
from rlft.types import Sampled, Task, TrajectoryInfo


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_k_subsets_that_hold_a_pass(n):
    for c, k in product(range(n + 1), range(1, n + 1)):
        drawn = list(combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(fmean(map(max, drawn)), abs=1e-15)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_pass_at_k_is_unbiased_and_the_plug_in_is_not(p):
    n, k = 6, 3
    want = 1 - (1 - p) ** k
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance)) == pytest.approx(want)
    plug_in = sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance))
    assert p in (0.0, 1.0) or abs(plug_in - want) > 0.01


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_has_no_meaning(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(n, c, k)


def test_a_table_worked_by_hand():
    # Task means 1, 1/2, 0, 1/2: mean 1/2, sample variance 1/6, which a share has from 4 (1/4) / (1/6) = 6 trials.
    # Wilson: the center stays at 1/2, the reach is z sqrt(1/24 + z^2/144) / (1 + z^2/6) with z = 1.959964.
    # Passes at k = 2 are 1, 1, 0, 1: 4 trials, 3 of them right.
    values = {"a": [1, 1], "b": [1, 0], "c": [0, 0], "d": [0, 1]}
    z = 1.959964
    reach = z * math.sqrt(1 / 24 + z * z / 144) / (1 + z * z / 6)
    assert summarize(values, pass_k=[1, 2]) == pytest.approx(
        {
            "mean": 0.5, "low": 0.5 - reach, "high": 0.5 + reach,
            "pass@1": 0.5, "pass@1_low": 0.5 - reach, "pass@1_high": 0.5 + reach,
            "pass@2": 0.75, "pass@2_low": 0.300642, "pass@2_high": 0.954413,
            "num_tasks": 4, "num_samples": 8, "num_failed": 0, "num_incomplete": 0,
        },
        abs=1e-6,
    )  # fmt: skip


def test_the_mean_weighs_tasks_not_samples():
    assert summarize({"a": [1.0] * 9, "b": [0.0]})["mean"] == 0.5


def test_repeating_samples_of_a_task_buys_no_precision():
    few = {"a": [1, 0], "b": [0, 0], "c": [1, 1]}
    many = {task: samples * 50 for task, samples in few.items()}
    assert [summarize(many)[k] for k in ("low", "high")] == pytest.approx([summarize(few)[k] for k in ("low", "high")])
    unclustered = interval([v for samples in many.values() for v in samples], True)
    assert unclustered[1] - unclustered[0] < 0.2 < summarize(few)["high"] - summarize(few)["low"]


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = random.Random(0)
    hits = 0
    for _ in range(1000):  # tasks of differing difficulty: true mean 1/2
        difficulty = [rng.random() for _ in range(60)]
        got = summarize({str(i): [float(rng.random() < p) for _ in range(4)] for i, p in enumerate(difficulty)})
        hits += got["low"] <= 0.5 <= got["high"]
    assert 0.93 <= hits / 1000 <= 0.97


def covers(rng, num_tasks, pass_rate, how):
    """How often an interval holds a pass rate."""
    drawn = [[float(rng.random() < pass_rate) for _ in range(num_tasks)] for _ in range(2000)]
    return sum(low <= pass_rate <= high for low, high in map(how, drawn)) / len(drawn)


@pytest.mark.parametrize("num_tasks", [5, 20, 100])
@pytest.mark.parametrize("pass_rate", [0.02, 0.5, 0.98])
def test_it_covers_where_tasks_are_few_and_where_nearly_all_pass(num_tasks, pass_rate):
    assert covers(random.Random(1), num_tasks, pass_rate, lambda values: interval(values, True)) >= 0.88


def test_the_normal_interval_does_not():
    assert covers(random.Random(1), 20, 0.98, interval) < 0.5


def test_only_values_between_0_and_1_have_a_bounded_interval():
    assert summarize({"a": [1.0], "b": [1.0], "c": [1.0]})["high"] == 1.0
    wide = summarize({"a": [5.0], "b": [-5.0]}, threshold=1.0)
    assert wide["low"] < -5 and wide["high"] > 5 and wide["pass@1_high"] <= 1.0


def test_failed_samples_are_left_out_and_counted():
    got = summarize({"a": [1.0, None], "b": [0.0, math.nan], "c": [None, None]})
    assert (got["mean"], got["num_samples"], got["num_failed"], got["num_incomplete"]) == (0.5, 2, 4, 1)


def test_a_task_that_failures_leave_short_of_k_leaves_that_estimate_only():
    got = summarize({"a": [1.0, 1.0], "b": [0.0, None]}, pass_k=[1, 2])
    assert (got["mean"], got["pass@1"], got["pass@2"], got["num_incomplete"]) == (0.5, 0.5, 1.0, 1)


@pytest.mark.parametrize("pass_k", [[2], [1, 2], [0]])
def test_a_task_sampled_less_than_k_times_is_an_error(pass_k):
    with pytest.raises(ValueError, match="expected k >= 1 and k samples"):
        summarize({"a": [1.0, 1.0], "b": [1.0]}, pass_k=pass_k)


@pytest.mark.parametrize("values", [{}, {"a": [None]}, {"a": [math.nan, None]}])
def test_nothing_graded_is_an_error_that_says_where_to_look(values):
    with pytest.raises(RewardError, match="errors of the reward"):
        summarize(values)


def test_the_threshold_decides_what_passes():
    values = {"a": [0.5, 0.9], "b": [0.9, 1.0]}
    assert [summarize(values, threshold=t)["pass@1"] for t in (0.5, 0.9, 1.0, 2.0)] == [1.0, 0.75, 0.25, 0.0]


def test_a_lone_task_has_no_interval():
    got = summarize({"a": [1.0, 0.0]})
    assert math.isnan(got["low"]) and math.isnan(got["pass@1_high"])


@given(st.dictionaries(st.text(max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=6), min_size=2, max_size=8))
def test_bounds_order_and_permutation(values):
    got = summarize(values, pass_k=[1, 2, 3], threshold=0.5)
    assert 0 <= got["low"] <= got["mean"] + 1e-12 and got["mean"] <= got["high"] + 1e-12 <= 1 + 1e-9
    assert got["pass@1"] <= got["pass@2"] + 1e-12 <= got["pass@3"] + 2e-12
    turned = {task: list(reversed(samples)) for task, samples in reversed(values.items())}
    assert summarize(turned, pass_k=[1, 2, 3], threshold=0.5) == pytest.approx(got)


def sampled(task_id, *outcomes):
    """A task's trajectories; None could not be graded."""
    good = TrajectoryInfo(task_id, "completed", 0.0, {}, 1, 1, 0)
    lost = replace(good, status="failed", error="why")
    infos = tuple(lost if value is None else replace(good, outcome=value) for value in outcomes)
    return Sampled(Task(task_id, ()), infos, ())


def test_every_task_has_its_results_and_their_mean_is_the_summarys():
    found = [sampled("a", 1.0, 0.0, 1.0), sampled("b", 0.0, None, 0.5)]
    config = EvalConfig(samples=3, pass_k=[1, 3])
    a, b = task_results(7, Evaluation({}, found, [sampled("a", 1.0)]), config)
    assert (a.pop("mean"), a.pop("pass@1")) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    values = {"pass@3": 1.0, "greedy": 1.0, "values": [1.0, 0.0, 1.0]}
    assert a == {"step": 7, "task_id": "a", **values, "failed": 0, "truncated": 0, "errors": []}
    assert (b["mean"], b["pass@1"], b["pass@3"], b["failed"], b["errors"]) == (0.25, 0.0, None, 1, ["why"]) and "greedy" not in b
    whole = summarize({"a": a["values"], "b": b["values"]}, [1])
    assert (whole["mean"], whole["pass@1"]) == (pytest.approx((2 / 3 + 0.25) / 2), pytest.approx((2 / 3 + 0) / 2))
