"""Group rewards made of parts: tables worked by hand, laws of shift and order, and missing parts."""

import math
from statistics import correlation, fmean, linear_regression, pstdev

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlft.errors import RewardError
from rlft.rewards.shaping import (
    adactrl,
    best_in_group,
    cosine_length,
    ensemble,
    length_debiased,
    pairwise,
    pass_rate_label,
    relative_length,
    safety_gate,
)
from rlft.types import Completion, Group, Task, Trajectory, Turn


def group(*members, **meta):
    """A group of (parts, length) or (parts, length, text); a number is the part "right"."""
    task = Task("t", ({"role": "user", "content": "?"},), None, meta)
    trajectories = []
    for index, (parts, length, *text) in enumerate(members):
        parts = parts if isinstance(parts, dict) else {"right": parts}
        completion = Completion([7] * length, [-0.5] * length, "stop", 0)
        turn = Turn([1], completion, {"role": "assistant", "content": text[0] if text else ""}, [0] + [1] * length)
        trajectories.append(Trajectory(task, index, (turn,), "completed", parts=parts))
    return Group("g", tuple(trajectories))


@pytest.mark.parametrize(
    ("right", "length", "value"),
    [(1, 0, 1.0), (1, 50, 0.75), (1, 99, 0.5), (0, 0, -1.0), (0, 50, -0.75), (0, 99, -0.5), (1, 100, -1.0), (0, 100, -1.0), (1, 500, -1.0)],
)
def test_cosine_length_table(right, length, value):
    assert cosine_length(group((right, length)), part="right", max_tokens=100) == [pytest.approx(value, abs=2e-3)]


def test_cosine_length_is_the_papers_function():
    def paper(t, longest, at_0, at_longest):  # eta_min + (eta_max - eta_min) (1 + cos) / 2
        return at_longest + 0.5 * (at_0 - at_longest) * (1 + math.cos(t * math.pi / longest))

    ends = {"right_short": 2.0, "right_long": 1.0, "wrong_short": -10.0, "wrong_long": 0.0, "exceeded": -10.0}
    for length in (1, 13, 60):
        got = cosine_length(group((1, length), (0, length)), part="right", max_tokens=64, **ends)
        assert got == pytest.approx([paper(length, 64, 2.0, 1.0), paper(length, 64, -10.0, 0.0)])


def test_relative_length_is_kimis():
    got = relative_length(group((1, 10), (1, 20), (0, 10), (0, 30), (1, 30)), part="right")
    assert got == [0.5, 0.0, 0.0, -0.5, -0.5]
    assert relative_length(group((1, 10), (0, 10)), part="right") == [0.0, 0.0]


def test_among_right_answers_shorter_ones_earn_more():
    for reward in (lambda g: relative_length(g, part="right"), lambda g: cosine_length(g, part="right", max_tokens=64)):
        earned = reward(group((1, 5), (1, 10), (1, 20), (1, 40)))
        assert earned == sorted(earned, reverse=True) and len(set(earned)) == 4


@pytest.mark.parametrize(("num_right", "label"), [(0, "[Hard]"), (10, "[Hard]"), (11, "[Easy]"), (16, "[Easy]")])
def test_the_label_turns_above_ten_of_sixteen(num_right, label):
    members = [(float(i < num_right), 4, text) for i, text in enumerate(["[Easy] x", "[hard]x", "no tag", " [Easy]", "[Easy"] + [""] * 11)]
    got = [value for value, _ in pass_rate_label(group(*members), part="right")]
    assert got[:2] == ([1.0, 0.0] if label == "[Easy]" else [0.0, 1.0])
    assert got[2:] == [-1.0] * 14


def test_adactrl_worked_by_hand():
    easy = group((1, 0, "[Easy]"), (1, 10, "[Easy]"), (1, 20, "[Easy]"), (0, 20, "[Hard]"), (1, 5, "none"))
    assert adactrl(easy, part="right") == pytest.approx([0.5 + 0.5 * 1.0, 0.5 + 0.5 * 0.5, 0.5 + 0.5 * 0.0, 0.0, -0.5])
    hard = group((1, 20, "[Hard]"), (0, 10, "[Hard]"), (0, 0, "[Hard]"), (0, 20, "[Easy]"), (0, 5, "none"))
    assert adactrl(hard, part="right") == pytest.approx([0.5 + 0.5 * 1.0, 0.5 + 0.5 * 0.5, 0.5 + 0.5 * 0.0, 0.0, -0.5])
    assert adactrl(hard, part="right", length_coef=0.0) == [0.5, 0.5, 0.5, 0.0, -0.5]


@pytest.mark.parametrize(
    ("values", "best", "won"),
    [
        ([1.0, 2.0, 3.0], [0, 0, 1], [0, 0.5, 1]),
        ([2.0, 2.0, 1.0], [1, 1, 0], [0.75, 0.75, 0]),
        ([5.0, 5.0], [1, 1], [0.5, 0.5]),
        ([7.0], [1], [0.5]),
        ([], [], []),
    ],
)
def test_best_and_pairwise_tables(values, best, won):
    members = group(*((value, 1) for value in values))
    assert best_in_group(members, part="right") == best
    assert pairwise(members, part="right") == won


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9))
def test_wins_of_a_group_sum_to_half_of_its_pairs(values):
    members = group(*((float(value), 1) for value in values))
    won = pairwise(members, part="right")
    assert sum(won) == pytest.approx(len(values) / 2)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert [won[i] for i in order] == sorted(won)


