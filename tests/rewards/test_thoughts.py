"""A thought holds no answer: not one that has ended, and above all not one that never did."""

import asyncio
import json
import sys
import types
from dataclasses import replace

import pytest

from rlft.chat.thoughts import MARKS, answer_of, left_open
from rlft.rewards import builtin, choice, countdown, function_call, instructions, quantity, ranking, sql, structured, text
from rlft.rewards.adapters.reasoning_gym import reasoning_gym
from rlft.rewards.code import code_tests
from rlft.rewards.compose import _SHIPPED
from rlft.rewards.grader import spoken
from rlft.rewards.math import math_equal
from rlft.rewards.wire import decode_groups, encode_groups
from rlft.types import Group, Task

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]
CALL = '{"name": "add", "arguments": {"x": 1}}'
IFEVAL = {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["sea"]}]}


class Exact:
    """A data set with reasoning-gym's interface."""

    @staticmethod
    def score_answer(answer, entry):
        return float(answer == entry["answer"])


# Every verifier that reads an answer: its name, the task's answer and fields, and a right text.
READERS = {
    "exact_match": (builtin.exact_match, "4", {}, "4"),
    "exact_match of nothing": (builtin.exact_match, "", {}, " "),
    "number_match": (builtin.number_match, "4", {}, "so 4"),
    "math_equal": (math_equal, "4", {}, r"it is \boxed{4}"),
    "multiple_choice": (choice.multiple_choice, "B", {}, "The answer is B."),
    "multiple_choice by text": (choice.multiple_choice, "B", {"options": ["Rome", "Paris"]}, "Therefore, Paris is the capital."),
    "quantity": (quantity.quantity, "4 km", {}, "4000 m"),
    "countdown": (countdown.countdown, None, {"numbers": [1, 3], "target": 4}, "1 + 3 = 4"),
    "json_schema": (structured.json_schema, None, {"schema": {"type": "object"}}, '{"a": 1}'),
    "key_value_f1": (structured.key_value_f1, {"a": 1}, {}, '{"a": 1}'),
    "graph_f1": (structured.graph_f1, [["a", "b"]], {}, "a -> b"),
    "set_match": (ranking.set_match, ["a", "b"], {}, "b, a"),
    "set_match of nothing": (ranking.set_match, [], {}, "[]"),
    "list_match": (ranking.list_match, ["a", "b"], {}, "a, b"),
    "list_match of nothing": (ranking.list_match, [], {}, "[]"),
    "ranking": (ranking.ranking, ["a", "b"], {}, "[a] > [b]"),
    "function_call": (function_call.function_call, json.loads(CALL), {"tools": TOOLS}, f"<tool_call>{CALL}</tool_call>"),
    "function_call of nothing": (function_call.function_call, [], {"tools": TOOLS}, "There is nothing to call."),
    "instructions": (instructions.instructions, None, IFEVAL, "the sea"),
    "bleu": (text.bleu, "the cat sat down", {}, "the cat sat down"),
    "chrf": (text.chrf, "the cat", {}, "the cat"),
    "rouge": (text.rouge, "the cat", {}, "the cat"),
    "sql_equal": (sql.sql_equal, "SELECT 1", {"schema": "CREATE TABLE t (a);"}, "SELECT 1"),
    "reasoning_gym": (reasoning_gym, "4", {"metadata": {"source_dataset": "exact:Exact"}}, "4"),
    "reasoning_gym of nothing": (reasoning_gym, "", {"metadata": {"source_dataset": "exact:Exact"}}, " "),
}
OTHERS = {
    "code_tests": "below, since it needs no sandbox to see that there is no program",
    "regex": "below, since it reads thoughts too",
    "format_tags": "reads thoughts, and they must be closed",
    "length": "counts tokens",
    "overlong": "counts tokens",
    **dict.fromkeys(_SHIPPED["shaping"], "reads the parts of other rewards"),
    **dict.fromkeys(("trl_reward", "verl_reward", "openrlhf_reward", "verifiers_rubric"), "hands the text to somebody else's function"),
}


ANSWERS = {name: read[3] for name, read in READERS.items()}


@pytest.fixture(autouse=True)
def data_set(monkeypatch):
    module = types.ModuleType("exact")
    module.Exact = Exact
    monkeypatch.setitem(sys.modules, "exact", module)


def earned(reader, said, opened=""):
    reward, answer, meta, _ = READERS[reader]
    task = Task("t", ({"role": "user", "content": "?"},), answer, meta)
    made = spoken(task, said)
    value = reward(task, replace(made, turns=(replace(made.turns[0], opened=opened),)))
    return value[0] if isinstance(value, tuple) else value


