"""Sets, lists, rankings; the measures against naive ones."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.errors import RewardError, TaskError
from rlft.rewards.grader import spoken
from rlft.rewards.ranking import items, list_match, ndcg_at, rank_biased_overlap, ranking, recall_at, set_match
from rlft.types import Task


def graded(reward, text, answer, meta=None, **options):
    task = Task("t", ({"role": "user", "content": "?"},), answer, meta or {})
    return reward(task, spoken(task, text), **options)[0]


@pytest.mark.parametrize(
    ("text", "exact", "f1", "jaccard"),
    [
        ("a, b, c", 1, 1, 1),
        ("C; B; A; A", 1, 1, 1),
        ('["c", "b", "a"]', 1, 1, 1),
        ("- a\n- b\n- c", 1, 1, 1),
        ("1. a\n2. b\n3. c", 1, 1, 1),
        (r"it is \boxed{\{a, b, c\}}", 0, 0.4 / 1.2, 1 / 5),
        (r"it is \boxed{a, b, c}", 1, 1, 1),
        ("['a', 'b', 'c']", 1, 1, 1),
        ("a, b", 0, 0.8, 2 / 3),
        ("a, b, c, d", 0, 6 / 7, 3 / 4),
        ("x", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_set_match_table(text, exact, f1, jaccard):
    for mode, value in {"exact": exact, "f1": f1, "jaccard": jaccard}.items():
        assert graded(set_match, text, ["a", "b", "c"], mode=mode) == pytest.approx(value)


def test_case_differs_if_told_so():
    assert graded(set_match, "A", "a") == 1.0
    assert graded(set_match, "A", "a", case=True) == graded(list_match, "A", "a", case=True) == 0.0


@pytest.mark.parametrize(
    ("text", "exact", "positions"),
    [("1, 2, 3", 1, 1), ("[1, 2, 3]", 1, 1), ("3, 2, 1", 0, 1 / 3), ("1, 2", 0, 2 / 3), ("1, 2, 3, 4", 0, 3 / 4), ("0, 1, 2, 3", 0, 0),
        ("", 0, 0)],
)
def test_list_match_table(text, exact, positions):
    assert graded(list_match, text, [1, 2, 3]) == exact
    assert graded(list_match, text, "1, 2, 3", mode="positions") == pytest.approx(positions)


def naive_ndcg(gains, k):
    dcg = sum(gain / math.log(rank + 1, 2) for rank, gain in zip(range(1, k + 1), gains, strict=False))
    ideal = sum(gain / math.log(rank + 1, 2) for rank, gain in zip(range(1, k + 1), sorted(gains)[::-1], strict=False))
    return dcg / ideal if ideal else 1.0


def naive_overlap(a, b, p):
    depths = range(1, len(a) + 1)
    return sum(p ** (d - 1) * len(set(a[:d]) & set(b[:d])) / d for d in depths) / sum(p ** (d - 1) for d in depths)


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=15), st.integers(1, 12))
def test_ndcg_is_the_naive_one(gains, k):
    assert ndcg_at(gains, k) == pytest.approx(naive_ndcg(gains, k))
    assert ndcg_at(sorted(gains, reverse=True), k) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.permutations(range(8)), st.permutations(range(8)), st.floats(0.05, 1))
def test_rank_biased_overlap_is_the_naive_one(a, b, p):
    a, b = [str(i) for i in a], [str(i) for i in b]
    assert rank_biased_overlap(a, b, p) == pytest.approx(naive_overlap(a, b, p))
    assert rank_biased_overlap(a, a, p) == pytest.approx(1.0)


def test_measures_worked_by_hand():
    assert ndcg_at([0, 1, 0, 1], 10) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)))
    assert recall_at(["a", "b", "c"], {"b", "z"}, 2) == 0.5
    assert recall_at([str(i) for i in range(20)], {str(i) for i in range(20)}, 10) == 1.0
    assert rank_biased_overlap(["a", "b", "c"], ["b", "a", "c"]) == pytest.approx((0 + 1 + 1) / 3)
    assert rank_biased_overlap(["a", "b"], ["c", "d"]) == 0.0


IDS = ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("text", ["[3] > [1] > [2] > [5] > [4]", "3 > 1 > 2 > 5 > 4", "[3, 1, 2, 5, 4]",
    "thus:\n<answer>[3] > [1] > [2] > [5] > [4]</answer>"])
def test_a_ranking_earns_what_reasonrank_pays_over_its_weights(text):
    found, relevant = ["3", "1", "2", "5", "4"], {"1", "4"}
    paid = naive_ndcg([float(i in relevant) for i in found], 10) + 0.2 * 1.0 + 0.1 * naive_overlap(found, IDS, 1.0)
    assert 1.3 * graded(ranking, text, IDS, {"relevant": ["1", "4"]}) == pytest.approx(paid)
    assert paid < 1.2  # so that a wrong order is seen


def test_components_can_be_had_alone():
    text = "2 > 1 > 3 > 4 > 5"
    assert graded(ranking, text, IDS, ndcg=0, recall=0, rbo=1, p=0.9) == pytest.approx(naive_overlap(list("21345"), IDS, 0.9))
    assert graded(ranking, text, IDS, {"relevant": ["1"]}, ndcg=0, recall=1, rbo=0, k=1) == 0.0
    assert graded(ranking, text, IDS, {"relevant": {"1": 1, "2": 2}}, ndcg=1, recall=0, rbo=0) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["1 > 2 > 3 > 4", "1 > 2 > 3 > 4 > 4", "1 > 2 > 3 > 4 > 5 > 6", "1 > 2 > 3 > 4 > 5 > 1",
    "6 > 1 > 2 > 3 > 4", "", ">", "12345"])
def test_what_is_no_full_permutation_earns_nothing(text):
    assert graded(ranking, text, IDS) == 0.0


@settings(deadline=None)
@given(st.permutations(IDS))
def test_no_order_beats_the_ideal_one(order):
    ideal = graded(ranking, " > ".join(IDS), IDS)
    assert ideal == pytest.approx(1.0)
    assert graded(ranking, " > ".join(order), IDS) <= ideal
    assert order == IDS or graded(ranking, " > ".join(order), IDS) < ideal


@pytest.mark.parametrize("answer", [["a", "b"], "a, b", "[1, 2]", ["x"], {"a": 2, "b": 0.5, "c": 0}])
def test_gold_answers_are_worth_one(answer):
    text = json.dumps(sorted(answer, key=lambda i: -answer[i])) if isinstance(answer, dict) else answer if isinstance(answer,
        str) else json.dumps(answer)
    assert graded(ranking, text, answer) == pytest.approx(1.0)
    if not isinstance(answer, dict):
        assert graded(set_match, text, answer) == graded(list_match, text, answer) == graded(list_match, text, answer,
            mode="positions") == 1.0


@pytest.mark.parametrize(
    ("reward", "answer", "meta", "options"),
    [
        (set_match, None, {}, {}),
        (set_match, 5, {}, {}),
        (set_match, "a", {}, {"mode": "fuzzy"}),
        (list_match, "a", {}, {"mode": "fuzzy"}),
        (ranking, None, {}, {}),
        (ranking, [], {}, {}),
        (ranking, ["a", "a"], {}, {}),
        (ranking, ["a"], {"relevant": ["b"]}, {}),
        (ranking, ["a"], {}, {"k": 0}),
        (ranking, ["a"], {}, {"p": 0}),
        (ranking, ["a"], {}, {"ndcg": 0, "recall": 0, "rbo": 0}),
    ],
)
def test_tasks_and_options_that_cannot_be_graded_raise(reward, answer, meta, options):
    with pytest.raises(RewardError) as error:
        graded(reward, "a", answer, meta, **options)
    assert isinstance(error.value, TaskError) == (not options)


PIECES = st.sampled_from(["a", "1", "[", "]", ",", ";", ">", "\n", "- ", "1. ", '"', "{", "}", "\\boxed{", "<answer>", "</answer>",
    "\ud800", " "])


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join)))
def test_any_text_earns_a_number_between_0_and_1(text):
    for mode in ("exact", "f1", "jaccard"):
        assert 0 <= graded(set_match, text, ["a", "b"], mode=mode) <= 1
    for mode in ("exact", "positions"):
        assert 0 <= graded(list_match, text, ["a", "b"], mode=mode) <= 1
    assert 0 <= graded(ranking, text, IDS) <= 1


def test_long_texts_are_read_in_time():
    rng = random.Random(0)
    many = [str(rng.random()) for _ in range(20_000)]
    assert graded(set_match, ", ".join(many), many) == 1.0
    assert graded(ranking, " > ".join(many), many) == pytest.approx(1.0)
    assert items("[" * 100_000) == []


@pytest.mark.parametrize(
    ("answer", "meta"),
    [
        ({"1": -1.0, "2": 1.0}, {}),
        ({"1": "much", "2": 1.0}, {}),
        (["1", "2"], {"relevant": 7}),
        (["1", "2"], {"relevant": {"1": math.nan}}),
    ],
)
def test_gains_that_are_none_are_a_broken_task(answer, meta):
    with pytest.raises(TaskError):
        graded(ranking, "1 > 2", answer, meta)
