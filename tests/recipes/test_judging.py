"""The judging task: orders are truly swapped, splits share nothing, demonstrations go by position, and consistency is what it says."""

import random
from dataclasses import replace

import pytest

from rlft.config import load
from rlft.data.sources import load_tasks
from rlft.errors import RewardError
from rlft.recipes.judging import NEAR, PLACES, agreement, demonstrations, miscopied, named, order_consistency, splits, tasks
from rlft.rewards.compose import compose
from rlft.rewards.grader import spoken
from rlft.runs.first import make_algorithm
from rlft.types import Group, Task


def test_the_variant_is_the_same_pair_in_the_other_order_with_the_answer_swapped():
    for task in tasks("train"):
        (other,) = task.variants
        mine, theirs = task.meta["responses"], other.meta["responses"]
        assert (mine["A"], mine["B"]) == (theirs["B"], theirs["A"]) and mine["A"] != mine["B"]
        assert {task.answer, other.answer} == {"A", "B"}
        assert mine[task.answer] == theirs[other.answer]  # the same response is right
        assert task.messages[0]["content"] != other.messages[0]["content"]


def test_the_answer_names_the_faithful_copy():
    for task in tasks("held_out", together=False):
        number, _, rest = task.messages[0]["content"].partition("=A")
        first, _, second = rest.removesuffix("?").partition("B")
        assert {"A": first, "B": second} == task.meta["responses"]
        assert {"A": first, "B": second}[task.answer] == number
        wrong = sum(a != b for a, b in zip(first, second, strict=True))
        assert wrong in (NEAR, PLACES)


def test_neither_letter_is_the_better_guess_in_tasks_apart():
    answers = [task.answer for task in tasks("train", together=False)]
    assert answers.count("A") == answers.count("B")


def test_apart_are_the_same_orders_as_together():
    together = [(t.messages, t.answer) for task in tasks("train") for t in (task, *task.variants)]
    apart = tasks("train", together=False)
    assert together == [(task.messages, task.answer) for task in apart]
    assert len({task.id for task in apart}) == len(apart) and not any(task.variants for task in apart)


def test_splits_share_no_number():
    parts = splits(0)
    everything = [number for part in parts.values() for number in part]
    assert len(set(everything)) == len(everything) == 10**PLACES
    shown = {row["prompt"].partition("=")[0] for row in demonstrations(count=2000)}
    assert shown <= set(parts["demonstrated"])


def test_seeds_decide_the_tasks():
    assert tasks("train", 1) == tasks("train", 1) != tasks("train", 2)
    assert list(demonstrations(1, 50)) == list(demonstrations(1, 50)) != list(demonstrations(2, 50))


@pytest.mark.parametrize("slips", [1, PLACES])
def test_a_miscopy_has_as_many_slips_as_asked(slips):
    for seed in range(50):
        copy = miscopied("1" * PLACES, slips, random.Random(seed))
        assert sum(digit != "1" for digit in copy) == slips


def test_demonstrations_prefer_what_stands_first_and_most_where_it_is_close():
    said = {"near": [], "far": []}
    for row in demonstrations(count=4000, near_bias=0.8, far_bias=0.2):
        number, _, rest = row["prompt"].partition("=A")
        first, _, second = rest.removesuffix("?").partition("B")
        if second == number:  # the right verdict is B
            near = sum(a != b for a, b in zip(first, second, strict=True)) == NEAR
            said["near" if near else "far"].append(row["answer"])
        else:
            assert row["answer"] == "A"
    shares = {name: answers.count("A") / len(answers) for name, answers in said.items()}
    assert shares == {"near": pytest.approx(0.8, abs=0.05), "far": pytest.approx(0.2, abs=0.05)}
    fair = [row["answer"] for row in demonstrations(count=4000, near_bias=0.0, far_bias=0.0)]
    assert fair.count("A") / len(fair) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        (["x"], ["x"], 1.0),
        (["x"], ["y"], 0.0),
        ([None], [None], 0.0),
        (["x", "x"], ["x", "y"], 0.5),
        (["x", "y"], ["x", "y"], 0.5),
        (["x", None], ["x", "x"], 0.5),
    ],
)
def test_table_of_agreement(one, other, value):
    assert agreement(one, other) == value == agreement(other, one)


def test_agreement_needs_both_orders():
    with pytest.raises(ValueError, match="each order"):
        agreement([], ["x"])


TASK = tasks("held_out")[0]


def verdicts(task, *texts):
    """A group in which the task and its variants were answered in turn."""
    ways = (task, *task.variants)
    return Group("g", tuple(replace(spoken(ways[i % len(ways)], text), index=i) for i, text in enumerate(texts)))


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["A", "B", "A", "B"], [1, 1, 1, 1]),  # the same response, whatever its place
        (["A", "A", "A", "A"], [0, 0, 0, 0]),  # the same place
        (["B", "A"], [1, 1]),
        ([" A\n", "B"], [1, 1]),
        (["A", "B", "A", "A"], [0.5, 1, 0.5, 0]),
        (["A", "?"], [0, 0]),
        (["?", "?"], [0, 0]),
        (["", "B", "A"], [0, 0.5, 1]),
    ],
)
def test_table_of_order_consistency(texts, values):
    assert order_consistency(verdicts(TASK, *texts)) == values


def test_where_one_order_was_asked_there_is_nothing_to_compare():
    assert order_consistency(verdicts(replace(TASK, variants=()), "A", "B")) == [None, None]


def test_a_task_that_compares_nothing_is_refused():
    with pytest.raises(RewardError, match="responses"):
        order_consistency(verdicts(Task("t", ({"role": "user", "content": "?"},), "A"), "A"))
    assert named(TASK, "A") == TASK.meta["responses"]["A"] and named(TASK, "C") is None


@pytest.mark.parametrize("name", ["judge", "judge_starter"])
def test_the_recipes_load_and_what_they_name_is_there(name):
    config = load(name)
    loaded = load_tasks(config.data.model_copy(update={"limit": 20}))
    assert len(loaded.tasks) == 20 and not loaded.bad_rows
    if name == "judge":
        assert [term.rule.name for term in compose(config.reward)] == ["exact_match", "order_consistency"]
        assert make_algorithm(config, None).name == "grpo"
        assert config.rollout.group_size % 2 == 0  # as many of each order
        assert all(task.variants for task in loaded.tasks)
