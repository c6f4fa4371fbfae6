"""Function calls: every category of the taxonomy, every way to write a call, and what is no call."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.errors import TaskError
from rlft.rewards.function_call import Call, exactly, function_call, grade_call
from rlft.rewards.grader import spoken
from rlft.types import Completion, Task, Trajectory, Turn


def tool(tool_name, *parameters):
    return {"type": "function", "function": {"name": tool_name, "parameters": {"properties": {p: {"type": "string"} for p in parameters}}}}


TOOLS = [tool("weather", "city", "unit", "day"), tool("time", "city")]
GOLD = {"name": "weather", "arguments": {"city": "Oslo", "day": "today"}}


def task(answer=GOLD, tools=TOOLS):
    return Task("t", ({"role": "user", "content": "?"},), answer, {"tools": tools})


def graded(text, answer=GOLD, tools=TOOLS, **options):
    return function_call(task(answer, tools), spoken(task(), text), **options)


def call(tool_name="weather", **arguments):
    return f"<tool_call>{json.dumps({'name': tool_name, 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize(
    ("text", "value", "category"),
    [
        (call(city="Oslo", day="today"), 1.0, "correct"),
        (call(city="Oslo", day="tomorrow"), -0.25, "wrong values: ['day']"),
        (call(city="Oslo", day="today", unit="C"), -0.5, "redundant parameters: ['unit']"),
        (call(city="Oslo"), -0.5, "missing parameters: ['day']"),
        (call(city="Oslo", day="today", wind=1), -0.8, "hallucinated parameters: ['wind']"),
        (call(city="Oslo", unit="C"), -1.0, "redundant parameters: ['unit'], missing parameters: ['day']"),
        (call(city="Oslo", day="today", unit="C", wind=1), -1.3, "hallucinated"),
        (call(city="Oslo", wind=1), -1.3, "missing"),
        (call("time", city="Oslo"), -1.5, "wrong tool: 'time'"),
        (call(city="Oslo", unit="C", wind=1), -1.8, "redundant"),
        (call("news", city="Oslo"), -2.0, "unknown tool: 'news'"),
        ("<tool_call>{'name': 'weather'}</tool_call>", -2.0, "unparsable"),
        ('<tool_call>{"name": "weather"}', -2.0, "unparsable"),
        ("It rains.", -2.0, "unparsable: no call"),
        ("", -2.0, "unparsable: no call"),
    ],
)
def test_the_taxonomy(text, value, category):
    got, feedback = graded(text)
    assert got == value
    assert category in feedback


@pytest.mark.parametrize("right", [set(c) for n in range(4) for c in itertools.combinations("abc", n)])
@pytest.mark.parametrize("said", [set(c) for n in range(5) for c in itertools.combinations("abxy", n)])
def test_the_order_of_cases_is_that_of_the_paper(right, said):
    known = frozenset("abc")
    hallucinated, redundant, missing = bool(said - known), bool((said & known) - right), bool(right - said)
    if hallucinated and redundant and missing:
        expected = -1.8
    elif hallucinated and (redundant or missing):
        expected = -1.3
    elif redundant and missing:
        expected = -1.0
    elif hallucinated:
        expected = -0.8
    else:
        expected = -0.5 if redundant or missing else 1.0
    got = grade_call(Call("f", dict.fromkeys(said, 1)), exactly(Call("f", dict.fromkeys(right, 1))), {"f": known})
    assert got[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOLD),
        json.dumps([GOLD]),
        f"I look:\n```json\n{json.dumps(GOLD)}\n```",
        f"<think>{{</think><tool_call>\n{json.dumps(GOLD)}\n</tool_call>",
        json.dumps({"name": "weather", "arguments": json.dumps(GOLD["arguments"])}),
        json.dumps({"name": "weather", "parameters": GOLD["arguments"]}),
    ],
)
def test_a_call_may_be_written_in_many_ways(text):
    assert graded(text)[0] == 1.0
    assert graded(text, json.dumps(GOLD), json.dumps(TOOLS))[0] == 1.0
    assert graded(text.replace("today", "later"))[0] == -0.25


def test_tool_calls_of_the_last_message_count_first():
    calls = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(GOLD["arguments"])}}]
    turns = [
        Turn([], Completion([], [], "stop", 0), {"role": "assistant", "content": content, "tool_calls": made}, [])
        for content, made in (("", None), ("<tool_call>{}</tool_call>", calls))
    ]
    assert function_call(task(), Trajectory(task(), 0, tuple(turns), "completed"))[0] == 1.0
    assert function_call(task(), Trajectory(task(), 0, tuple(turns[::-1]), "completed"))[0] == -2.0


SECOND = {"name": "time", "arguments": {"city": "Rome"}}


def test_several_calls_earn_their_mean():
    first, second = call(**GOLD["arguments"]), call("time", city="Rome")
    assert graded(first + second, [GOLD, SECOND])[0] == 1.0
    assert graded(second + first, [GOLD, SECOND])[0] == -1.5
    assert graded(second + first, [GOLD, SECOND], ordered=False)[0] == 1.0
    assert graded(first, [GOLD, SECOND])[0] == (1.0 - 1.5) / 2
    assert graded(first + second)[0] == (1.0 - 1.5) / 2
    assert graded(first + call("news"), [GOLD, SECOND])[0] == -2.0


def test_listing_every_call_does_not_pay():
    every = "".join(call(city=city, day=day) for city in ("Oslo", "Rome") for day in ("today", "tomorrow"))
    assert graded(every, ordered=False)[0] < 0


def test_no_call_may_be_what_is_wanted():
    assert graded("It rains.", []) == (1.0, "correct: no call")
    assert graded("```python\nprint(1)\n```", [])[0] == 1.0
    assert graded(call(city="Oslo"), [])[0] == -1.5


@pytest.mark.parametrize(
    ("answer", "tools"),
    [
        (None, TOOLS),
        (GOLD, None),
        (GOLD, []),
        (GOLD, [5]),
        (GOLD, [{"type": "function", "function": {}}]),
        ("weather", TOOLS),
        ({"name": "news", "arguments": {}}, TOOLS),
        ({"name": "time", "arguments": {"day": "today"}}, TOOLS),
    ],
)
def test_tasks_that_cannot_be_graded_raise(answer, tools):
    with pytest.raises(TaskError):
        graded(call(city="Oslo"), answer, tools)


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", '{"name": "weather"', ', "arguments": ', '{"city": "Oslo"}', "}", "{", "[", "]", "5", '"', "null",
        "```json\n", "\n```", "\ud800"]
)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=12).map("".join)))
def test_any_text_earns_a_number_of_the_scale(text):
    for wanted in (GOLD, [], [GOLD, SECOND]):
        value = graded(text, wanted)[0]
        assert math.isfinite(value) and -2 <= value <= 1


@settings(deadline=None)
@given(
    st.one_of(
        st.none(),
        st.text(max_size=5),
        st.integers(),
        st.lists(
            st.one_of(st.none(), st.text(max_size=5), st.fixed_dictionaries({},
                optional={"function": st.none() | st.dictionaries(st.text(max_size=3), st.text())})),
            max_size=3,
        ),
    )
)
def test_any_tool_calls_earn_a_number(calls):
    turn = Turn([], Completion([], [], "stop", 0), {"role": "assistant", "content": None, "tool_calls": calls}, [])
    assert function_call(task(), Trajectory(task(), 0, (turn,), "completed"))[0] == -2.0


def test_gold_calls_may_be_in_the_form_of_a_message_and_tools_in_that_of_xlam():
    said_so, otherwise = json.dumps(GOLD), json.dumps({**GOLD, "arguments": {"city": "Rome", "day": "today"}})
    wrapped = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps(GOLD["arguments"])}}
    xlam = [{"name": "weather", "description": "", "parameters": {name: {"type": "str"} for name in ("city", "unit", "day")}}]
    for answer, tools in ((wrapped, TOOLS), ([wrapped], TOOLS), (json.dumps([GOLD]), json.dumps(xlam))):
        assert [graded(text, answer, tools)[0] for text in (said_so, otherwise)] == [1.0, -0.25]


def test_a_tool_without_parameters_has_none_whatever_its_schema_leaves_out():
    bare = [{"name": "now", "parameters": {"type": "object"}}, {"name": "today"}]
    assert graded('{"name": "now", "arguments": {}}', {"name": "now", "arguments": {}}, bare)[0] == 1.0
    assert graded('{"name": "now", "arguments": {"type": 1}}', {"name": "now", "arguments": {}}, bare)[0] == -0.8


ACCEPTED = {"city": ["Oslo", "Kristiania"], "unit": ["", "C"], "day": [["today", 1], {"is": ["now", "today"], "at": ["", 5]}]}


@pytest.mark.parametrize("answer", [{"name": "weather", "accepted": ACCEPTED}, [{"weather": ACCEPTED}], json.dumps({"weather": ACCEPTED})])
@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"city": "Oslo", "day": ["today", 1]}, 1.0),
        ({"city": "Kristiania", "day": ["today", 1.0], "unit": "C"}, 1.0),
        ({"city": "Oslo", "day": {"is": "now"}}, 1.0),
        ({"city": "Oslo", "day": {"is": "today", "at": 5}}, 1.0),
        ({"city": "Bergen", "day": {"is": "now"}}, -0.25),
        ({"city": "Oslo", "day": ["today", True]}, -0.25),
        ({"city": "Oslo", "day": ["today"]}, -0.25),
        ({"city": "Oslo", "day": {"at": 5}}, -0.25),
        ({"city": "Oslo", "day": {"is": "now", "x": 1}}, -0.25),
        ({"city": "Oslo", "day": {"is": ["now", "today"], "at": ["", 5]}}, -0.25),
        ({"city": ["Oslo", "Kristiania"], "day": ["today", 1]}, -0.25),
        ({"city": "Oslo", "day": ["today", 1], "unit": "F"}, -0.25),
        ({"city": "Oslo", "unit": "C"}, -0.5),
        ({"day": {"is": "now"}}, -0.5),
        ({"city": "Oslo", "day": {"is": "now"}, "wind": 1}, -0.8),
    ],
)
def test_a_gold_call_may_accept_several_values_and_leave_arguments_out(answer, arguments, value):
    assert graded(call(**arguments), answer)[0] == value


@pytest.mark.parametrize("accepted", [5, {"city": "Oslo"}, {"city": []}, {"city": ["Oslo"], "wind": [1]}])
def test_accepted_values_that_are_no_lists_or_of_no_parameter_are_a_broken_task(accepted):
    for answer in ({"name": "weather", "accepted": accepted}, {"weather": accepted}):
        with pytest.raises(TaskError):
            graded(call(city="Oslo"), answer)


def test_an_optional_argument_that_the_tool_does_not_have_can_only_be_left_out():
    gold = {"weather": {"city": ["Oslo"], "wind": ["", 1]}}
    assert graded(call(city="Oslo"), gold)[0] == 1.0
    assert graded(call(city="Oslo", wind=1), gold)[0] == -0.8


def test_calls_in_any_order_are_paired_so_that_as_many_as_can_be_are_right():
    gold = [{"time": {"city": ["Oslo", "Rome", "Bern"]}}, {"time": {"city": ["Rome", "Oslo"]}}, {"time": {"city": ["Oslo"]}}]
    for cities in itertools.permutations(["Oslo", "Rome", "Bern"]):
        said_so = "".join(call("time", city=city) for city in cities)
        assert graded(said_so, gold, ordered=False)[0] == 1.0
    assert graded("".join(call("time", city=city) for city in ("Rome", "Rome", "Bern")), gold, ordered=False)[0] == (1 + 1 - 0.25) / 3
    assert graded("".join(call("time", city=city) for city in ("Bern", "Rome", "Oslo")), gold)[0] == 1.0


def test_loose_texts_are_those_of_bfcl():
    gold = {"name": "weather", "arguments": {"city": "St. John's", "day": "April 1, 2024"}}
    for city, day in (("st johns", "april 1 2024"), ('ST-JOHN"S', "April-1/2024")):
        value = 1.0 if '"' in city else -0.25  # a quotation mark is not dropped
        assert graded(call(city=city, day=day), gold, loose=True)[0] == value
        assert graded(call(city=city, day=day), gold)[0] == -0.25
