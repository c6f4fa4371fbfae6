"""What holds for every verifier that ships: gold answers earn 1, degenerate ones nothing, and anything at all gets a verdict."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.names import import_object
from rlft.rewards.grader import Rule, spoken, verdicts
from rlft.types import Task

CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {}}}}}]
GRAPH = [["a", "b"], ["b", "c"]]
OPTIONS = ["Rome", "Paris", "Oslo", "Bern"]

# reward -> (answer, meta, options, the gold answer as it is said)
CASES = {
    "structured:json_schema": ({"a": 1}, {"schema": {"required": ["a"]}}, {"compare": True}, '{"a": 1}'),
    "structured:key_value_f1": ({"a": 1, "b": [2, 3]}, {}, {}, '{"a": 1, "b": [2, 3]}'),
    "structured:graph_f1": (GRAPH, {}, {}, json.dumps(GRAPH)),
    "choice:multiple_choice": ("B", {"options": OPTIONS}, {}, "B"),
    "quantity:quantity": ("36 km/h", {}, {}, "36 km/h"),
    "ranking:set_match": (["x", "y"], {}, {}, '["x", "y"]'),
    "ranking:list_match": (["x", "y"], {}, {}, '["x", "y"]'),
    "ranking:ranking": (["3", "1", "2"], {}, {}, "[3] > [1] > [2]"),
    "function_call:function_call": (CALL, {"tools": TOOLS}, {}, json.dumps(CALL)),
    "instructions:instructions": (None, {"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}, {}, '"so"'),
    "text:bleu": ("several grey dogs ran past", {}, {}, "several grey dogs ran past"),
    "text:chrf": ("several grey dogs ran past", {}, {}, "several grey dogs ran past"),
    "text:rouge": ("several grey dogs ran past", {}, {}, "several grey dogs ran past"),
    "countdown:countdown": (None, {"numbers": [2, 3, 4], "target": 10}, {}, "2*3+4"),
    "sql:sql_equal": ("SELECT a FROM t", {"schema": "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)"}, {}, "SELECT a FROM t"),
}
LOWEST = {"function_call:function_call": -2.0}


def verdict(name, text):
    answer, meta, options, _ = CASES[name]
    task = Task("t", ({"role": "user", "content": "What is asked for?"},), answer, meta)
    returned = import_object(f"rlft.rewards.{name}")(task, spoken(task, text), **options)
    ((value, feedback),) = verdicts(Rule(name), returned, 1)
    return value, feedback


@pytest.mark.parametrize("name", CASES)
def test_gold_answers_earn_one_with_and_without_a_thought(name):
    gold = CASES[name][3]
    for text in (gold, f"\n{gold}\n", f"<think>hm, {gold} or not</think>\n\n{gold}"):
        assert verdict(name, text)[0] == pytest.approx(1.0), text


@pytest.mark.parametrize("name", CASES)
def test_degenerate_answers_earn_next_to_nothing(name):
    gold = CASES[name][3]
    for text in ("", " \n", "What is asked for?", "I do not know.", "<think>" + gold + "</think>", "0", "[]", "{}", "null", "A B C D"):
        assert verdict(name, text)[0] <= 0.15, text


TOKENS = ["<answer>", "</answer>", "</think>", "<tool_call>", "</tool_call>", "\\boxed{", "}", "{", "[", "]", '"', "'", ",", ";", ">",
    "->", "1", "9e9", "-"]
TOKENS += ["\n", " ", "```json\n", "```sql\n", "\n```", "SELECT ", "(", ")", "*", "**", "km", "^", "/", "=", "B", "answer is ", "null",
    "\ud800", "\x00", "\u202e"]


@pytest.mark.parametrize("name", CASES)
@settings(deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(TOKENS), max_size=30).map("".join)))
def test_anything_at_all_gets_a_finite_number_and_feedback_that_can_be_stored(name, text):
    value, feedback = verdict(name, text)
    assert math.isfinite(value) and LOWEST.get(name, 0.0) <= value <= 1.0 + 1e-9
    feedback.encode("utf-8")


@pytest.mark.parametrize("name", CASES)
def test_a_message_without_text_gets_a_verdict(name):
    answer, meta, options, _ = CASES[name]
    task = Task("t", (), answer, meta)
    for content in (None, [{"type": "text", "text": "B"}]):
        trajectory = spoken(task, content)
        assert verdicts(Rule(name), import_object(f"rlft.rewards.{name}")(task, trajectory, **options), 1)[0][0] <= 0.0
