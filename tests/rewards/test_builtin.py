"""Built-in rewards: tables worked by hand, gold answers, and any text at all."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.errors import RewardError, TaskError
from rlft.rewards.builtin import exact_match, format_tags, length, number_match, overlong, regex
from rlft.types import Completion, Task, Trajectory, Turn


def said(text, answer="42", num_tokens=1):
    """The task and a trajectory of one turn in which the policy said `text`."""
    task = Task("t", ({"role": "user", "content": "?"},), answer)
    completion = Completion([7] * num_tokens, [-0.5] * num_tokens, "stop", 0)
    return task, Trajectory(task, 0, (Turn([1], completion, {"role": "assistant", "content": text}, [0] + [1] * num_tokens),), "completed")


@pytest.mark.parametrize(
    ("text", "answer", "case", "value"),
    [
        ("42", "42", True, 1.0),
        ("  42\n", "42 ", True, 1.0),
        ("42", 42, True, 1.0),
        ("42.", "42", True, 0.0),
        ("", "42", True, 0.0),
        ("Paris", "paris", True, 0.0),
        ("Paris", "paris", False, 1.0),
        ("STRASSE", "straße", False, 1.0),
    ],
)
def test_exact_match_table(text, answer, case, value):
    assert exact_match(*said(text, answer), case=case) == value


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("So the answer is 42.", "42", 1.0),
        ("41, no, 42", "42", 1.0),
        ("42, no, 41", "42", 0.0),
        ("no number", "42", 0.0),
        ("", "42", 0.0),
        ("= 1,234,567", "1234567", 1.0),
        ("1,2,3", "3", 1.0),
        ("1,2345", "2345", 1.0),
        ("-3", "-3", 1.0),
        ("\u22123", "-3", 1.0),
        ("3", "-3", 0.0),
        ("7-3", "3", 1.0),
        ("7 - 3", "3", 1.0),
        ("+5", "5", 1.0),
        ("3.50", "3.5", 1.0),
        (".5", "0.5", 1.0),
        ("it costs $1,200.50!", "1200.5", 1.0),
        ("-$4", "-4", 1.0),
        ("6.02e23", "602000000000000000000000", 1.0),
        ("1e-3", 0.001, 1.0),
        ("3/4", "0.75", 1.0),
        ("3 / 4", "3/4", 1.0),
        ("-3/4", "-0.75", 1.0),
        ("3/0", "3", 0.0),
        ("1e999", "1", 0.0),
        ("999999999998", "999999999999", 0.0),
        ("0.30000000000000004", "0.3", 1.0),
        ("72", "16 + 56 = 72\n#### 72", 1.0),
        ("\u0664\u0662", "42", 0.0),
    ],
)
def test_number_match_table(text, answer, value):
    assert number_match(*said(text, answer)) == value


@pytest.mark.parametrize(("rel_tol", "abs_tol", "value"), [(0.0, 0.0, 0.0), (0.01, 0.0, 1.0), (0.0, 0.5, 1.0), (0.001, 0.1, 0.0)])
def test_number_match_keeps_its_tolerances(rel_tol, abs_tol, value):
    assert number_match(*said("100.4", "100"), rel_tol=rel_tol, abs_tol=abs_tol) == value


@pytest.mark.parametrize(
    ("text", "pattern", "mode", "value"),
    [
        ("say yes now", "yes", "search", 1.0),
        ("say yes now", "yes", "fullmatch", 0.0),
        ("yes", "yes", "fullmatch", 1.0),
        ("YES", "(?i)yes", "fullmatch", 1.0),
        ("no", "yes", "search", 0.0),
        ("", ".*", "fullmatch", 1.0),
    ],
)
def test_regex_table(text, pattern, mode, value):
    assert regex(*said(text), pattern=pattern, mode=mode) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("x <think></think> y <answer>\n</answer> z <b>", 1.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a<answer></think>b</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer></answer>", 0.0),
        ("</think><think><answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format_tags_table(text, value):
    assert format_tags(*said(text), tags=["think", "answer"]) == value


def test_format_tags_takes_tag_names_literally():
    assert format_tags(*said("<a.c></a.c>"), tags=["a.c"]) == 1.0
    assert format_tags(*said("<abc></abc>"), tags=["a.c"]) == 0.0


@pytest.mark.parametrize(("num_tokens", "value"), [(0, 0.0), (10, 0.0), (11, -0.1), (15, -0.5), (20, -1.0), (500, -1.0)])
def test_length_table(num_tokens, value):
    assert length(*said("", num_tokens=num_tokens), budget=10) == pytest.approx(value)


@pytest.mark.parametrize(("num_tokens", "value"), [(0, 0.0), (16, 0.0), (17, -0.25), (18, -0.5), (19, -0.75), (20, -1.0), (99, -1.0)])
def test_overlong_table(num_tokens, value):
    assert overlong(*said("", num_tokens=num_tokens), max_tokens=20, buffer=4) == pytest.approx(value)


@pytest.mark.parametrize("answer", ["42", "-1,234.5", "3/4", "6.02e23", 17, -2.5, 1e-7, "#### 72", "  7 "])
def test_gold_answers_are_worth_one(answer):
    assert exact_match(*said(str(answer), answer)) == 1.0
    assert number_match(*said(str(answer), answer)) == 1.0


@given(st.one_of(st.integers(-(10**11), 10**11), st.floats(allow_nan=False, allow_infinity=False)))
def test_every_number_matches_itself(number):
    assert number_match(*said(f"I get {number}", number)) == 1.0


ALL = [
    lambda *given: exact_match(*given, case=False),
    number_match,
    lambda *given: regex(*given, pattern="a|b", mode="fullmatch"),
    lambda *given: format_tags(*given, tags=["think", "answer"]),
    lambda *given: length(*given, budget=3),
    lambda *given: overlong(*given, max_tokens=3, buffer=2),
]
NUMBER_LIKE = st.text("0123456789,.-+/eE$ \u2212", max_size=60)
TAG_LIKE = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "<", "/", ">", "x"])).map("".join)


@given(st.one_of(st.text(), st.text(st.characters()), NUMBER_LIKE, TAG_LIKE), st.integers(0, 50))
def test_no_text_makes_a_reward_raise_or_leave_its_range(text, num_tokens):
    for reward in ALL:
        value = reward(*said(text, num_tokens=num_tokens))
        assert isinstance(value, float) and -1.0 <= value <= 1.0


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "42"}]])
def test_a_message_without_text_is_graded_like_an_empty_one(content):
    for reward in ALL:
        assert reward(*said(content)) == reward(*said(""))


def test_a_trajectory_without_turns_is_graded():
    task = Task("t", (), "42")
    for reward in ALL:
        assert reward(task, Trajectory(task, 0, (), "truncated")) <= 0.0


@pytest.mark.parametrize("text", ["1" * 200_000, "1," * 10**5, "1,111" + ",111" * 50_000 + "1", "1/" * 10**5, "-" * 10**5, "1e" * 10**5])
def test_long_number_like_text_is_read_in_linear_time(text):
    assert number_match(*said(text)) == 0.0


@pytest.mark.parametrize(
    ("reward", "answer", "options"),
    [
        (exact_match, None, {}),
        (number_match, None, {}),
        (number_match, "none here", {}),
        (number_match, "1e999", {}),
        (number_match, math.nan, {}),
        (regex, "42", {"pattern": "("}),
        (regex, "42", {"pattern": "a", "mode": "match"}),
        (format_tags, "42", {"tags": "think"}),
        (format_tags, "42", {"tags": []}),
        (length, "42", {"budget": 0}),
        (overlong, "42", {"max_tokens": 4, "buffer": 5}),
        (overlong, "42", {"max_tokens": 4, "buffer": 0}),
    ],
)
def test_what_cannot_be_graded_is_an_error_and_not_a_zero(reward, answer, options):
    with pytest.raises(RewardError):
        reward(*said("42", answer), **options)


@pytest.mark.parametrize("answer", [None, ["42", "43"], {"value": 42}])
@pytest.mark.parametrize("reward", [exact_match, number_match])
def test_a_task_without_a_single_answer_is_broken_whatever_stands_in_for_errors(reward, answer):
    with pytest.raises(TaskError):
        reward(*said("42", answer))


def test_a_gold_answer_without_a_number_is_a_broken_task():
    with pytest.raises(TaskError, match="holds no finite number"):
        number_match(*said("5", "five"))
