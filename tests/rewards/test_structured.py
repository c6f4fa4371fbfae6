"""JSON by schema, key-value F1, graph F1, and the reading of JSON beneath them."""

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.errors import RewardError, TaskError
from rlft.rewards.extract import blocks, canonical, final, is_json, last_boxed, last_fence, last_tag, read_json, said
from rlft.rewards.grader import spoken
from rlft.rewards.structured import graph_f1, json_schema, key_value_f1
from rlft.types import Task

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}, "tags": {"type": "array", "uniqueItems": True}},
    "required": ["name"],
    "additionalProperties": False,
}


def task(answer=None, **meta):
    return Task("t", ({"role": "user", "content": "?"},), answer, meta)


def graded(reward, given_task, text, **options):
    returned = reward(given_task, spoken(given_task, text), **options)
    return returned[0] if isinstance(returned, tuple) else returned


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name": "Ada"}', 1.0),
        ('{"name": "Ada", "age": 36.0}', 1.0),
        ('<think>{"no": 1}</think>\n{"name": "Ada"}', 1.0),
        ('Here:\n```json\n{"name": "Ada"}\n```\nDone.', 1.0),
        ('```json\n{"name": 1}\n```\nno:\n```json\n{"name": "Ada"}\n```', 1.0),
        ('```json\n{"name": "Ada"}\n```\nno:\n```json\n{"name": 1}\n```', 0.0),
        ('<answer>{"name": "Ada"}</answer> {', 1.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"name": "Ada", "age": true}', 0.0),
        ('{"name": "Ada", "x": 1}', 0.0),
        ('{"name": "Ada", "tags": [1, 1.0]}', 0.0),
        ('{"name": "Ada", "tags": [1, true, "1"]}', 1.0),
        ("{}", 0.0),
        ('{"name": "Ada"} trailing', 0.0),
        ('{"name": "Ada", "age": NaN}', 0.0),
        ('{"name": "Ada", "age": 1e999}', 0.0),
        ('{"name": "Ada", "age": ' + "9" * 5000 + "}", 0.0),
        ("", 0.0),
    ],
)
def test_json_schema_table(text, value):
    assert graded(json_schema, task(schema=SCHEMA), text) == value
    assert graded(json_schema, task(schema=json.dumps(SCHEMA)), text) == value
    assert graded(json_schema, task(), text, schema=SCHEMA) == value


@pytest.mark.parametrize(
    ("text", "value"), [('{"a": 1, "b": [2]}', 1.0), ('{"b": [2.0], "a": 1}', 1.0), ('{"a": true, "b": [2]}', 0.0), ('{"a": 1}', 0.0)]
)
def test_json_schema_also_compares_with_the_answer(text, value):
    assert graded(json_schema, task({"a": 1, "b": [2]}, schema={"type": "object"}), text, compare=True) == value
    assert graded(json_schema, task('{"a": 1, "b": [2]}', schema={"type": "object"}), text, compare=True) == value
    assert graded(json_schema, task({"other": 1}, schema={"type": "object"}), text) == 1.0


def test_feedback_says_where_the_schema_is_broken():
    given_task = task(schema=SCHEMA)
    value, feedback = json_schema(given_task, spoken(given_task, '{"name": "Ada", "age": -1}'))
    assert value == 0.0 and "$.age" in feedback and "-1" in feedback


@pytest.mark.parametrize(
    "schema", [None, [], "text", {"type": "no such type"}, {"$ref": "#"}, {"$ref": "https://example.org/schema.json"}, {"$ref": "#/gone"}]
)
def test_a_schema_that_cannot_be_applied_is_not_the_policys_fault(schema):
    with pytest.raises(TaskError):
        graded(json_schema, task(schema=schema), "{}")


def test_a_recursive_schema_meets_the_deepest_json_that_is_read():
    recursive = {"type": "array", "items": {"$ref": "#"}}
    assert graded(json_schema, task(schema=recursive), "[" * 64 + "]" * 64) == 1.0
    assert graded(json_schema, task(schema=recursive), "[" * 65 + "]" * 65) == 0.0


def test_unique_items_of_many_take_no_time():
    items = json.dumps([{"i": i} for i in range(20_000)])
    started = time.perf_counter()
    assert graded(json_schema, task(schema={"uniqueItems": True}), items) == 1.0
    assert graded(json_schema, task(schema={"uniqueItems": True}), items[:-1] + ', {"i": 7}]') == 0.0
    assert time.perf_counter() - started < 10  # the library's own takes minutes


