"""Reward functions written the way other libraries document them give the same numbers here."""

import asyncio
import re
import sys
from typing import Any

import cloudpickle
import pytest
import torch

from rlft.actors.reward import RewardWorker
from rlft.errors import ConfigError, RewardError, TaskError
from rlft.rewards.adapters.calling import asked_for, one_each
from rlft.rewards.adapters.openrlhf import openrlhf_reward
from rlft.rewards.adapters.reasoning_gym import reasoning_gym
from rlft.rewards.adapters.trl import trl_reward
from rlft.rewards.adapters.verifiers import verifiers_rubric
from rlft.rewards.adapters.verl import verl_reward
from rlft.rewards.grader import spoken
from rlft.types import Completion, Group, Task, Trajectory, Turn

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # grading processes need not import this file


def user(text):
    return {"role": "user", "content": text}


def group(task, *texts):
    return Group("g", tuple(spoken(task, text) for text in texts))


def graded(table, of):
    """What a run would pay, through real grading processes."""

    async def main():
        worker = RewardWorker(table, 1, 60.0)
        try:
            return (await worker.grade([of]))[0].trajectories
        finally:
            await worker.close()

    return asyncio.run(main())


# --- TRL


def boxed(completions, ground_truth, **kwargs):
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]


def of_messages(completions: list[list[dict[str, str]]], **kwargs) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def math_only(prompts, completions, task, **kwargs):
    return [float(c == "4") if t == "math" else None for c, t in zip(completions, task, strict=True)]


def logs(completions, log_extra=None, log_metric=None, trainer_state=None, **kwargs):
    log_extra("length", [len(c) for c in completions])
    log_metric("step", float(trainer_state.global_step))
    return [float(trainer_state.global_step)] * len(completions)


async def later(prompts, completions, completion_ids, **kwargs):
    await asyncio.sleep(0)
    return [float(len(ids)) for ids in completion_ids]


def strict_arguments(completions, answer):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


SYSTEM = {"role": "system", "content": "s"}
SUM = Task("1", (user("2+2="),), "4", {"task": "math", "level": 1})


def test_trl_columns_reach_a_function_under_its_names():
    found = trl_reward(group(SUM, r"\boxed{4}", r"\boxed{5}", "4"), function=boxed, columns={"ground_truth": "answer"})
    assert found == [1.0, 0.0, 0.0]
    assert trl_reward(group(SUM, "4", "5"), function=strict_arguments) == [1.0, 0.0]
    with pytest.raises(TaskError, match="names 'solution'; the tasks have"):
        trl_reward(group(SUM, "4"), function=boxed, columns={"ground_truth": "solution"})


def test_trl_none_means_that_the_reward_does_not_apply():
    writing = Task("2", (user("Write."),), None, {"task": "writing"})
    mixed = Group("g", (spoken(SUM, "4"), spoken(writing, "4"), spoken(SUM, "5")))
    assert trl_reward(mixed, function=math_only) == [1.0, None, 0.0]
    first, none, wrong = graded({"math": {"fn": trl_reward, "function": math_only}}, mixed)
    assert [t.status for t in (first, none, wrong)] == ["completed"] * 3
    assert (first.parts, none.parts, wrong.parts) == ({"math": 1.0}, {}, {"math": 0.0})


@pytest.mark.parametrize(
    ("messages", "option", "expected"),
    [
        ((user("hi"),), None, ["hi"]),
        ((SYSTEM, user("hi")), None, [[SYSTEM, user("hi")]]),
        ((user("hi"),), True, [[user("hi")]]),
        ((SYSTEM, user("hi")), False, ["s\nhi\n"]),
    ],
)
def test_trl_texts_or_messages(messages, option, expected):
    seen = {}

    def look(prompts, completions, **kwargs):
        seen.update(prompts=prompts, completions=completions)
        return [0.0]

    trl_reward(group(Task("1", messages), "hello"), function=look, conversational=option)
    said = "hello" if isinstance(expected[0], str) else [{"role": "assistant", "content": "hello"}]
    assert seen == {"prompts": expected, "completions": [said]}


def test_trl_an_annotation_says_that_completions_are_messages():
    assert trl_reward(group(SUM, "abc", ""), function=of_messages) == [3.0, 0.0]


