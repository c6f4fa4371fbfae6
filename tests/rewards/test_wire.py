"""Groups survive the way to a reward server and back, and what does not follow the format is refused."""

import json
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.errors import RewardError
from rlft.rewards.grader import spoken
from rlft.rewards.wire import decode_groups, encode_groups, encode_verdicts, plain, verdicts_of, without_tokens
from rlft.types import Completion, Group, Task, Trajectory, Turn

anything = st.characters()  # lone surrogates included
texts = st.text(anything, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts})
plain_tasks = st.builds(Task, texts, st.lists(messages, max_size=2).map(tuple), values, st.dictionaries(texts, values, max_size=2))
tasks = st.builds(lambda task, variants: replace(task, variants=tuple(variants)), plain_tasks, st.lists(plain_tasks, max_size=1))
ids = st.lists(st.integers(0, 2**31), max_size=4)
completions = st.builds(Completion, ids, st.lists(numbers, max_size=4), st.sampled_from(["stop", "length", "abort"]), st.integers(0, 99))
turns = st.builds(Turn, ids, completions, messages, ids, numbers, texts, st.lists(messages, max_size=2).map(tuple))
trajectories = st.builds(
    Trajectory,
    tasks,
    st.integers(0, 99),
    st.lists(turns, max_size=3).map(tuple),
    st.sampled_from(["completed", "truncated", "failed"]),
    st.just("g"),
    numbers,
    st.dictionaries(texts, numbers, max_size=2),
    texts,
    texts,
    st.dictionaries(texts, texts, max_size=1),
)
groups = st.builds(lambda members: Group("g", tuple(members)), st.lists(trajectories, max_size=3))


def through(group, tokens):
    return decode_groups(json.loads(encode_groups([group], tokens)))[0]


@settings(max_examples=60, deadline=None)
@given(groups)
def test_with_tokens_everything_comes_back(group):
    assert through(group, tokens=True) == group


@settings(max_examples=60, deadline=None)
@given(groups)
def test_without_tokens_everything_but_them_comes_back_and_how_many_there_were(group):
    back = through(group, tokens=False)
    assert [t.num_sampled for t in back.trajectories] == [t.num_sampled for t in group.trajectories]
    assert all(i < 0 for t in back.trajectories for turn in t.turns for i in turn.completion.token_ids)
    assert without_ids(back) == without_ids(group) and without_tokens(group) == back


def without_ids(group):
    def blank(turn):
        return replace(turn, prompt_ids=[], sources=[], completion=replace(turn.completion, token_ids=[], logprobs=[]))

    return replace(group, trajectories=tuple(replace(t, turns=tuple(map(blank, t.turns))) for t in group.trajectories))


def test_a_task_of_many_trajectories_is_sent_once():
    task = Task("1", ({"role": "user", "content": "x" * 1000},), "a")
    sent = json.loads(encode_groups([Group("g", tuple(spoken(task, str(i)) for i in range(8)))]))
    assert len(sent["groups"][0]["tasks"]) == 1 and [t["task"] for t in sent["groups"][0]["trajectories"]] == [0] * 8


@pytest.mark.parametrize("value", [{1: "a"}, {1, 2}, date(2025, 1, 1), float("nan"), b"x", [float("inf")], {"a": object()}])
def test_what_json_would_change_is_refused_and_not_changed(value):
    with pytest.raises(RewardError, match="task 't': answer holds .* which JSON cannot carry"):
        encode_groups([Group("g", (spoken(Task("t", (), value), "x"),))])
    with pytest.raises(RewardError, match="a trajectory holds a number"):
        encode_groups([Group("g", (replace(spoken(Task("t", ()), "x"), reward=float("nan")),))])


def test_tuples_become_lists():
    assert plain((1, (2.5, "a")), "x") == [1, [2.5, "a"]]


GOOD = json.loads(encode_groups([Group("g", (spoken(Task("t", ()), "x"),))]))


def broken(change):
    table = json.loads(json.dumps(GOOD))
    change(table)
    return table


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([], "not a request"),
        ({}, "version: Field required"),
        ({**GOOD, "version": 2}, "version"),
        ({**GOOD, "more": 1}, "more: Extra inputs"),
        (broken(lambda t: t["groups"][0]["trajectories"][0].update(task=1)), "names task 1; there are 1"),
        (broken(lambda t: t["groups"][0]["trajectories"][0].update(task=-1)), "greater than or equal to 0"),
        (broken(lambda t: t["groups"][0]["trajectories"][0].update(status="lost")), "groups.0.trajectories.0.status"),
        (broken(lambda t: t["groups"][0]["trajectories"][0]["turns"][0].update(num_sampled=-1)), "num_sampled"),
        (broken(lambda t: t["groups"][0]["tasks"][0].pop("messages")), "groups.0.tasks.0.messages: Field required"),
    ],
)
def test_a_request_that_does_not_follow_the_format_names_the_field(table, said):
    assert decode_groups(GOOD)
    with pytest.raises(RewardError, match=said):
        decode_groups(table)


def test_a_huge_count_of_tokens_costs_no_memory():
    (group,) = decode_groups(broken(lambda t: t["groups"][0]["trajectories"][0]["turns"][0].update(num_sampled=10**12)))
    assert group.trajectories[0].num_sampled == 10**12


def test_verdicts_are_values_with_feedback_or_errors():
    said = spoken(Task("t", ()), "x")
    good, bad = replace(said, reward=0.5, feedback="ok"), replace(said, status="failed", error="why")
    answer = json.loads(encode_verdicts([Group("g", (good, bad)), Group("h", (good,))]))
    (first, error), second = verdicts_of(answer, [2, 1], "http://x")
    assert first == (0.5, "ok") and second == [(0.5, "ok")]
    assert isinstance(error, RewardError) and str(error) == "http://x: why"


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, {"verdicts": [[]]}, {"verdicts": [[{"value": 1.0}] * 2]}, {"verdicts": [[{"value": "1"}]]}, {"verdicts": [[None]]}]
    + [{"verdicts": [[{"value": value}]]} for value in (float("nan"), float("inf"), True, None)]
    + [{"verdicts": [[{"value": 1.0, "feedback": 2}]]}, {"verdicts": 3}, {"verdicts": [3]}],
)
def test_an_answer_that_is_no_verdict_is_an_error(answer):
    assert verdicts_of({"verdicts": [[{"value": 1}]]}, [1], "u") == [[(1.0, "")]]
    with pytest.raises(RewardError, match="^u: "):
        verdicts_of(answer, [1], "u")
