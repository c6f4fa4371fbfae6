"""What the run knows of its tasks."""

from dataclasses import replace

import pytest

from rlft.data.ledger import Ledger, Record, Right
from rlft.errors import ConfigError
from rlft.types import GroupRef, TrajectoryInfo, TurnInfo


def info(outcome, status="completed", task="t", **fields):
    return TrajectoryInfo(task, status, outcome, {"right": 1.0 - outcome}, 1, 1, 0, **fields)


def group(*trajectories, name="0/t"):
    return GroupRef(name, trajectories, None, 1)


def test_right_answers_are_counted_over_the_run_with_the_step_last_seen():
    ledger = Ledger()
    ledger.update(3, [group(info(1.0), info(0.0)), group(info(0.0, task="u"), name="1/u")], Right())
    ledger.update(7, [group(info(1.0), info(1.0), name="2/t")], Right())
    assert (ledger["t"], ledger["u"], ledger["never"]) == (Record(4, 3, 7), Record(1, 0, 3), Record(0, 0, 0))
    assert ledger.rates([group(info(0.0), name="9/t"), group(info(0.0, task="new"), name="10/new")]) == {"9/t": 0.75, "10/new": 0.5}


def test_trajectories_without_a_verdict_count_for_nothing():
    ledger = Ledger()
    ledger.update(1, [group(info(1.0, "failed"), info(1.0, ungraded={"right": "timeout"}))], Right())
    assert len(ledger) == 0
    ledger.update(1, [group(info(1.0, "failed"), info(1.0, "truncated"))], Right())
    assert ledger["t"] == Record(1, 1, 1)


def test_a_part_of_the_reward_may_be_what_counts():
    assert Right("right", 0.9).judge(info(0.0)) is True and Right("", 0.9).judge(info(0.0)) is False
    with pytest.raises(ConfigError, match="eval.metric 'rihgt': no such reward part; there are \\['right'\\]"):
        Right("rihgt").judge(info(0.0))


def test_with_a_reward_for_every_turn_the_last_one_counts():
    turn = TurnInfo("attempt", 1.0, {"right": 1.0}, 1, False)
    corrected = info(1.0, turns=(replace(turn, reward=0.0, parts={"right": 0.0}), turn))
    spoiled = replace(corrected, turns=corrected.turns[::-1])
    for right in (Right(per_turn=True), Right("right", per_turn=True)):
        assert (right.judge(corrected), right.judge(spoiled)) == (True, False)
    assert Right().judge(spoiled) is True  # the control: the sum of both turns
    assert Right(per_turn=True).judge(info(1.0)) is None


def test_variants_of_a_task_count_for_the_task():
    ledger = Ledger()
    ledger.update(1, [group(info(1.0), info(0.0, task="t/swapped"))], Right())
    assert ledger["t"] == Record(2, 1, 1) and ledger["t/swapped"] == Record()


def test_a_ledger_comes_back_from_its_file(tmp_path):
    ledger = Ledger({"a\"ü": Record(4, 3, 7)})
    ledger.save(tmp_path / "ledger.json")
    again = Ledger.load(tmp_path / "ledger.json")
    assert again["a\"ü"] == Record(4, 3, 7) and len(again) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]


def test_what_is_expected_of_a_task_is_never_certain():
    assert (Record().expected, Record(8, 8).expected, Record(8, 0).expected) == (0.5, 0.9, 0.1)
    assert Record(8, 8).rate == 1.0
