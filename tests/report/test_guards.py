"""Alarms sound for what they name, once, and for nothing else."""

import json
import random

import pytest

import rlft.config
from rlft.config import GuardsConfig
from rlft.errors import RewardError
from rlft.report.folder import RunFolder
from rlft.report.guards import Guards
from rlft.report.tracking import Tracker
from rlft.types import Example


def names(alarms):
    return [alarm.name for alarm in alarms]


def test_more_than_one_percent_without_a_verdict_sounds_once_until_it_is_over():
    guards = Guards(GuardsConfig())
    shares = [0.0, 0.01, 0.011, 0.2, 0.005, 0.5]
    found = [guards.step(i, {"rollout/ungraded": share, "ungraded/math/timeout": 3}) for i, share in enumerate(shares)]
    assert [names(alarms) for alarms in found] == [[], [], ["ungraded"], [], [], ["ungraded"]]
    assert found[2][0].text == "1.1% of the step's trajectories have no verdict (math/timeout: 3)"


@pytest.mark.parametrize(("later", "sounds"), [(100.0, False), (180.0, False), (230.0, True), (60.0, False), (40.0, True)])
def test_lengths_far_from_the_first_ones_sound(later, sounds):
    guards = Guards(GuardsConfig(length=2.0))
    lengths = [100.0] * 10 + [later] * 15
    found = [alarm.name for i, tokens in enumerate(lengths) for alarm in guards.step(i, {"rollout/tokens": tokens})]
    assert found == (["length"] if sounds else [])


def drift_alarms(held_out, part, noise=0.02):
    """Alarms of a run with evaluations every 10 steps; `part` gives the part's mean in each stretch."""
    rng, guards, found = random.Random(0), Guards(GuardsConfig()), []
    for stretch, (score, level) in enumerate(zip(held_out, part, strict=True)):
        for step in range(10):
            guards.step(10 * stretch + step, {"reward/model": level + noise * rng.gauss(0, 1), "reward/std": float(stretch)})
        found += guards.evaluation(10 * (stretch + 1), {"mean": score, "low": score - 0.02, "high": score + 0.02})
    return [(alarm.name, alarm.key, alarm.step) for alarm in found]


def test_a_part_that_rises_while_held_out_falls_sounds_at_the_first_evaluation_that_shows_it():
    assert drift_alarms([0.5, 0.6, 0.5, 0.4], [0.1, 0.2, 0.4, 0.6]) == [("drift", "reward/model", 30)]


@pytest.mark.parametrize(
    ("held_out", "part"),
    [
        ([0.5, 0.6, 0.7, 0.8], [0.1, 0.2, 0.4, 0.6]),  # both rise
        ([0.5, 0.6, 0.5, 0.4], [0.2, 0.2, 0.2, 0.2]),  # the part stays
        ([0.5, 0.6, 0.5, 0.4], [0.6, 0.5, 0.4, 0.3]),  # both fall
        ([0.5, 0.6, 0.59, 0.585], [0.1, 0.2, 0.4, 0.6]),  # held-out stays within its interval
    ],
)
def test_nothing_else_is_called_drift(held_out, part):
    assert drift_alarms(held_out, part) == []


def test_a_part_that_rises_while_held_out_only_falls_from_before_training_on_sounds_too():
    def alarms(held_out):
        guards = Guards(GuardsConfig())
        found = guards.evaluation(0, {"mean": 0.5, "low": 0.48, "high": 0.52})
        for stretch, score in enumerate(held_out):
            for step in range(10):
                guards.step(10 * stretch + step + 1, {"reward/model": 0.1 * stretch + 0.01 * (step % 2)})
            found += guards.evaluation(10 * (stretch + 1), {"mean": score, "low": score - 0.02, "high": score + 0.02})
        return [(alarm.name, alarm.key, alarm.step) for alarm in found]

    assert alarms([0.4, 0.3, 0.2]) == [("drift", "reward/model", 20)]
    assert alarms([0.5, 0.5, 0.5]) == []


def test_an_engine_that_means_another_policy_sounds_beyond_the_limit_that_was_set():
    gaps = [0.001, 0.02, 0.021, 0.03, 0.001]
    watched, unwatched = Guards(GuardsConfig(mismatch=0.02)), Guards(GuardsConfig())
    found = [names(watched.step(i, {"mismatch/prob": gap})) for i, gap in enumerate(gaps)]
    assert found == [[], [], ["mismatch"], [], []]
    assert not any(unwatched.step(i, {"mismatch/prob": gap}) for i, gap in enumerate(gaps))
    assert not watched.step(9, {"reward/mean": 1.0})  # a step that trained on nothing has no such metric


