"""Verdicts on every turn: what the reward function sees, and where its verdicts go."""

from dataclasses import replace

from rlft.rollout.grading import prefixes, with_verdicts
from rlft.types import Completion, Group, Task, Trajectory, Turn

TASK = Task("t", ({"role": "user", "content": "?"},), "b")


def say(*lines, index=0, status="completed", earned=0.0):
    turns = tuple(
        Turn([1], Completion([2], [-1.0], "stop", 0), {"role": "assistant", "content": line}, [0, 1], earned, "attempt") for line in lines
    )
    return Trajectory(TASK, index, turns, status, "g", feedback="the environment's")


def grade(group):
    """Right is 1; what is said in capitals cannot be graded; the feedback is the text itself."""
    graded = []
    for t in group.trajectories:
        if t.text.isupper():
            graded.append(replace(t, status="failed", error=f"no verdict on {t.text}", ungraded={"right": "raised"}))
        else:
            right = float(t.text == t.task.answer)
            graded.append(replace(t, reward=2 * right, parts={"right": right, "of": len(group.trajectories)}, feedback=t.text))
    return replace(group, trajectories=tuple(graded))


def judged(*trajectories):
    group = Group("g", trajectories)
    return with_verdicts(group, [grade(prefix) for prefix in prefixes(group)]).trajectories


def test_each_turn_is_graded_with_the_conversation_up_to_it_beside_the_same_turn_of_the_others():
    group = Group("g", (say("a", "b"), say("b", index=1), say("x", index=2, status="failed"), say("a", "b", "c", index=3)))
    seen = [[(t.index, [turn.action["content"] for turn in t.turns]) for t in prefix.trajectories] for prefix in prefixes(group)]
    assert seen == [
        [(0, ["a"]), (1, ["b"]), (3, ["a"])],
        [(0, ["a", "b"]), (3, ["a", "b"])],
        [(3, ["a", "b", "c"])],
    ]


def test_what_went_on_was_complete_up_to_there_and_the_end_keeps_its_status():
    group = Group("g", (say("a", "b", status="truncated"),))
    assert [prefix.trajectories[0].status for prefix in prefixes(group)] == ["completed", "truncated"]


def test_verdicts_go_to_their_turns_and_the_last_ones_parts_to_the_trajectory():
    first, second = judged(say("b", "a", earned=0.5), say("b", index=1))
    assert [turn.reward for turn in first.turns] == [2.5, 0.5] and first.reward == 0.0 and first.outcome == 3.0
    assert [turn.parts for turn in first.turns] == [{"right": 1.0, "of": 2}, {"right": 0.0, "of": 1}]
    assert first.parts == {"right": 0.0, "of": 1} and first.feedback == "a"
    assert [turn.reward for turn in second.turns] == [2.0] and second.status == "completed"


def test_an_ungradable_turn_fails_the_trajectory_with_its_cause_and_no_other():
    first, second, third = judged(say("B", "b"), say("b", "B", index=1), say("a", "b", index=2))
    assert (first.status, first.error) == ("failed", "turn 1: no verdict on B") and first.ungraded == {"right": "raised"}
    assert (second.status, second.error) == ("failed", "turn 2: no verdict on B")
    assert third.status == "completed" and third.error == ""


def test_what_had_failed_before_is_left_as_it_was():
    lost = say("b", status="failed")
    assert judged(lost, say("b", index=1))[0] == lost and prefixes(Group("g", (lost,))) == []
