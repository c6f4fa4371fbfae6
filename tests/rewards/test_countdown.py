"""Countdown: hand-worked equations, a random one of every kind, and what is no equation."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.errors import TaskError
from rlft.rewards.countdown import countdown, evaluate
from rlft.rewards.grader import spoken
from rlft.types import Task


def graded(text, answer=None, meta=None, **options):
    meta = {"numbers": [2, 3, 4], "target": 10} if meta is None else meta
    task = Task("t", ({"role": "user", "content": "?"},), answer, meta)
    return countdown(task, spoken(task, text), **options)[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2*3+4", 1.0),
        ("I try 2+3+4 = 9\n4 + 2*3 = 10", 1.0),
        ("<answer>(2*3)+4</answer> and more", 1.0),
        (r"\boxed{2 \times 3 + 4 = 10}", 1.0),
        ("2\u00d73\u22120+4", 0.0),
        ("[2\u00d73]+4", 1.0),
        ("2*3+4 = 11", 0.0),
        ("2*3+4 = 10 = 10", 0.0),
        ("2+3+4", 0.0),
        ("10", 0.0),
        ("2+4+4", 0.0),
        ("2*4+2", 0.0),
        ("3+4+2+1", 0.0),
        ("23-4", 0.0),
        ("2**3+4", 0.0),
        ("2//3+4", 0.0),
        ("2*3+4.0", 0.0),
        ("4/(3-3)+2", 0.0),
        ("print(10)", 0.0),
        ("2*3+4 if 1 else 0", 0.0),
        ("", 0.0),
    ],
)
def test_countdown_table(text, value):
    assert graded(text) == value


def test_numbers_and_target_come_from_meta_or_the_answer():
    for answer, meta in [
        ({"numbers": [2, 3, 4], "target": 10}, {}),
        ('{"nums": [2, 3, 4], "target": 10}', {}),
        ("2*3+4", {"nums": ["2", "3", "4"], "target": "10"}),
    ]:
        assert graded("2*3+4", answer, meta) == 1.0
        assert graded("2*4+3", answer, meta) == 0.0


def test_numbers_may_be_left_out_if_told_so():
    meta = {"numbers": [2, 5, 7], "target": 10}
    assert graded("2*5", None, meta) == 0.0
    assert graded("2*5", None, meta, at_most_once=True) == 1.0
    assert graded("5+5", None, meta, at_most_once=True) == 0.0


def test_fractions_are_exact():
    assert graded("1/3*3", None, {"numbers": [1, 3, 3], "target": 1}) == 1.0
    assert graded("8/(3-8/3)", None, {"numbers": [8, 3, 8, 3], "target": 24}) == 1.0


@pytest.mark.parametrize("meta", [{}, {"numbers": [1, 2]}, {"numbers": "x", "target": 1}, {"numbers": [], "target": 1}, {"numbers": [1.5],
    "target": 1}])
def test_a_task_without_numbers_and_target_raises(meta):
    with pytest.raises(TaskError):
        graded("1", None, meta)


@settings(deadline=None)
@given(st.integers(0, 10**9))
def test_every_equation_is_worth_one(seed):
    rng = random.Random(seed)
    numbers = [rng.randint(1, 99) for _ in range(rng.randint(2, 6))]
    terms = [(str(number), Fraction(number)) for number in numbers]
    while len(terms) > 1:
        (a, x), (b, y) = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
        op = rng.choice("+-*/" if y else "+-*")
        terms.append((f"({a}{op}{b})", {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[op]))
    (text, value), target = terms[0], int(terms[0][1])
    assert evaluate(text) == (evaluate(text)[0], value) and sorted(evaluate(text)[0]) == sorted(numbers)
    meta = {"numbers": numbers, "target": target}
    assert graded(text, None, meta) == float(value == target)
    assert graded(text, None, {**meta, "target": target + 1}) == 0.0


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.text("0123456789+-*/() =", max_size=320)))
def test_any_text_earns_a_number(text):
    assert graded(text) in (0.0, 1.0)


@pytest.mark.parametrize("text", ["(" * 299, "-" * 299 + "1", "9" * 300, "1+" * 149 + "1", "9**9**9**9", "(" * 10**6, "1/" * 100 + "0",
    "9*" * 149 + "9"])
def test_texts_made_to_hurt_are_wrong(text):
    assert graded(text) == 0.0


def test_numbers_may_stand_in_a_table_as_json_text():
    assert graded("2 + 3", meta={"nums": "[2, 3]", "target": "5"}) == 1.0
    assert graded("2 * 3", meta={"nums": "[2, 3]", "target": "5"}) == 0.0