def test_alarms_are_stored_counted_and_stop_the_run_that_asks_for_it(tmp_path):
    def tracker(name, **guards):
        config = rlft.config.validate({"model": "m", "steps": 4, "guards": guards})
        return Tracker(RunFolder.create(tmp_path / name, config), config)

    with tracker("goes_on") as goes_on:
        goes_on.log(1, {"loss/policy": 0.0, "rollout/ungraded": 0.5})
        goes_on.finish({})
    (stored,) = map(json.loads, goes_on.folder.alarms.read_text().splitlines())
    assert (stored["name"], stored["step"]) == ("ungraded", 1)
    assert json.loads(goes_on.folder.summary.read_text())["alarms"] == {"ungraded": 1}
    with tracker("stops", stop=["ungraded"]) as stops, pytest.raises(RewardError, match="guards.stop: ungraded at step 1: 50.0%"):
        stops.log(1, {"loss/policy": 0.0, "rollout/ungraded": 0.5})
    with tracker("another", stop=["length"]) as another:
        another.log(1, {"loss/policy": 0.0, "rollout/ungraded": 0.5})


FLAT = {"reward/mean": 0.0, "reward/std": 0.0, "reward/exact": 0.0, "rollout/no_signal": 1.0, "rollout/truncated": 0.0}


def no_signal(*steps, limit=3):
    guards = Guards(GuardsConfig(no_signal=limit))
    return [alarm for i, step in enumerate(steps, start=1) for alarm in guards.step(i, FLAT | step)]


def test_several_steps_with_nothing_to_learn_from_sound_once():
    (alarm,) = no_signal(*[{}] * 10)
    assert (alarm.name, alarm.step) == ("no_signal", 3)
    assert GuardsConfig().no_signal <= 5
    assert no_signal(*[{}] * 10, limit=0) == []


def test_a_step_with_signal_begins_the_count_anew():
    some = {"reward/std": 0.4, "rollout/no_signal": 0.9, "loss/policy": 0.0}
    assert no_signal({}, {}, some, {}, {}) == []
    assert [alarm.step for alarm in no_signal({}, {}, some, {}, {}, {}, some, {}, {}, {})] == [6, 10]


def test_groups_of_one_are_not_called_flat_where_their_algorithm_learns_from_them():
    alone = {"reward/std": 0.4, "rollout/no_signal": 1.0, "learner/no_signal": 0, "loss/policy": 0.1}
    assert no_signal(*[alone] * 9) == []
    assert no_signal(*[alone | {"learner/no_signal": 1}] * 3)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({}, "every answer earned 0. Likely: the reward reads answers of another form"),
        ({"rollout/truncated": 1.0}, "every answer earned 0. Likely: every answer was cut by a limit"),
        ({"reward/mean": 1.0}, "every answer earned 1. Likely: the reward pays whatever is said"),
        ({"reward/std": 0.5, "learner/no_signal": 1}, "earned the same as each other. Likely: the answers to a task are all alike"),
    ],
)
def test_the_likeliest_cause_is_named_first(step, said):
    (alarm,) = no_signal(*[step] * 3)
    assert said in alarm.text


def test_an_environment_that_gives_nothing_without_a_reward_is_named():
    bare = {name: value for name, value in FLAT.items() if name != "reward/exact"}
    guards = Guards(GuardsConfig())
    (alarm,) = [alarm for i in range(3) for alarm in guards.step(i, bare | {"rollout/turns": 2.5})]
    assert "the environment gave none of its turns a reward" in alarm.text


def test_the_alarm_shows_answers_beside_what_they_earned_and_can_stop_the_run(tmp_path, capsys):
    def log(name, **guards):
        config = rlft.config.validate({"model": "m", "steps": 4, "guards": guards})
        with Tracker(RunFolder.create(tmp_path / name, config), config) as tracker:
            for step in (1, 2, 3):
                tracker.log(step, FLAT, [Example("1+1=", "three", True, 0.0, {"exact": 0.0})])
        return tracker.folder

    folder = log("goes_on")
    (stored,) = map(json.loads, folder.alarms.read_text().splitlines())
    assert "'1+1=' -> 'three', cut, which earned 0 (exact 0)" in stored["text"] and "three" in capsys.readouterr().out
    with pytest.raises(RewardError, match="guards.stop: no_signal at step 3"):
        log("stops", stop=["no_signal"])
