import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlft.report.metrics import Stopwatch, rollout_metrics, spans, time_shares, time_table
from rlft.types import GroupRef, Status, TrajectoryInfo, TurnInfo


def info(outcome=0.0, status: Status = "completed", tokens=10, version=3, turns=1, parts=None, ungraded=None):
    said = (TurnInfo("", 0.0, {}, tokens // turns, False),) * turns
    return TrajectoryInfo("t", status, outcome, parts or {}, 5, tokens, version, said, "", ungraded or {})


def group(*trajectories):
    return GroupRef("g", trajectories, None, 0)


LATE = {"judge": "timeout"}
HAND = [
    group(info(1.0, tokens=10, parts={"exact": 1.0}), info(0.0, "truncated", 30, version=2, turns=3, parts={"exact": 0.0})),
    group(info(1.0, tokens=20, parts={"exact": 1.0}, ungraded=LATE), info(-7.0, "failed", 0, version=0, parts={"exact": 9.0})),
]


def test_a_table_worked_by_hand():
    assert rollout_metrics(HAND, version=4) == pytest.approx(
        {
            "reward/mean": 2 / 3, "reward/std": (2 / 9) ** 0.5, "reward/exact": 2 / 3, "rollout/reward_min": 0.0, "rollout/reward_max": 1.0,
            "rollout/failed": 1, "rollout/ungraded": 2 / 4, "ungraded/judge/timeout": 1, "rollout/truncated": 1 / 4,
            "rollout/tokens": 15, "rollout/tokens_max": 30, "rollout/tokens_total": 60, "rollout/prompt_tokens": 5,
            "rollout/turns": 1.5, "rollout/no_signal": 1 / 2, "rollout/staleness": 2,
        }
    )  # fmt: skip


@given(st.floats(-1e6, 1e6))
def test_what_a_failed_trajectory_earned_changes_no_reward(outcome):
    last = replace(HAND[1].trajectories[1], outcome=outcome, parts={"exact": outcome})
    assert rollout_metrics([HAND[0], group(HAND[1].trajectories[0], last)], 4) == rollout_metrics(HAND, 4)
    graded = replace(last, status="completed", outcome=5.0)
    assert rollout_metrics([HAND[0], group(HAND[1].trajectories[0], graded)], 4) != rollout_metrics(HAND, 4)


def test_without_a_graded_trajectory_there_is_no_reward_and_no_signal():
    got = rollout_metrics([group(info(status="failed", tokens=0), info(status="failed", tokens=0))], 0)
    assert not [key for key in got if key.startswith("reward/")]
    assert (got["rollout/failed"], got["rollout/no_signal"], got["rollout/staleness"]) == (2, 1, 0)


def test_nothing_and_a_clashing_part_are_errors():
    with pytest.raises(ValueError, match="at least one"):
        rollout_metrics([], 0)
    with pytest.raises(ValueError, match="'mean'.*rename the reward"):
        rollout_metrics([group(info(parts={"mean": 1.0}))], 0)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_spans_and_other_add_up_to_the_step():
    clock = Clock()
    watch = Stopwatch(clock)
    for name, inside, after in [("rollout", 3.0, 0.5), ("learner", 2.0, 0.0), ("rollout", 1.0, 0.25)]:
        with watch.span(name):
            clock.now += inside
        clock.now += after
    want = {"time/rollout_s": 4.0, "time/learner_s": 2.0, "time/other_s": 0.75, "time/step_s": 6.75}
    assert watch.metrics() == want


def test_a_span_that_raises_is_counted_and_closed():
    clock = Clock()
    watch = Stopwatch(clock)
    with pytest.raises(KeyError), watch.span("rollout"):
        clock.now += 2.0
        raise KeyError
    with watch.span("rollout"):
        clock.now += 1.0
    assert watch.metrics()["time/rollout_s"] == 3.0


def test_nested_and_reserved_spans_are_refused():
    watch = Stopwatch()
    with pytest.raises(ValueError, match="'a' is still open"), watch.span("a"), watch.span("b"):
        pass
    for name in ("other", "step", ""):
        with pytest.raises(ValueError, match="taken"), watch.span(name):
            pass


SPLITS = [
    ({}, {"rollout": 4.0}),
    ({"reward": 1.0}, {"rollout": 3.0, "reward": 1.0}),
    ({"rollout": 2.0, "reward": 1.0}, {"rollout": 3.0, "reward": 1.0}),
    ({"engine": 6.0, "reward": 2.0}, {"rollout": 0.0, "engine": 3.0, "reward": 1.0}),
    ({"reward": 0.0}, {"rollout": 4.0, "reward": 0.0}),
]


@pytest.mark.parametrize(("seconds", "left"), SPLITS)
def test_a_split_span_keeps_its_sum(seconds, left):
    clock = Clock()
    watch = Stopwatch(clock)
    with watch.span("rollout"):
        clock.now += 4.0
    watch.split("rollout", seconds)
    clock.now += 0.5
    assert spans(watch.metrics()) == {**left, "other": 0.5}
    assert watch.metrics()["time/step_s"] == 4.5


ROWS = [
    {"step": 0, "eval/mean": 0.5, "time/eval_s": 100.0},
    {"step": 1, "time/rollout_s": 3.0, "time/other_s": 1.0, "time/step_s": 4.0, "reward/mean": 1.0},
    {"step": 2, "time/rollout_s": 1.0, "time/other_s": 1.0, "time/learner_s": 2.0, "time/step_s": 4.0},
]


def test_time_shares_add_up_over_the_steps_and_end_with_other():
    got = [(line.name, line.total_s, line.share, line.per_step_s) for line in time_shares(ROWS)]
    assert got == [("rollout", 4.0, 0.5, 2.0), ("learner", 2.0, 0.25, 1.0), ("other", 2.0, 0.25, 1.0)]
    assert time_shares(ROWS[:1]) == []


def test_the_time_table_shows_every_part_and_the_sum():
    shown = io.StringIO()
    screen = Console(file=shown, width=80)
    screen.print(time_table(ROWS))
    text = shown.getvalue()
    for words in (["rollout", "4.0", "50.0%", "2.000"], ["learner", "2.0", "25.0%", "1.000"], ["all steps", "8.0", "100.0%", "4.000"]):
        line = next(line for line in text.splitlines() if words[0] in line)
        assert all(word in line for word in words)
    screen.print(time_table([]))  # a run that made no step has a table too
