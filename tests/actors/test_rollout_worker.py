"""What a worker makes of graded groups: rows with baselines and demonstrations, and what the driver is told."""

import math
from dataclasses import replace

import pytest

from rlft.actors.rollout_worker import describe, describe_turns, group_rows, with_baselines
from rlft.actors.store import Origin, write_groups
from rlft.data.stored import PARTS, merge, read
from rlft.errors import DataError
from rlft.recipes.starter import make_tokenizer
from rlft.rollout.renderer import Renderer
from rlft.types import Completion, Group, Source, Task, Trajectory, Turn

TASK = Task("t", ({"role": "user", "content": "6*7="},), 42)


def turn(text, tag="attempt", reward=0.0, finish="stop", parts=None, version=3):
    ids = [ord(char) for char in text]
    completion = Completion(ids, [-1.0] * len(ids), finish, version)
    return Turn([1], completion, {"role": "assistant", "content": text}, [0] + [1] * len(ids), reward, tag, (), parts or {})


def played(*turns, index=0, status="completed", reward=0.0, error=""):
    return Trajectory(TASK, index, turns, status, "7/t", reward, error=error)


def test_turns_are_told_without_their_tokens():
    first, second = describe_turns((turn("41", reward=0.5, parts={"exact": 0.0}), turn("142", finish="length", parts={"exact": 1.0})))
    assert (first.tag, first.reward, first.parts, first.num_sampled, first.truncated) == ("attempt", 0.5, {"exact": 0.0}, 2, False)
    assert (second.num_sampled, second.truncated) == (3, True)


@pytest.mark.parametrize(
    ("before", "after", "distance"),
    [("kitten", "sitting", 3 / 7), ("abc", "abc", 0.0), ("", "abc", 1.0), ("", "", 0.0), ("ab", "abcd", 0.5)],
)
def test_the_edit_distance_is_a_share_of_the_longer_text(before, after, distance):
    assert describe_turns((turn(before), turn(after)))[1].edit == pytest.approx(distance)


def test_a_turn_is_compared_with_the_last_of_its_tag():
    told = describe_turns((turn("aa"), turn("bb", "reflection"), turn("ab"), turn("bb", "reflection"), turn("ab")))
    assert [info.edit for info in told] == [None, None, 0.5, 0.0, 0.0]


def test_a_trajectory_is_told_with_its_turns():
    info = describe(played(turn("41", reward=1.0, version=2), turn("42", reward=0.5), reward=0.25))
    assert (info.outcome, info.num_sampled, info.policy_version, len(info.turns), info.num_prompt) == (1.75, 4, 2, 2, 1)
    assert describe(played(status="failed")).turns == ()


GROUP = Group("7/t", (played(turn("42")), played(turn("41"), index=1), played(turn("40"), index=2, status="failed", error="late")))


def test_every_trajectory_is_compared_with_the_greedy_answer_to_its_own_way_of_putting_the_task():
    greedy = Group("7/t", (played(turn("42", reward=0.5), reward=1.0), played(turn("9"), index=1)))
    group, baselines = with_baselines(GROUP, greedy)
    assert group == GROUP and baselines == [1.5, 0.0, 1.5]
    assert [row.baseline for row in group_rows(group, baselines, None)] == [1.5, 0.0]


def test_without_a_verdict_on_the_greedy_answer_there_is_nothing_to_compare_with():
    greedy = Group("7/t", (played(status="failed", error="no verdict"), played(turn("9"), index=1)))
    group, baselines = with_baselines(GROUP, greedy)
    assert [t.status for t in group.trajectories] == ["failed", "completed", "failed"]
    assert [t.error for t in group.trajectories] == ["the greedy answer: no verdict", "", "late"]
    assert [row.traj_id for row in group_rows(group, baselines, None)] == [1]


def test_a_demonstration_is_a_trajectory_of_the_group_that_nobody_sampled():
    tokenizer = make_tokenizer()
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    *sampled, shown = group_rows(GROUP, [math.nan], renderer)
    assert [row.traj_id for row in sampled] == [0, 1] and all(math.isnan(row.baseline) for row in sampled)
    assert (shown.group_id, shown.traj_id) == ("7/t", 3) and renderer.text(shown.token_ids.tolist()) == "6*7=42<|im_end|>"
    assert shown.sources.tolist() == [Source.PROMPT] * 4 + [Source.DEMONSTRATION] * 3
    assert len(group_rows(GROUP, [math.nan], None)) == 2


def test_a_group_without_a_verdict_has_no_rows_and_a_demonstration_needs_an_answer():
    tokenizer = make_tokenizer()
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    lost = replace(GROUP, trajectories=GROUP.trajectories[2:])
    assert group_rows(lost, [math.nan], renderer) == []
    unanswered = replace(GROUP, trajectories=tuple(replace(t, task=replace(TASK, answer=None)) for t in GROUP.trajectories))
    with pytest.raises(DataError, match="task t has no answer to demonstrate"):
        group_rows(unanswered, [math.nan], renderer)


def stored_records(tmp_path, *groups, seed_of=lambda group_id, index: index + 5):
    tokenizer = make_tokenizer()
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    write_groups(tmp_path / PARTS / "eval-000003" / "0.parquet", groups, renderer, Origin("runs/a", "m", "eval", 3, 1), seed_of)
    merge(tmp_path, "eval-000003")
    return read(tmp_path / "eval-000003.parquet")


def test_a_stored_trajectory_tells_what_was_said_what_it_earned_and_where_it_came_from(tmp_path):
    asked, told = {"role": "user", "content": "6*7="}, {"role": "user", "content": "no", "name": "referee"}
    first = replace(turn("41", reward=0.25, parts={"env": 0.25}, version=2), observed=(asked,))
    second = replace(turn("42", finish="length"), observed=(told,), prompt_ids=[1, *b"41", 9], sources=[0, 1, 1, 2, 1, 1])
    told_task = replace(TASK, meta={"level": 3, "when": object})
    graded = Trajectory(told_task, 1, (first, second), "truncated", "7/t", 0.5, {"exact": 0.5}, "close", ungraded={"judge": "timeout"})
    (one,) = stored_records(tmp_path, Group("7/t", (graded,)))
    said = [(m["role"], m["content"]) for m in one["messages"]]
    assert said == [("user", "6*7="), ("assistant", "41"), ("user", "no"), ("assistant", "42")]
    assert one["messages"][2]["other"] == '{"name": "referee"}' and one["messages"][0]["other"] is None
    assert one["components"] == {"exact": 0.5} and one["turn_components"] == [{"env": 0.25}, {}] and one["outcome"] == 0.75
    assert (one["run"], one["model"], one["kind"], one["step"], one["worker"], one["policy_version"]) == ("runs/a", "m", "eval", 3, 1, 2)
    assert (one["seed"], one["status"], one["ungraded"], one["feedback"]) == (6, "truncated", ["judge: timeout"], "close")
    assert '"level": 3' in one["task_meta"] and one["answer"] == "42"


def test_an_episode_that_never_began_is_stored_with_its_task_and_why(tmp_path):
    lost = Trajectory(replace(TASK, answer=None), 0, (), "failed", "7/t", error="no room")
    (one,) = stored_records(tmp_path, Group("7/t", (lost,)), seed_of=lambda group_id, index: None)
    assert [m["content"] for m in one["messages"]] == ["6*7="] and (one["status"], one["error"]) == ("failed", "no room")
    assert one["answer"] is None and one["seed"] is None
