"""Wrong and degenerate answers are wrong, are said in the template, and know when the gold stands in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.errors import ConfigError
from rlft.rewards.probes import GOLD, LONG, gold_text, probes, trajectory_of
from rlft.types import Task

TASK = Task("1", ({"role": "user", "content": "2+2="},), "4")
OPEN = {
    "gold": "4",
    "empty": "",
    "blank": " \n\t \n",
    "prompt echoed": "2+2=",
    "another task's gold": "7",
    "one character changed": "5",
    "every option listed": "7, 4, 12",
    "i don't know": "I don't know",
    "very long": LONG,
    "unclosed tags": "<think>let me see <answer> \\boxed{ ```",
    "gold repeated": " ".join(["4"] * 50),
    "gold denied": "I cannot answer this. It is certainly not 4.",
}


def texts(made):
    return {probe.kind: probe.text for probe in made}


def test_the_answers_to_an_open_task():
    made = probes(TASK, "4", ["4", " 4", "7", "12"])
    assert texts(made) == OPEN
    assert {probe.kind for probe in made if probe.lenient} == {"gold repeated", "gold denied"}


def test_a_template_is_put_around_answers_and_only_around_them():
    made = texts(probes(TASK, "4", ["7"], r"<think>so</think>\boxed{{answer}}"))
    assert made[GOLD] == r"<think>so</think>\boxed{4}"
    assert made["another task's gold"] == r"<think>so</think>\boxed{7}"
    assert made["nothing in the template"] == r"<think>so</think>\boxed{}"
    assert made["gold, unclosed"] == r"<think>so\boxed{4"
    assert (made["empty"], made["prompt echoed"]) == ("", "2+2=")
    with pytest.raises(ConfigError, match="{answer}"):
        probes(TASK, "4", [], "<answer></answer>")


@pytest.mark.parametrize(
    ("meta", "gold", "listed"),
    [
        ({}, "B", "A, B, C, D"),
        ({}, "A", "B, A, C, D"),
        ({"choices": ["x"] * 6}, "F", "A, B, F, C, D, E"),
        ({"options": ["red", "green", "blue"]}, "red", "green, red, blue"),
        ({"choices": {"label": ["1", "2", "3"], "text": ["a", "b", "c"]}}, "1", "2, 1, 3"),
        ({}, "Yes", "No, Yes, No"),
        ({}, "false", "true, false, true"),
    ],
)
def test_options_are_listed_with_the_gold_neither_first_nor_last(meta, gold, listed):
    assert texts(probes(Task("1", (), gold, meta), gold, ["17", "18"]))["every option listed"] == listed


def test_a_prompt_that_holds_the_answer_is_no_wrong_answer():
    task = Task("1", ({"role": "user", "content": "Say 4."},), "4")
    assert next(p for p in probes(task, "4") if p.kind == "prompt echoed").lenient
    assert not next(p for p in probes(task, "Sa") if p.kind == "prompt echoed").lenient


@given(st.text(max_size=8), st.lists(st.text(max_size=4), max_size=4), st.sampled_from(["{answer}", "<a>{answer}</a>"]))
def test_no_other_answer_is_the_gold_one(gold, others, template):
    first, *wrong = probes(TASK, gold, others, template)
    assert first.kind == GOLD and all(probe.text != first.text for probe in wrong)
    assert texts(probes(TASK, gold, others, template)) == texts([first, *wrong])


def test_what_a_right_answer_says():
    assert [gold_text(Task("1", (), answer)) for answer in ("x", 4, 0.5, ["é", 1], None)] == ["x", "4", "0.5", '["é", 1]', None]
    assert gold_text(Task("1", (), "x", {"solution": "y"}), "solution") == "y"
    assert gold_text(Task("1", (), "x"), "solution") is None


def test_length_is_about_that_of_the_text():
    assert [trajectory_of(TASK, "x" * n).num_sampled for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert trajectory_of(TASK, "hi", 3).text == "hi" and trajectory_of(TASK, "hi", 3).index == 3