def test_every_reward_that_ships_is_here():
    """So that no verifier can be added that reads answers in thoughts."""
    assert {name for names in _SHIPPED.values() for name in names} == {name.partition(" ")[0] for name in READERS} | set(OTHERS)


@pytest.mark.parametrize("reader", READERS)
def test_an_answer_behind_a_thought_counts(reader):
    right = ANSWERS[reader]
    assert earned(reader, right) == pytest.approx(1.0)
    assert earned(reader, f"<think>hm</think>{right}") == pytest.approx(1.0)
    assert earned(reader, f"hm</think>{right}", opened="<think>") == pytest.approx(1.0)


@pytest.mark.parametrize("reader", READERS)
def test_a_thought_that_never_ended_holds_no_answer(reader):
    right = ANSWERS[reader]
    assert earned(reader, f"<think>let me see: {right}") <= 0
    assert earned(reader, f"<think>{right}") <= 0
    assert earned(reader, right, opened="<think>") <= 0
    assert earned(reader, f"<think>hm</think>{right}\n<think>{right}") <= 0
    assert earned(reader, f"<think>hm</think> well <think> {right}", opened="<think>") <= 0


@pytest.mark.parametrize("reader", [name for name in READERS if "of nothing" not in name])
def test_the_right_answer_within_a_thought_does_not_make_up_for_none_behind_it(reader):
    assert earned(reader, f"<think>{ANSWERS[reader]}</think>I do not know.") < 0.5


@pytest.mark.parametrize(("opening", "end"), MARKS)
def test_thoughts_are_known_by_the_marks_of_the_model_families(opening, end):
    assert earned("math_equal", rf"{opening}\boxed{{5}}{end}\boxed{{4}}") == 1.0
    assert earned("math_equal", rf"\boxed{{5}}{end}\boxed{{4}}", opened=opening) == 1.0
    assert earned("math_equal", rf"{opening}\boxed{{4}}") == earned("math_equal", r"\boxed{4}", opened=opening) == 0.0
    assert earned("math_equal", rf"{opening}\boxed{{4}}{end}\boxed{{5}}") == 0.0
    assert (answer_of(f"{opening}a{end}b"), answer_of(f"{opening}a"), answer_of("a")) == ("b", None, "a")
    assert (left_open(f"x{opening}a"), left_open(f"x{opening}a{end}"), left_open("x")) == (opening, "", "")


def test_code_in_a_thought_that_never_ended_is_no_program():
    for said, opened in (("<think>```python\nprint(1)\n```", ""), ("```python\nprint(1)\n```", "<think>")):
        made = spoken(Task("t", (), json.dumps({"inputs": [""], "outputs": ["1"]})), said)
        made = replace(made, turns=(replace(made.turns[0], opened=opened),))
        assert asyncio.run(code_tests(made.task, made)) == (0.0, "there is no program")


@pytest.mark.parametrize(
    ("said", "opened", "value"),
    [
        ("2+2</think><answer>4</answer>", "<think>", 1.0),
        ("<think>2+2</think><answer>4</answer>", "", 1.0),
        ("2+2</think><answer>4</answer>", "", 0.0),
        ("<think>2+2</think><answer>4</answer>", "<think>", 0.0),
        ("2+2<answer>4</answer>", "<think>", 0.0),
        ("", "<think>", 0.0),
    ],
)
def test_the_tag_that_the_prompt_opened_counts_for_the_format(said, opened, value):
    made = spoken(Task("t", ()), said)
    made = replace(made, turns=(replace(made.turns[0], opened=opened),))
    assert builtin.format_tags(made.task, made, tags=["think", "answer"]) == value
    assert builtin.regex(made.task, made, pattern="(?s)<think>[^<]*</think>\\s*<answer>[^<]*</answer>", mode="fullmatch") == value


def test_a_pattern_matches_nothing_in_a_thought_that_never_ended():
    task = Task("t", ())
    assert builtin.regex(task, spoken(task, "<think>4"), pattern="4") == 0.0
    assert builtin.regex(task, spoken(task, "<think>5</think>4"), pattern="4") == 1.0


@pytest.mark.parametrize("opened", ["", "<think>"])
def test_what_the_prompt_opened_goes_along_to_a_reward_behind_http(opened):
    made = spoken(Task("t", ()), "4")
    made = replace(made, turns=(replace(made.turns[0], opened=opened),))
    [group] = decode_groups(json.loads(encode_groups([Group("g", (made,))])))
    assert group.trajectories[0].turns[0].opened == opened
    assert (b"opened" in encode_groups([Group("g", (made,))])) == bool(opened)
