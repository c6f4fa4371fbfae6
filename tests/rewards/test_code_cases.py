"""Formats of tests, asserts taken apart, and when two values are the same."""

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.errors import TaskError
from rlft.rewards.code import extract_program
from rlft.rewards.code_asserts import Assertion, Unconverted, read_asserts
from rlft.rewards.code_cases import Printed, Returned, read_cases
from rlft.rewards.code_values import Comparison, same_output, same_value
from rlft.types import Task

EXACT, TOLERANT, JSON = Comparison(), Comparison(tolerance=1e-6), Comparison(from_json=True)
simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
plain = st.recursive(
    simple,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.tuples(st.integers()), inner),
    max_leaves=8,
)


def converted(text, function=""):
    (case,) = read_asserts([text], function)
    return case


def cases(answer, **meta):
    return read_cases(Task("t", (), answer, meta))


@given(plain)
def test_every_value_is_the_same_as_itself(value):
    assert same_value(value, copy.deepcopy(value)) and same_value(value, value, TOLERANT)


@given(st.recursive(simple, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.integers(), inner)))
def test_a_value_is_the_same_as_what_json_makes_of_it(value):
    assert same_value(value, json.loads(json.dumps(value)), JSON)


huge = st.integers(300, 5000).map(lambda digits: 10**digits)  # beyond floats, and beyond what Python writes out
anything = st.recursive(
    simple | huge,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(simple | huge, inner) | st.sets(simple | huge),
    max_leaves=8,
)
STATED = [converted(f"assert {text}") for text in ("f(1) == 2", "sorted(f(1))[0] < 3", "abs(f(1) * 2 - 1.5) < 1e-6", "str(f(1)) in f(2)")]


@given(anything, anything)
def test_no_value_makes_a_comparison_raise(found, expected):
    for how in (EXACT, TOLERANT, JSON):
        assert same_value(found, expected, how) in (True, False)
        assert all(isinstance(case.objection([found, expected], how), str) for case in STATED)


@pytest.mark.parametrize(
    ("found", "expected", "exact", "tolerant", "from_json"),
    [
        (5.0, 5, False, True, False),
        (True, 1, False, False, False),
        (1, True, False, False, False),
        (0.1 + 0.2, 0.3, False, True, False),
        (10**400, 1.0, False, False, False),
        (math.nan, math.nan, True, True, True),
        (math.nan, 1.0, False, False, False),
        (math.inf, 1e308, False, False, False),
        ((1, 2), [1, 2], False, False, True),
        ([1, 2], (1, 2), False, False, False),
        ([(1, [2])], [[1, [2]]], False, False, True),
        ([1, 2], [1, 2, 3], False, False, False),
        ([1, 2, 3], [1, 2], False, False, False),
        ([1.0], [1], False, True, False),
        ({1: "a"}, {"1": "a"}, False, False, True),
        ({1: "a", "1": "b"}, {"1": "a"}, False, False, False),
        ({1.0: "a"}, {1: "a"}, False, False, False),
        ({"a": 1}, {"a": 2}, False, False, False),
        ({1, 2}, {2, 1}, True, True, True),
        ({1.0}, {1}, False, True, False),
        ({(1, 2)}, {(1.0, 2)}, False, True, False),
        ({1}, [1], False, False, False),
        ("1", 1, False, False, False),
        (None, False, False, False, False),
    ],
)
def test_types_count_unless_told_otherwise(found, expected, exact, tolerant, from_json):
    assert [same_value(found, expected, how) for how in (EXACT, TOLERANT, JSON)] == [exact, tolerant, from_json]


@pytest.mark.parametrize(
    ("found", "expected", "exact", "tolerant"),
    [
        ("3\n", "3", True, True),
        ("3  \r\n4\n\n\n", "3\n4", True, True),
        (" 3", "3", False, True),
        ("3\n4", "3 4", False, False),
        ("3\x0c4", "3\n4", False, False),
        ("", "", True, True),
        ("", "3", False, False),
        ("3\n3", "3", False, False),
        ("0.3000000001 x", "0.3 x", False, True),
        ("5.0", "5", False, True),
        ("５", "5", False, False),
        ("1_0", "10", False, False),
        ("nan", "1", False, False),
        ("9" * 500, "8" * 500, False, False),
        ("1e999", "2e999", False, False),
        ("10000000000000001", "10000000000000002", False, False),
    ],
)
def test_printed_text_is_compared_line_by_line(found, expected, exact, tolerant):
    assert [same_output(found, expected, how) for how in (EXACT, TOLERANT)] == [exact, tolerant]


STDIN = {"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}
CALLS = {"fn_name": "add", "inputs": [[1, 2], [[3], 4]], "outputs": [3, [7]]}


@pytest.mark.parametrize("form", [lambda x: x, json.dumps])
def test_pairs_are_read_as_mapping_and_as_json(form):
    assert cases(form(STDIN)) == [Printed("1 2\n", "3\n"), Printed("3\n4", "7")]
    assert cases(form(CALLS)) == [Returned("add", (1, 2), 3), Returned("add", ([3], 4), [7])]


def test_outputs_that_are_all_lists_of_one_are_wrapped():
    assert [case.wrapped for case in cases({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2]]})] == [True, True]
    assert [case.wrapped for case in cases({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[1], [2, 3]]})] == [False, False]


