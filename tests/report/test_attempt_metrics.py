import math
import random
from dataclasses import replace
from statistics import NormalDist, fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.errors import ConfigError
from rlft.report.attempts import attempt_metrics
from rlft.report.metrics import rollout_metrics
from rlft.types import GroupRef, TrajectoryInfo, TurnInfo


def turn(right, edit=None, cut=False, tag="attempt", reward=0.0, part="exact"):
    return TurnInfo(tag, reward, {part: float(right)}, 5, cut, edit)


def tried(*turns, task="t", status="completed"):
    return TrajectoryInfo(task, status, 0.0, {}, 3, 10, 0, turns)


HAND = [
    tried(turn(False), turn(True, edit=0.5), task="a"),
    tried(turn(False), turn(False, edit=0.0), task="a"),
    tried(turn(True), turn(True, edit=0.0), task="b"),
    tried(turn(True), turn(False, edit=0.25, cut=True), task="b", status="truncated"),
    tried(turn(False), turn(True, edit=1.0), task="c"),
]


def test_a_table_worked_by_hand():
    # First right: b, b: 2/5. Second right: a, b, c: 3/5. Mended 2 of 3, kept 1 of 2, unchanged 2 of 5.
    # Task means of the change: 1/2, -1/2, 1; mean 1/3, variance ((1/6)^2 + (5/6)^2 + (2/3)^2) / 2 = 7/12.
    reach = 1.959964 * math.sqrt(7 / 12 / 3)
    assert attempt_metrics(HAND) == pytest.approx(
        {
            "accuracy_1": 0.4, "accuracy_2": 0.6, "delta": 0.2, "delta_low": 1 / 3 - reach, "delta_high": 1 / 3 + reach,
            "incorrect_to_correct": 0.4, "correct_to_incorrect": 0.2, "kept": 0.5, "mended": 2 / 3, "unchanged": 0.4, "edit": 0.35,
            "truncated_1": 0.0, "truncated_2": 0.2,
        },
        abs=1e-6,
    )  # fmt: skip


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_second_accuracy_is_what_was_kept_plus_what_was_mended(outcomes):
    m = attempt_metrics([tried(turn(a), turn(b, edit=0.1)) for a, b in outcomes])
    again = m["accuracy_1"] * m.get("kept", 0.0) + (1 - m["accuracy_1"]) * m.get("mended", 0.0)
    assert again == pytest.approx(m["accuracy_2"], abs=1e-12)
    assert m["delta"] == pytest.approx(m["incorrect_to_correct"] - m["correct_to_incorrect"], abs=1e-12)
    assert ("kept" in m) == any(a for a, _ in outcomes) and ("mended" in m) == any(not a for a, _ in outcomes)


def test_the_interval_is_over_tasks_so_repeated_samples_buy_no_precision():
    many = attempt_metrics(HAND * 50)
    few = attempt_metrics(HAND)
    assert (many["delta_low"], many["delta_high"]) == pytest.approx((few["delta_low"], few["delta_high"]))
    deltas = [1, 0, 0, -1, 1] * 50
    unclustered = NormalDist().inv_cdf(0.975) * stdev(deltas) / math.sqrt(len(deltas))
    assert 2 * unclustered < (many["delta_high"] - many["delta_low"]) / 3
    assert "delta_low" not in attempt_metrics(HAND[:2])  # a lone task


def test_shaped_rewards_are_never_read():
    rng = random.Random(0)

    def shaped(t):
        return replace(t, turns=tuple(replace(turn, reward=rng.uniform(-9, 9)) for turn in t.turns), outcome=rng.uniform(-9, 9))

    assert attempt_metrics(list(map(shaped, HAND))) == attempt_metrics(HAND)
    wrong = [replace(t, turns=tuple(replace(turn, parts={"exact": 0.0}) for turn in t.turns)) for t in HAND]
    assert attempt_metrics(wrong)["accuracy_2"] == 0.0  # the control: the part is what counts


