"""Multiple choice: which option a text names, and that naming all of them does not pay."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.errors import TaskError
from rlft.rewards.choice import multiple_choice, stated_choice
from rlft.rewards.grader import spoken
from rlft.types import Task

OPTIONS = {"A": "Rome", "B": "Paris", "C": "a cat", "D": "Both A and B"}
LISTED = "A) Rome\nB) Paris\nC) a cat\nD) Both A and B"


def graded(text, answer="B", **meta):
    task = Task("t", ({"role": "user", "content": "?"},), answer, meta)
    return multiple_choice(task, spoken(task, text))[0]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"so the final answer is $\boxed{B}$.", "B"),
        ("Answer: (B)", "B"),
        ("**Answer:** B", "B"),
        ("answer: b", "B"),
        ("The answer is B.", "B"),
        ("The answer is: option B", "B"),
        ("The correct option is B because A is too small", "B"),
        ("<answer>B</answer>", "B"),
        ("<answer>The answer is (B)</answer>", "B"),
        (r"<answer>\boxed{B}</answer>", "B"),
        ("I think it is B", "B"),
        ("so\n\nB", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("between A and B, I take B", "B"),
        ("A. is wrong\nB. is right\n\nB", "B"),
        ("The answer is A. No wait, the answer is B", "B"),
        (r"\boxed{A}, no: the answer is B", "B"),
        ("The answer is A\n\\boxed{B}", "B"),
        ("<answer>A</answer><answer>B</answer>", "B"),
        ("<think>The answer is A</think>B", "B"),
        ("the answer is clear.\n\nB", "B"),
        ("A\nB\nC\nD", ""),
        (LISTED, ""),
        ("A, B, C, D", ""),
        ("A or B", ""),
        ("The answer is A or B", ""),
        ("The answer is (A)(B)(C)(D)", ""),
        (r"\boxed{A, B}", ""),
        (r"\boxed{AB}", ""),
        (r"\boxed{42} B", ""),
        ("<answer>A B C D</answer>", ""),
        ("ABCD", ""),
        ("bee", ""),
        ("", ""),
    ],
)
def test_choice_table(text, letter):
    text = text.rpartition("</think>")[2]
    assert stated_choice(text) == stated_choice(text, OPTIONS) == letter
    assert graded(text) == graded(text, options=list(OPTIONS.values())) == float(letter == "B")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Paris", "B"),
        ("The answer is paris.", "B"),
        ("B. Paris", "B"),
        ("B) Rome", ""),
        ("The answer is Both A and B", "D"),
        (r"\boxed{A cat}", "C"),
        ("E", ""),
        ("The answer is E", ""),
        ("London", ""),
    ],
)
def test_known_options_can_be_named_by_their_text(text, letter):
    assert stated_choice(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "meta"),
    [
        ("B", {}),
        ("(b)", {}),
        ("B", {"options": OPTIONS}),
        ("Paris", {"choices": list(OPTIONS.values())}),
        (1, {"choices": list(OPTIONS.values())}),
        ("B", {"choices": {"label": ["A", "B"], "text": ["Rome", "Paris"]}}),
        ("B", {"choices": '["Rome", "Paris"]'}),
        ("2", {"options": {"1": "Rome", "2": "Paris"}}),
    ],
)
def test_answers_are_letters_texts_or_places(answer, meta):
    expected = "2" if answer == "2" else "B"
    assert graded(f"<answer>{'Paris' if answer == '2' else expected}</answer>", answer, **meta) == 1.0
    assert graded("<answer>A</answer>", answer, **meta) == 0.0


@pytest.mark.parametrize(
    ("answer", "meta"), [(None, {}), ("Paris", {}), (1, {}), (7, {"options": OPTIONS}), ("Oslo", {"options": OPTIONS}), ("A",
        {"options": 3})]
)
def test_an_answer_that_names_no_option_raises(answer, meta):
    with pytest.raises(TaskError):
        graded("B", answer, **meta)


@pytest.mark.parametrize("join", ["\n", " ", ", ", " or ", "/", ") ", "\n\n", " \\boxed{", ". "])
def test_no_listing_of_options_pays_for_more_than_one_answer(join):
    for order in itertools.permutations("ABCD"):
        assert sum(graded(join.join(order), answer) for answer in "ABCD") <= 1


PIECES = st.sampled_from(["A", "B", "(C)", "answer is ", "Answer: ", "\\boxed{", "}", "<answer>", "</answer>", "\n", " ", ", ", "or",
    "**", "Paris", "\ud800"])


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=30).map("".join)))
def test_any_text_names_at_most_one_option(text):
    assert stated_choice(text) in {"", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    assert stated_choice(text, OPTIONS) in {"", *OPTIONS}
    assert sum(graded(text, answer) for answer in "ABCD") <= 1


@pytest.mark.parametrize("piece", ["answer is ", "A ", "A,", "(A)\n", "\\boxed{", "<answer>", "answer: \\text{", "A. \n", "**", "answer:*"])
def test_long_texts_made_to_hurt_do_not(piece):
    started = time.perf_counter()
    graded(piece * (200_000 // len(piece)), options=OPTIONS)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "text",
    ["The answer is not B", "I cannot tell. It is certainly not B.", "The answer isn't (B)", "anything except option B", "neither A nor B",
     "The answer is B. The answer is not B.", "<answer>not B</answer>", "A|B", "A - B", "Answer: A|B"],
)  # fmt: skip
def test_an_option_that_is_denied_or_stands_beside_another_is_not_named(text):
    assert stated_choice(text) == ""
    assert graded(text, "B", options=OPTIONS) == 0.0


@pytest.mark.parametrize(
    "text", ["The answer is B, not A.", "The answer is not A.\nIt is B", "The answer is B. The answer is not A.", "ANSWER B"]
)
def test_denying_another_option_takes_nothing_back(text):
    assert stated_choice(text) == "B"


@pytest.mark.parametrize("text", ["2", "(2)", "The answer is 2.", r"\boxed{2}", "<answer>2</answer>", "y"])
def test_labels_may_be_digits_as_in_arc(text):
    choices = {"label": ["1", "2", "3"], "text": ["x", "y", "z"]}
    assert [graded(text, label, choices=choices) for label in choices["label"]] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("answer", ["B) Paris", "B. Paris", "(B) Paris", "b: Paris"])
def test_a_gold_answer_may_be_a_letter_with_its_text(answer):
    assert (graded("B", answer), graded("A", answer)) == (1.0, 0.0)
    assert (graded("B", answer, options=OPTIONS), graded("A", answer, options=OPTIONS)) == (1.0, 0.0)


def test_a_gold_letter_with_the_text_of_another_option_is_a_broken_task():
    with pytest.raises(TaskError, match="names no single option"):
        graded("B", "B) Rome", options=OPTIONS)