@pytest.mark.parametrize("meta", [{"func_name": "add"}, {"metadata": '{"func_name": "add"}'}, {"metadata": {"func_name": "add"}}])
def test_live_code_bench_lists_hold_both_kinds(meta):
    functional = {"input": "1\n[2]", "output": "[3]", "testtype": "functional"}
    stdin = {"input": "1 2", "output": "3", "testtype": "stdin"}
    assert cases(json.dumps([functional, stdin]), **meta) == [Returned("add", (1, [2]), [3]), Printed("1 2", "3")]


def test_tests_may_stand_in_a_field_of_meta():
    assert read_cases(Task("t", (), None, {"io": STDIN}), "io") == cases(STDIN)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        3,
        [],
        "",
        {"inputs": ["1"], "outputs": []},
        {"inputs": ["1"]},
        {"inputs": [1], "outputs": ["1"]},
        {"fn_name": "f", "inputs": [3], "outputs": [3]},
        [{"input": "1", "output": "1", "testtype": "functional"}],
        [3],
        "{not json",
        "assert f(",
        ["assert True"],
        "def check(candidate):\n    assert candidate(1) == 2",
    ],
)
def test_what_is_in_no_format_is_an_error_of_the_task(answer):
    with pytest.raises(TaskError, match="task 't'"):
        cases(answer)


@pytest.mark.parametrize(
    ("text", "calls", "right", "wrong"),
    [
        ("assert f(2) == 5", [("f", (2,), {})], [5], [5.0]),
        ("assert f([1, (2, {3})], k='x') == (1, -2)", [("f", ([1, (2, {3})],), {"k": "x"})], [(1, -2)], [[1, -2]]),
        ("assert f(float('inf'), 'a' * 3, 10**3) is None", [("f", (math.inf, "aaa", 1000), {})], [None], [0]),
        ("assert sum(10, 15) == 25", [("sum", (10, 15), {})], [25], [24]),
        ("assert abs(f(3.5) - 0.5) < 1e-6", [("f", (3.5,), {})], [0.5], [0.6]),
        ("assert sorted(f([3, 1])) == [1, 3]", [("f", ([3, 1],), {})], [(3, 1)], [[3]]),
        ("assert set(f(1)) == set([1, 2])", [("f", (1,), {})], [[2, 1, 1]], [7]),
        ("assert not f('x')", [("f", ("x",), {})], [[]], [1]),
        ("assert f(1)", [("f", (1,), {})], [True], [0]),
        ("assert f(1)[0] == 3 and f(2)['a'] != 1", [("f", (1,), {}), ("f", (2,), {})], [[3], {"a": 2}], [[3], {}]),
        ("assert f(1) in (1, 2)", [("f", (1,), {})], [2], [3]),
        ("assert 1 < f(1) <= 3", [("f", (1,), {})], [3], ["2"]),
        ("assert [f(1), 2] == [1, 2]", [("f", (1,), {})], [1], [2]),
        ("import math\nassert math.isclose(f(1), math.pi, rel_tol=1e-3)", [("f", (1,), {})], [3.1415], [3.2]),
        ("assert Solution().f(3) == 1", [("Solution.f", (3,), {})], [1], [True]),
        ("def check(candidate):\n    assert True\n    assert candidate(1) == 2, 'no'\ncheck(inc)", [("inc", (1,), {})], [2], [1]),
    ],
)
def test_an_assert_becomes_calls_and_what_is_asserted_of_their_values(text, calls, right, wrong):
    case = converted(text)
    assert isinstance(case, Assertion) and list(case.calls) == calls
    assert case.objection(right, EXACT) == ""
    assert case.objection(wrong, EXACT) != ""


def test_tolerance_holds_for_asserts_too():
    assert converted("assert f(1) == 2").objection([2.0], TOLERANT) == ""


@pytest.mark.parametrize(
    ("text", "functions"),
    [
        ("assert f(g(3)) == 1", ("f", "g")),
        ("x = f(2)\nassert x == 4", ("f",)),
        ("assert isinstance(f(1), int)", ("f",)),
        ("assert f(1) is f(2)", ("f",)),
        ("assert 'a' * f(1) == 'aa'", ("f",)),
        ("import re\nassert re.match('a', f(1))", ("f",)),
        ("assert f(1).strip() == 'a'", ("f",)),
        ("assert f(*[1]) == 1", ("f",)),
        ("assert 2 ** f(1) == 2", ("f",)),
        ("for i in range(3):\n    assert f(i) == i", ("f",)),
        ("def check(candidate):\n    for i in range(3):\n        assert candidate(i) == i + 1\ncheck(inc)", ("inc",)),
    ],
)
def test_anything_more_is_not_converted(text, functions):
    case = converted(text)
    assert case == Unconverted(case.source, functions) or case.objection(["a"], EXACT)


def test_the_candidate_of_a_check_is_named_by_the_task():
    (case,) = cases("def check(candidate):\n    assert candidate(1) == 2\n", entry_point="inc")
    assert case.calls == (("inc", (1,), {}),)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("a\n```python\nx = 1\n```\nb", "x = 1\n"),
        ("```py\nx = 1\n```\n```Python\nx = 2\n```\n```\noutput\n```", "x = 2\n"),
        ("```\nx = 1\n```\n```text\nx = 2\n```", "x = 2\n"),
        ("~~~python\nx = '```'\n~~~", "x = '```'\n"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
        ("```python\nx = 1", "x = 1"),
        ("```python\n```", ""),
        ("", ""),
    ],
)
def test_the_last_python_block_is_the_program(text, program):
    assert extract_program(text) == program