def test_trl_completions_hold_what_tools_answered():
    call, tool, end = {"role": "assistant", "content": None}, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "It is 4."}
    sampled = Completion([1, 2], [0.0, 0.0], "stop", 7)
    turns = (Turn([], sampled, call, [], observed=SUM.messages), Turn([], sampled, end, [], observed=(tool,)))
    played = Group("g", (Trajectory(SUM, 0, turns, "completed"),))
    seen: list[Any] = []
    trl_reward(played, function=lambda completions, **kwargs: seen.append(completions) or [0.0], conversational=True)
    assert seen == [[[call, tool, end]]]
    assert asyncio.run(trl_reward(played, function=later)) == [4.0]
    assert trl_reward(played, function=logs) == [7.0]


# --- verl


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    extra_info["seen"] = True
    score = float(solution_str == ground_truth)
    return {"score": score, "acc": data_source == "gsm8k", "pred": solution_str, "turns": extra_info["num_turns"]}


async def compute_later(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    await asyncio.sleep(0)
    return kwargs["scale"] * float(solution_str == ground_truth)


VERL = Task("1", (user("2+2="),), None, {"data_source": "gsm8k", "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 3}})


def test_verl_rows_are_used_as_they_are_and_further_numbers_are_feedback():
    assert verl_reward(VERL, spoken(VERL, "4"), function=compute_score) == (1.0, "acc = 1\nturns = 1")
    assert verl_reward(SUM, spoken(SUM, "5"), function=compute_score, data_source="own") == (0.0, "acc = 0\nturns = 1")
    assert VERL.meta["extra_info"] == {"index": 3}
    assert asyncio.run(verl_reward(VERL, spoken(VERL, "4"), function=compute_later, kwargs={"scale": 0.5})) == 0.5
    (paid,) = graded({"gsm": {"fn": verl_reward, "function": compute_score, "weight": 2.0}}, group(VERL, "4"))
    assert (paid.reward, paid.parts, paid.feedback) == (2.0, {"gsm": 1.0}, "acc = 1\nturns = 1")


def test_verl_without_truth_or_score_is_not_graded():
    with pytest.raises(TaskError, match="neither an answer nor"):
        verl_reward(Task("1", ()), spoken(SUM, "4"), function=compute_score)
    with pytest.raises(RewardError, match="with 'score'"):
        verl_reward(SUM, spoken(SUM, "4"), function=lambda **kwargs: {"acc": 1.0})


# --- OpenRLHF


def reward_func(queries, prompts, labels, **kwargs):
    rewards = torch.tensor([float(q[len(p) :] == label) for q, p, label in zip(queries, prompts, labels, strict=True)])
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"doubled": 2 * rewards}}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (reward_func, [(1.0, "score = 1\ndoubled = 2"), (0.0, "score = 0\ndoubled = 0")]),
        (lambda queries, prompts, labels: torch.tensor([[0.5], [0.25]]), [(0.5, ""), (0.25, "")]),
        (lambda queries, prompts, labels: {"rewards": [1, 0], "extra_logs": {"mean": 0.5}}, [(1, "mean = 0.5"), (0, "mean = 0.5")]),
        (lambda queries, prompts, labels: [float(len(q)) for q in queries], [(6.0, ""), (6.0, "")]),
    ],
)
def test_openrlhf_tensors_lists_and_logs(function, expected):
    assert openrlhf_reward(group(SUM, "4", "5"), function=function) == expected


@pytest.mark.parametrize("returned", [[1.0], {"scores": [1.0, 0.0]}, torch.tensor(1.0), "11"])
def test_openrlhf_anything_but_one_reward_per_answer_is_no_verdict(returned):
    with pytest.raises(RewardError, match="expected"):
        openrlhf_reward(group(SUM, "4", "5"), function=lambda *args: returned)


# --- verifiers


class Rubric:
    """As verifiers': functions, weights, a parser."""

    def __init__(self, funcs, weights=None, parser=None):
        self.funcs, self.weights, self.parser = funcs, weights or [], parser


class Parser:
    def parse_answer(self, completion):
        return completion[-1]["content"].strip()


def correct(completion, answer, parser) -> float:
    return 1.0 if parser.parse_answer(completion) == answer else 0.0


async def noted_in_state(prompt, completion, state, **kwargs) -> float:
    state["level"] = kwargs["level"]
    return float(len(completion))


def level(state, info) -> float:
    return float(state["level"] + info.get("bonus", 0))


def rarest(completions, answers) -> list[float]:
    said = [completion[0]["content"] for completion in completions]
    return [1 / said.count(text) for text in said]


