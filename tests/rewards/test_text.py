"""BLEU, chrF and ROUGE: the libraries' numbers, references, tags, and what is no text."""

import time

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rlft.errors import RewardError, TaskError
from rlft.rewards.grader import spoken
from rlft.rewards.text import bleu, chrf, rouge
from rlft.types import Task

CAT = "the cat sat on the mat"
OTHER = "a cat was sitting on the mat"


def graded(reward, text, answer=CAT, **options):
    task = Task("t", ({"role": "user", "content": "?"},), answer)
    return reward(task, spoken(task, text), **options)


@pytest.mark.parametrize("text", [CAT, OTHER, "the cat", "on the mat sat the cat", "dogs bark", "the the the the the the"])
def test_values_are_those_of_the_libraries(text):
    assert graded(bleu, text) == pytest.approx(sacrebleu.sentence_bleu(text, [CAT]).score / 100)
    assert graded(bleu, text, [CAT, OTHER]) == pytest.approx(sacrebleu.sentence_bleu(text, [CAT, OTHER]).score / 100)
    assert graded(chrf, text) == pytest.approx(sacrebleu.sentence_chrf(text, [CAT]).score / 100)
    assert graded(chrf, text, word_order=2) == pytest.approx(sacrebleu.sentence_chrf(text, [CAT], word_order=2).score / 100)
    for which in ("rouge1", "rouge2", "rougeL"):
        expected = RougeScorer([which]).score(CAT, text)[which].fmeasure
        assert graded(rouge, text, which=which) == pytest.approx(expected)


def test_values_worked_by_hand():
    assert graded(rouge, "the cat sat", which="rouge1") == pytest.approx(2 * (3 / 3) * (3 / 6) / (1 + 3 / 6))
    assert graded(rouge, "mat the on", which="rougeL") == pytest.approx(2 * (2 / 3) * (2 / 6) / (2 / 3 + 2 / 6))
    assert graded(rouge, "cats", "cat") == 0.0 and graded(rouge, "cats", "cat", stem=True) == 1.0
    assert graded(bleu, "\u732b\u5728\u57ab\u5b50\u4e0a", "\u732b\u5728\u57ab\u5b50\u4e0a", tokenizer="zh") == pytest.approx(1.0)


@pytest.mark.parametrize("reward", [bleu, chrf, rouge])
def test_gold_answers_are_worth_one_and_other_texts_less(reward):
    for answer in (CAT, [OTHER, CAT], "Paris"):
        text = answer if isinstance(answer, str) else answer[1]
        assert graded(reward, text, answer) == pytest.approx(1.0)
        assert graded(reward, f"<think>dogs</think> so <answer>{text}</answer> dogs", answer) == pytest.approx(1.0)
        assert graded(reward, f"<translate>{text}</translate> dogs", answer, tag="translate") == pytest.approx(1.0)
    assert graded(reward, "dogs bark loudly at night") < 0.2
    assert graded(reward, "") == graded(reward, "\n ") == 0.0
    assert graded(reward, (CAT + " ") * 20) < 0.5


@pytest.mark.parametrize(
    ("reward", "answer", "options"),
    [
        (bleu, None, {}),
        (bleu, "", {}),
        (bleu, [], {}),
        (bleu, 5, {}),
        (bleu, [CAT, 5], {}),
        (bleu, CAT, {"tokenizer": "flores200"}),
        (chrf, CAT, {"word_order": -1}),
        (rouge, CAT, {"which": "rougeX"}),
        (rouge, "\u732b", {}),
    ],
)
def test_tasks_and_options_that_cannot_be_graded_raise(reward, answer, options):
    with pytest.raises(RewardError) as error:
        graded(reward, "x", answer, **options)
    assert isinstance(error.value, TaskError) == (not options)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from(["the ", "cat", "\n", "<answer>", "</answer>", "\ud800", "\x00", "."]),
    max_size=20).map("".join)))
def test_any_text_earns_a_number_between_0_and_1(text):
    for reward in (bleu, chrf, rouge):
        assert 0 <= graded(reward, text) <= 1


@pytest.mark.parametrize("piece", ["the ", "the cat sat on the mat ", "x", ".", "\n", "\u732b"])
def test_long_texts_made_to_hurt_do_not(piece):
    started = time.perf_counter()
    for reward in (bleu, chrf, rouge):
        assert graded(reward, piece * (200_000 // len(piece))) == 0.0
    assert time.perf_counter() - started < 5
