"""The contract check passes honest rewards, and names the law that a careless one breaks."""

import copy
import sys
import threading

import cloudpickle
import pytest

import rlft.testing
from rlft.errors import ConfigError
from rlft.rewards.builtin import exact_match, format_tags, length, number_match
from rlft.rewards.grader import Canary, defaults
from rlft.testing.reward_checks import check_reward, fuzz_texts
from rlft.types import Task

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # grading processes need not import this file

TASKS = [Task(str(i), ({"role": "user", "content": f"{i}+3="},), str(i + 3), {"seen": []}) for i in range(2)]
MEMORY: dict[str, float] = {}


def right(task, trajectory):
    return float((trajectory.text or "").strip() == task.answer)


async def right_later(task, trajectory):
    return right(task, trajectory), "said"


def best_in_group(group):
    return [right(trajectory.task, trajectory) for trajectory in group.trajectories]


@pytest.mark.parametrize("fn", [exact_match, number_match, right, right_later, best_in_group])
def test_an_honest_reward_keeps_the_laws(fn):
    check_reward(fn, TASKS)


def test_options_reach_the_reward_and_rewards_of_form_are_checked_without_gold():
    check_reward(format_tags, TASKS, right=None, tags=["think", "answer"])
    check_reward(length, TASKS[:1], right=None, budget=20)
    with pytest.raises(ConfigError, match="unknown option 'tagz'"):
        check_reward(format_tags, TASKS, right=None, tagz=[])


def test_it_is_found_in_the_package_and_wants_tasks():
    assert rlft.testing.check_reward is check_reward
    with pytest.raises(ValueError, match="at least one task"):
        check_reward(right, [])
    with pytest.raises(ValueError, match="no task has an answer"):
        check_reward(right, [Task("1", ())])


def pays_everyone(task, trajectory):
    return 1.0


def pays_what_holds_the_answer(task, trajectory):
    return float(task.answer in (trajectory.text or ""))


def gives_none(task, trajectory):
    return None if trajectory.text == "I don't know" else right(task, trajectory)


def too_short(group):
    return best_in_group(group)[:2]


def writes_into_the_task(task, trajectory):
    task.meta["seen"].append(trajectory.text)
    return right(task, trajectory)


def counts_calls(task, trajectory):
    MEMORY["calls"] = MEMORY.get("calls", 0) + 1
    return right(task, trajectory) + MEMORY["calls"] * 1e-6


def rewards_what_it_saw_first(task, trajectory):
    """Constant for one text, but the first text it ever sees is worth more."""
    first = MEMORY.setdefault("first", trajectory.text)
    return right(task, trajectory) - 0.5 * (first != trajectory.text)


def first_of_its_group(group):
    return [value + (i == 0) * 1e-3 for i, value in enumerate(best_in_group(group))]


def needs_company(group):
    assert group.trajectories[1].index >= 0
    return best_in_group(group)


def reads_json(task, trajectory):
    return right(task, trajectory) if "{" not in (trajectory.text or "") else float(len(trajectory.text) / 0)


def hangs_on_brackets(task, trajectory):
    while (trajectory.text or "").startswith("[["):
        pass
    return right(task, trajectory)


def dies_on_nul(task, trajectory):
    if "\x00" in (trajectory.text or ""):
        import os

        os._exit(3)
    return right(task, trajectory)


def wants_text(task, trajectory):
    return float(trajectory.turns[-1].action["content"].strip() == task.answer)


@defaults(canaries=[Canary(TASKS[0], "3", 0.0)])
def sings_wrong(task, trajectory):
    return right(task, trajectory)


class Unpicklable:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, task, trajectory):
        return right(task, trajectory)


@pytest.mark.parametrize(
    ("fn", "law"),
    [
        (pays_everyone, "gold"),
        (pays_what_holds_the_answer, "gold: .*'every option listed'"),
        (gives_none, "verdict"),
        (too_short, "verdict"),
        (writes_into_the_task, "pure"),
        (counts_calls, "repeat"),
        (rewards_what_it_saw_first, "independent"),
        (first_of_its_group, "order"),
        (needs_company, "survives: .*IndexError"),
        (reads_json, "survives: .*ZeroDivisionError"),
        (hangs_on_brackets, "survives: .*within its limit of 1 s"),
        (dies_on_nul, "survives: .*process died"),
        (wants_text, "survives: .*NoneType"),
        (sings_wrong, "canary"),
        (Unpicklable(), "pickle"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_careless_reward_is_caught_by_the_law_it_breaks(fn, law):
    MEMORY.clear()
    with pytest.raises(AssertionError, match=f"^({law})"):
        check_reward(fn, copy.deepcopy(TASKS), timeout_s=1.0)


@defaults(on_error=0.0)
def declares_its_deadline(task, trajectory):
    return hangs_on_brackets(task, trajectory)


def test_a_reward_that_declares_what_stands_in_may_run_into_its_deadline():
    check_reward(declares_its_deadline, TASKS, timeout_s=0.5)


def test_the_texts_are_the_same_every_time():
    assert fuzz_texts() == fuzz_texts() and len(set(fuzz_texts())) > 80