def fails_on_five(completion) -> float:
    return 1 / (0 if completion[0]["content"] == "5" else 1)


def rubric():
    return Rubric([correct, noted_in_state, level, rarest], [1.0, 0.0, 0.1, 0.5], Parser())


def test_verifiers_functions_get_what_they_name_and_are_weighed():
    found = asyncio.run(verifiers_rubric(group(SUM, "4", " 4 ", "5", "5"), rubric=rubric))
    values, said = zip(*found, strict=True)
    assert values == pytest.approx((1.6, 1.6, 0.35, 0.35))
    assert said[0] == "correct = 1\nnoted_in_state = 1\nlevel = 1\nrarest = 1"
    paid = graded({"rubric": {"fn": verifiers_rubric, "rubric": rubric}}, group(SUM, "4", "5"))
    assert [t.parts["rubric"] for t in paid] == pytest.approx([1.6, 0.6])


def test_verifiers_groups_of_rubrics_add_up_and_weights_default_to_one():
    both = Rubric([])
    both.rubrics = [Rubric([correct], [], Parser()), Rubric([correct], [2.0], Parser())]
    assert asyncio.run(verifiers_rubric(group(SUM, "4"), rubric=both))[0][0] == 3.0
    with pytest.raises(ConfigError, match="expected a rubric"):
        asyncio.run(verifiers_rubric(group(SUM, "4"), rubric=lambda: 3))


def test_verifiers_a_function_that_raises_leaves_its_answer_ungraded_and_the_others_alone():
    good, bad = asyncio.run(verifiers_rubric(group(SUM, "4", "5"), rubric=Rubric([fails_on_five])))
    assert good == (1.0, "fails_on_five = 1")
    assert isinstance(bad, RewardError) and "ZeroDivisionError" in str(bad)


# --- reasoning-gym


class Legs:
    """As a data set of reasoning-gym."""

    def __init__(self, partial=0.01):
        self.partial = partial

    def score_answer(self, answer, entry):
        assert entry["question"] == "How many legs has a cat?" and entry["metadata"]["source_dataset"] == f"{__name__}:Legs"
        return 1.0 if answer == entry["answer"] else self.partial


def test_reasoning_gym_scores_against_the_entry(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    task = Task("1", (user("How many legs has a cat?"),), "4", {"metadata": {"source_dataset": f"{__name__}:Legs", "source_index": 0}})
    assert [reasoning_gym(task, spoken(task, text)) for text in ("4", " 4\n", "five")] == [1.0, 1.0, 0.01]
    assert reasoning_gym(task, spoken(task, "five"), config={"partial": 0.5}) == 0.5
    tagged = {"tag": "answer"}
    texts = ("<answer>3</answer> no: <answer> 4 </answer>", "4", "<answer>4")
    assert [reasoning_gym(task, spoken(task, text), **tagged) for text in texts] == [1.0, 0.01, 0.01]
    with pytest.raises(TaskError, match="set the option dataset"):
        reasoning_gym(SUM, spoken(SUM, "4"))


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match="pip install reasoning-gym"):
        reasoning_gym(SUM, spoken(SUM, "4"), dataset="leg_counting_of_nobody")


# --- what they share


def test_only_named_arguments_are_passed_unless_all_are_wanted():
    offered = {"a": 1, "b": 2}
    assert asked_for(lambda a: 0, offered) == {"a": 1}
    assert asked_for(lambda a, **rest: 0, offered) == offered
    assert asked_for(lambda a, /, b: 0, offered) == {"b": 2}


def test_a_function_is_named_in_the_run_file(tmp_path, monkeypatch):
    (tmp_path / "brought_from_trl.py").write_text("def one(completions, **kwargs):\n    return [1.0 for _ in completions]\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = {"ones": {"fn": "rlft.rewards.adapters.trl:trl_reward", "function": "brought_from_trl:one", "weight": 0.5}}
    assert [t.reward for t in graded(table, group(SUM, "a", "b"))] == [0.5, 0.5]
    with pytest.raises(ConfigError, match="has no attribute 'two'"):
        graded({"ones": {**table["ones"], "function": "brought_from_trl:two"}}, group(SUM, "a"))


def test_values_per_answer_come_from_lists_arrays_and_tensors():
    assert one_each(torch.tensor([[1.0], [2.0]]), 2, "x") == one_each([1.0, 2.0], 2, "x") == [1.0, 2.0]
    with pytest.raises(RewardError, match="x returned"):
        one_each([1.0], 2, "x")