GOLD = {"name": "Ada", "born": {"year": 1815, "place": "London"}, "tags": ["a", "b"]}  # 5 leaves


@pytest.mark.parametrize(
    ("said_value", "value"),
    [
        (GOLD, 1.0),
        ({"name": " Ada ", "born": {"place": "London", "year": 1815.0}, "tags": ["a", "b"]}, 1.0),
        ({}, 0.0),
        ({"name": "Ada"}, 2 * 1 / (1 + 5)),
        ({**GOLD, "extra": 1}, 2 * 5 / (6 + 5)),
        ({**GOLD, "tags": ["b", "a"]}, 2 * 3 / (5 + 5)),
        ({"name": "ada"}, 0.0),
        ({"born": {"name": "Ada"}}, 0.0),
        ([GOLD], 0.0),
        ("Ada", 0.0),
        (5, 0.0),
    ],
)
def test_key_value_f1_table(said_value, value):
    assert graded(key_value_f1, task(GOLD), json.dumps(said_value)) == pytest.approx(value)
    assert graded(key_value_f1, task(json.dumps(GOLD)), json.dumps(said_value)) == pytest.approx(value)


def test_key_value_f1_can_take_lists_as_multisets():
    said_value = json.dumps({**GOLD, "tags": ["b", "a"]})
    assert graded(key_value_f1, task(GOLD), said_value, ordered=False) == 1.0
    assert graded(key_value_f1, task({"t": ["a", "a"]}), '{"t": ["a", "b"]}', ordered=False) == 0.5


def test_listing_everything_does_not_pay():
    everything = {f"key{i}": i for i in range(200)} | GOLD
    assert graded(key_value_f1, task(GOLD), json.dumps(everything)) < 0.05


EDGES = [["a", "b"], ["b", "c"]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a -> b\nb -> c", 1.0),
        ("a -> b -> c", 1.0),
        ("- a --> b;\n- b \u2192 c", 1.0),
        ("1. a -> b\n2. b -> c\n3. a -> b", 1.0),
        (json.dumps(EDGES), 1.0),
        (json.dumps({"nodes": ["a", "b", "c"], "edges": [{"source": "a", "target": "b"}, ["b", "c"]]}), 1.0),
        ("b -> a\nb -> c", 0.5 * 1 + 0.5 * 0.5),
        ("a -> b", 0.5 * (2 * 2 / 5) + 0.5 * (2 * 1 / 3)),
        ("x -> y", 0.0),
        ("no graph at all", 0.0),
        ("[]", 0.0),
        ("5", 0.0),
        ('[["a", "b", "c"]]', 0.0),
        ('[[{"id": {}}, "b"]]', 0.0),
        ("-> ->", 0.0),
        ("", 0.0),
    ],
)
def test_graph_f1_table(text, value):
    assert graded(graph_f1, task(EDGES), text) == pytest.approx(value)
    assert graded(graph_f1, task("a -> b -> c"), text) == pytest.approx(value)


def test_graph_f1_counts_direction_and_shares_as_told():
    assert graded(graph_f1, task(EDGES), "b -- a\nb -- c", directed=False) == 1.0
    assert graded(graph_f1, task(EDGES), "b -> a\nb -> c", node_share=0.0) == 0.5
    assert graded(graph_f1, task(EDGES), "b -> a\nb -> c", node_share=1.0) == 1.0


@pytest.mark.parametrize(
    ("reward", "answer", "options"),
    [(key_value_f1, None, {}), (key_value_f1, "text", {}), (graph_f1, None, {}), (graph_f1, 5, {}), (graph_f1, EDGES, {"node_share": 2})],
)
def test_tasks_and_options_that_cannot_be_graded_raise(reward, answer, options):
    with pytest.raises(RewardError) as error:
        graded(reward, task(answer), "{}", **options)
    assert isinstance(error.value, TaskError) == (not options)