def test_safety_gate_table():
    rows = [({"safe": 0.9, "help": 0.4}, 1), ({"safe": 0.1, "help": 0.8}, 1), ({"safe": 0.15, "help": 0.7}, 1)]
    assert safety_gate(group(*rows), safety="safe", helpfulness="help") == [0.4, 0.1, 0.7]
    assert safety_gate(group(*rows, safety=True), safety="safe", helpfulness="help") == [0.9, 0.1, 0.15]
    assert safety_gate(group(*rows, risky=1), safety="safe", helpfulness="help", flag="risky") == [0.9, 0.1, 0.15]


def test_whitening_is_of_the_logits():
    rows = [({"safe": 1.0, "help": value}, 1) for value in (0.2, 0.5, 0.9, 1.0)]
    got = safety_gate(group(*rows), safety="safe", helpfulness="help", whiten=True)
    logits = [math.log(v / (1 - v)) for v in (0.2, 0.5, 0.9, 1 - 1e-6)]
    assert got == pytest.approx([(x - fmean(logits)) / pstdev(logits) for x in logits])
    assert safety_gate(group(rows[0], rows[0]), safety="safe", helpfulness="help", whiten=True) == [0.0, 0.0]
    with pytest.raises(RewardError, match="0 to 1"):
        safety_gate(group(({"safe": 1.0, "help": 3.0}, 1)), safety="safe", helpfulness="help", whiten=True)


@pytest.mark.parametrize(
    ("how", "coef", "value"), [("mean", 1, 2.0), ("min", 1, 1.0), ("less_std", 2, 2 - 2 * math.sqrt(2 / 3)), ("less_variance", 0.5,
        2 - 0.5 * 2 / 3)]
)
def test_ensemble_table(how, coef, value):
    members = group(({"a": 1.0, "b": 2.0, "c": 3.0}, 1), ({"a": 5.0, "b": 5.0, "c": 5.0}, 1))
    assert ensemble(members, parts=["a", "b", "c"], how=how, coef=coef) == pytest.approx([value, 5.0])


POINTS = st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 60)), min_size=2, max_size=9)


@settings(deadline=None)
@given(POINTS)
def test_length_debiased_is_the_residual_of_least_squares(points):
    assume(len({length for _, length in points}) > 1)
    values, lengths = [float(v) for v, _ in points], [n for _, n in points]
    slope, _ = linear_regression(lengths, values)
    got = length_debiased(group(*points), part="right")
    assert got == pytest.approx([v - slope * (n - fmean(lengths)) for v, n in points], abs=1e-6)
    assert fmean(got) == pytest.approx(fmean(values), abs=1e-6)
    if pstdev(got) > 1e-6:
        assert abs(correlation(got, lengths)) < 1e-3


def test_length_debiased_leaves_what_does_not_depend_on_length():
    assert length_debiased(group((1.0, 5), (3.0, 5)), part="right") == [1.0, 3.0]
    assert length_debiased(group((1.0, 10), (1.0, 20), (3.0, 10), (3.0, 20)), part="right") == pytest.approx([1, 1, 3, 3])
    assert length_debiased(group((1.0, 10), (2.0, 20), (3.0, 30)), part="right") == pytest.approx([2.0, 2.0, 2.0])


ALL = [
    (cosine_length, {"part": "right", "max_tokens": 32}),
    (relative_length, {"part": "right"}),
    (pass_rate_label, {"part": "right"}),
    (adactrl, {"part": "right"}),
    (best_in_group, {"part": "right"}),
    (pairwise, {"part": "right"}),
    (length_debiased, {"part": "right"}),
    (safety_gate, {"safety": "right", "helpfulness": "right"}),
    (ensemble, {"parts": ["right"]}),
]


@pytest.mark.parametrize(("reward", "options"), ALL)
def test_a_missing_part_is_named_with_those_that_are_there(reward, options):
    with pytest.raises(RewardError) as error:
        reward(group(({"other": 1.0, "more": 1.0}, 3)), **options)
    assert "'right'" in str(error.value) and "'other', 'more'" in str(error.value)


@pytest.mark.parametrize(("reward", "options"), ALL)
def test_one_number_for_every_member_whatever_it_said(reward, options):
    sizes = [group(), group((0.3, 0, None)), group(*((float(i % 2), i, "[Easy]" * (i % 3)) for i in range(7)))]
    for members in sizes:
        got = reward(members, **options)
        values = [value[0] if isinstance(value, tuple) else value for value in got]
        assert len(values) == len(members.trajectories) and all(math.isfinite(value) for value in values)


@pytest.mark.parametrize(
    ("reward", "options"),
    [(cosine_length, {"part": "right", "max_tokens": 0}), (ensemble, {"parts": []}), (ensemble, {"parts": "right"})]
    + [(ensemble, {"parts": ["right"], "how": "max"}), (ensemble, {"parts": ["right"], "how": "less_std", "coef": -1})],
)
def test_wrong_options_raise(reward, options):
    with pytest.raises(RewardError):
        reward(group((1, 1)), **options)
