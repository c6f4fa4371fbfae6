"""The [reward] table: names, weights, options, and what a reward may return."""

import functools
from decimal import Decimal
from fractions import Fraction

import cloudpickle
import numpy as np
import pytest

from rlft.errors import ConfigError, RewardError
from rlft.names import import_object
from rlft.rewards.builtin import exact_match, regex
from rlft.rewards.compose import BUILTIN, compose, pack
from rlft.rewards.grader import Rule, spoken, verdicts
from rlft.types import Task


def brief(task, trajectory, *, budget: int = 400) -> float:
    return float(len(trajectory.text) <= budget)


def rank(group) -> list[float]:
    return [float(i) for i, _ in enumerate(group.trajectories)]


class Judge:
    def __call__(self, task, trajectory) -> float:
        return 0.5


def test_a_table_of_names_weights_and_options():
    match, form = compose({"exact_match": 2, "regex": {"weight": 0.5, "pattern": "x"}})
    assert (match.rule, match.fn) == (Rule("exact_match", weight=((0, 2.0),)), exact_match)
    assert form.rule == Rule("regex", weight=((0, 0.5),))
    assert form.fn.func is regex and form.fn.keywords == {"pattern": "x"}


def test_an_own_reward_is_named_by_module_and_attribute(tmp_path, monkeypatch):
    (tmp_path / "own_rewards_of_a_user.py").write_text("def short(task, trajectory, *, budget=3): return 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    (term,) = compose({"own_rewards_of_a_user:short": {"budget": 7}})
    assert (term.rule, term.fn.keywords) == (Rule("short"), {"budget": 7})


def test_an_empty_table_grades_nothing():
    assert compose({}) == ()


@pytest.mark.parametrize(
    ("reward", "name"),
    [(brief, "brief"), (Judge(), "Judge"), (functools.partial(brief, budget=3), "brief"), ({brief: {"weight": 1, "budget": 9}}, "brief")],
)
def test_functions_and_objects_are_rewards(reward, name):
    (term,) = compose(reward)
    assert term.rule == Rule(name)


def test_a_first_parameter_called_group_makes_a_group_reward():
    assert [term.rule.kind for term in compose({rank: 1.0, brief: 1.0})] == ["group", "each"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"exact_mach": 1.0}, "did you mean 'exact_match'"),
        ({"regex": {"patern": "x"}}, "did you mean 'pattern'"),
        ({"regex": 1.0}, "reward.regex: missing a required argument: 'pattern'"),
        ({"exact_match": {"trajectory": 1}}, "too many positional arguments"),
        ({"exact_match": "high"}, "weight 'high'; expected a finite number"),
        ({"exact_match": True}, "weight True"),
        ({"exact_match": float("nan")}, "weight nan"),
        ({"exact_match": {"weight": None}}, "weight None"),
        ({"exact_match": {"name": "x"}}, "option called 'name'"),
        ({"no_such_module_at_all:f": 1.0}, "cannot import"),
        ({"rlft.rewards.builtin:exact_mach": 1.0}, "cannot import"),
        ({"math:pi": 1.0}, "is not a function"),
        ({3: 1.0}, "is not a function"),
        ({"exact_match": 1.0, "rlft.rewards.builtin:exact_match": 1.0}, "two rewards are named 'exact_match'"),
        ({lambda x: 1.0: 1.0}, "a reward is called as (task, trajectory, *, options)"),
    ],
)
def test_a_wrong_table_is_a_clear_error(table, message):
    with pytest.raises(ConfigError) as error:
        compose(table)
    assert message in str(error.value)


def test_every_builtin_keeps_its_own_name():
    assert all(path.rpartition(":")[2] == name for name, path in BUILTIN.items() if not import_object(path).__name__[0].isupper())


def test_a_packed_grader_is_the_grader():
    grader = compose({"exact_match": 2, "regex": {"pattern": "x"}})
    packed = pack(grader)
    assert packed.rules == tuple(term.rule for term in grader)
    assert [fn(Task("t", (), "x"), spoken(Task("t", ()), "x")) for fn in cloudpickle.loads(packed.functions)] == [1.0, 1.0]


ONE = Rule("x")
ALL = Rule("x", "group")


@pytest.mark.parametrize(
    ("returned", "verdict"),
    [
        (0.5, (0.5, "")),
        (1, (1.0, "")),
        (True, (1.0, "")),
        (False, (0.0, "")),
        (np.float32(0.5), (0.5, "")),
        (np.int64(2), (2.0, "")),
        (np.bool_(True), (1.0, "")),
        (np.array(0.5), (0.5, "")),
        (Fraction(1, 4), (0.25, "")),
        (Decimal("0.5"), (0.5, "")),
        ((0.5, "too long"), (0.5, "too long")),
    ],
)
def test_numbers_of_every_kind_are_values(returned, verdict):
    assert verdicts(ONE, returned, 1) == [verdict]


@pytest.mark.parametrize(
    "returned",
    [
        None,
        float("nan"),
        float("inf"),
        -float("inf"),
        "1.0",
        b"1",
        [1.0],
        1j,
        np.array([1.0]),
        np.str_("1"),
        float,
        (1.0, 2.0),
        (None, "x"),
    ],
)
def test_anything_else_is_an_error_that_names_the_reward(returned):
    with pytest.raises(RewardError, match="reward 'x' returned .*; expected a finite number"):
        verdicts(ONE, returned, 1)


@pytest.mark.parametrize("returned", [[0.0, 1.0], (0.0, 1.0), np.array([0.0, 1.0]), [False, np.float64(1)]])
def test_a_group_reward_returns_one_value_per_trajectory(returned):
    assert verdicts(ALL, returned, 2) == [(0.0, ""), (1.0, "")]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "reward 'x' returned 1 values; expected 2, one per trajectory of the group"),
        ([1.0, 2.0, 3.0], "reward 'x' returned 3 values; expected 2, one per trajectory of the group"),
        (None, "reward 'x' returned None; expected a list of 2 finite numbers"),
        (1.0, "reward 'x' returned 1.0; expected a list of 2 finite numbers"),
        ("ab", "reward 'x' returned 'ab'; expected a list of 2 finite numbers"),
        ([1.0, None], "reward 'x' returned None for trajectory 1 of its group; expected a finite number"),
    ],
)
def test_a_group_reward_that_returns_something_else_is_an_error(returned, message):
    with pytest.raises(RewardError) as error:
        verdicts(ALL, returned, 2)
    assert str(error.value) == message