PIECES = st.sampled_from(
    ["{", "}", "[", "]", '"', ":", ",", '"a"', "1", "-", "1e9", "null", "true", "NaN", "->", "--", "\n", "```json\n", "\n```\n",
        "\\ud800", "a"]
    + ["<answer>", "</answer>", "</think>", "\ud800", "\x00", "\\boxed{"]
)
ANY_TEXT = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=40).map("".join))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(ANY_TEXT)
def test_any_text_earns_a_number_between_0_and_1(text):
    for value in (
        graded(json_schema, task(schema=SCHEMA), text),
        graded(json_schema, task({"a": 1}, schema={}), text, compare=True),
        graded(key_value_f1, task(GOLD), text),
        graded(graph_f1, task(EDGES), text),
        graded(graph_f1, task(EDGES), text, directed=False),
    ):
        assert math.isfinite(value) and 0 <= value <= 1
    assert isinstance(is_json(text), bool)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "```" * 50_000, "<answer>" * 50_000, "\\boxed{" * 50_000, "-" * 200_000])
def test_long_texts_made_to_hurt_do_not(text):
    started = time.perf_counter()
    assert graded(json_schema, task(schema=SCHEMA), text) == graded(graph_f1, task(EDGES), text) == 0.0
    assert last_boxed(text) is None
    assert time.perf_counter() - started < 5


@settings(deadline=None)
@given(VALUES)
def test_every_value_keeps_its_own_answer(value):
    assert graded(json_schema, task(value, schema={}), json.dumps(value), compare=True) == 1.0 if value is not None else True
    if isinstance(value, (dict, list)):
        assert graded(key_value_f1, task(value), json.dumps(value)) == 1.0


@settings(deadline=None)
@given(VALUES, VALUES)
def test_canonical_values_are_equal_where_json_is(a, b):
    same_text = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert not same_text or canonical(a) == canonical(b)
    assert canonical([1]) == canonical([1.0]) and canonical(True) != canonical(1) and canonical("1") != canonical(1)


def test_where_answers_are_read():
    trajectory = spoken(task(), "<think><answer>1</answer></think> <answer>2</answer> <answer>3</answer> x")
    assert said(trajectory) == " <answer>2</answer> <answer>3</answer> x"
    assert final(trajectory) == "3"
    assert last_tag("<a>1</a><a>2", "a") == "1" and last_tag("</a><a>", "a") is None
    assert last_boxed(r"\boxed{1} \boxed{\frac{1}{2}}") == r"\frac{1}{2}" and last_boxed(r"\boxed{1") is None
    assert last_fence("```json\n1\n```\n```python\n2\n```", "json") == "1" and last_fence("```json\n1", "json") is None
    assert last_fence("```\n1\n```", "json") == "1" and last_fence("```text\n1\n```", "json") is None
    assert read_json("[1, 2.5]") == [1, 2.5]
    with pytest.raises(ValueError, match="NaN is not JSON"):
        read_json("NaN")


@pytest.mark.parametrize(("languages", "named"), [(("json",), "json"), (("sql", "sqlite"), "SQL"), (("sql", "sqlite"), "sqlite")])
def test_a_named_block_counts_before_an_unnamed_one_wherever_it_stands(languages, named):
    right, unnamed, other = f"```{named} lines=on\n1\n```\n", "```\n2\n```\n", "```text\n3\n```\n"
    for text in (right + unnamed, unnamed + right, right + unnamed + other, unnamed + right + other):
        assert last_fence(text, *languages) == "1"
    assert last_fence(unnamed + other, *languages) == "2"
    assert last_fence(right + right.replace("1", "4") + unnamed, *languages) == "4"


def test_the_result_that_is_shown_behind_an_answer_is_not_the_answer():
    shown = '```json\n{"a": 1}\n```\nwhich prints\n```\n{"a": 2}\n```'
    assert graded(json_schema, task({"a": 1}), shown, schema={}, compare=True) == 1.0
    assert graded(json_schema, task({"a": 2}), shown, schema={}, compare=True) == 0.0


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x1c", "\x0c"])
def test_only_a_line_feed_ends_a_line(end):
    text = json.dumps({"a": f"x{end}```{end}y"}, ensure_ascii=False)
    if end >= " ":
        assert read_json(f"```json\n{text}\n```") == read_json(text) == {"a": f"x{end}```{end}y"}
    assert blocks(f"```json\nx{end}```{end}y\r\n```\r\nend") == [("json", f"x{end}```{end}y\r\n", True)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("~~~json\n```\n~~~", [("json", "```\n", True)]),
        ("````\n```\n````", [("", "```\n", True)]),
        ("```json\n1", [("json", "1", False)]),
        ("```json", [("json", "", False)]),
        ("```x``` and\n```json\n1\n```", [("json", "1\n", True)]),
        ("a ```json", []),
        ("", []),
    ],
)
def test_blocks_table(text, found):
    assert blocks(text) == found