def test_with_several_parts_the_one_that_counts_has_to_be_named():
    both = [replace(t, turns=tuple(replace(turn, parts={**turn.parts, "length": 0.9}) for turn in t.turns)) for t in HAND]
    assert attempt_metrics(both) == {} and attempt_metrics(both, "exact") == attempt_metrics(HAND)
    assert attempt_metrics(both, "length", 0.8)["accuracy_1"] == 1.0 and attempt_metrics(both, "length")["accuracy_1"] == 0.0
    with pytest.raises(ConfigError, match=r"eval.metric 'exakt': no such reward part; task a has \['exact', 'length'\]"):
        attempt_metrics(both, "exakt")


def test_a_first_attempt_that_ended_the_episode_stands_and_a_cut_one_leaves_the_second_wrong():
    stopped, cut = tried(turn(True), task="d"), tried(turn(True, cut=True), task="e", status="truncated")
    m = attempt_metrics([*HAND, stopped, cut])
    assert (m["accuracy_1"], m["accuracy_2"]) == pytest.approx((4 / 7, 4 / 7))
    assert (m["kept"], m["truncated_1"], m["truncated_2"], m["unchanged"]) == pytest.approx((2 / 4, 1 / 7, 1 / 5, 0.4))


def test_every_further_attempt_has_its_accuracy():
    three = tried(turn(False), turn(False, edit=0.5), turn(True, edit=0.5))
    m = attempt_metrics([three, tried(turn(False), turn(True, edit=0.5))])
    assert [m[f"accuracy_{k}"] for k in (1, 2, 3)] == [0.0, 0.5, 1.0] and m["truncated_3"] == 0.0


@pytest.mark.parametrize(
    "trajectories",
    [
        [],
        [tried(turn(True)), tried(turn(False))],  # one attempt each
        [tried(turn(False), turn(True, edit=0.1), status="failed")],
        [replace(tried(turn(False), turn(True, edit=0.1)), ungraded={"exact": "timeout"})],  # its numbers stand in for verdicts
        [tried(turn(False, tag=""), turn(True, tag=""))],
        [tried(turn(False, tag="given"), turn(True))],
        [tried(TurnInfo("attempt", 0.0, {}, 5, False), TurnInfo("attempt", 1.0, {}, 5, False, 0.5))],  # no verdicts
    ],
)
def test_without_two_graded_attempts_there_is_nothing_to_tell(trajectories):
    assert attempt_metrics(trajectories) == {}


def test_other_turns_failed_trajectories_and_given_attempts_change_nothing():
    others = [
        tried(turn(True), turn(False, edit=0.9), task="z", status="failed"),
        tried(turn(True, tag="given"), turn(False), task="z"),
    ]
    reflected = [replace(t, turns=(t.turns[0], turn(True, tag="reflection"), *t.turns[1:])) for t in HAND]
    assert attempt_metrics([*HAND, *others]) == attempt_metrics(reflected) == attempt_metrics(HAND)
    counted = [*HAND, tried(turn(True), turn(False, edit=0.9), task="z")]
    assert attempt_metrics(counted) != attempt_metrics(HAND)


def test_a_step_logs_them_beside_its_rollouts():
    logged = rollout_metrics([GroupRef("g", tuple(HAND), None, 0)], 0)
    assert {name: value for name, value in logged.items() if name.startswith("attempt/")} == {
        f"attempt/{name}": value for name, value in attempt_metrics(HAND).items()
    }
    assert fmean([logged["attempt/accuracy_1"], logged["attempt/accuracy_2"]]) == pytest.approx(0.5)


def test_an_environments_own_verdicts_count_and_a_retry_is_a_second_attempt():
    """After a wrong answer a reflection and a retry; the verdicts are the environment's, whatever eval.metric names."""
    mended = tried(turn(False, part="env"), turn(False, tag="reflection", part="env"), turn(True, tag="retry", part="env"), task="a")
    failed = tried(turn(False, part="env"), turn(False, tag="reflection", part="env"), turn(False, tag="retry", part="env"), task="b")
    right = tried(turn(True, part="env"), task="c")
    m = attempt_metrics([mended, failed, right], metric="exact_match")
    assert (m["accuracy_1"], m["accuracy_2"], m["mended"], m["kept"]) == pytest.approx((1 / 3, 2 / 3, 1 / 2, 1.0))
    assert "edit" not in m
    with pytest.raises(ConfigError, match="eval.metric 'exact_match'"):  # the control: a verdict of the reward function under another name
        attempt_metrics(HAND, metric="exact_match")
