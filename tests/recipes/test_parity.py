"""The self-correction task: answers are right, splits share nothing, and demonstrations are worth no second look."""

from statistics import fmean

import pytest

from rlft.config import load
from rlft.data.sources import load_tasks
from rlft.envs import BUILTIN as ENVIRONMENTS
from rlft.names import bind
from rlft.recipes.parity import AGAIN, NUM_DIGITS, demonstrations, parity, splits, tasks, wrong_at
from rlft.runs.first import make_algorithm


def test_the_answer_is_the_parity_of_the_sum_then_of_every_sum_on_the_way():
    # 3, 3+8=11, 16, 18, 19, 26: odd, odd, even, even, odd, even.
    assert parity("385217") == ("385217=", "0:110010")
    for task in tasks("held_out"):
        digits = [int(char) for char in task.messages[0]["content"].removesuffix("=")]
        result, _, working = task.answer.partition(":")
        assert [int(char) for char in working] == [sum(digits[: i + 1]) % 2 for i in range(NUM_DIGITS)]
        assert result == working[-1]


def test_splits_share_no_task_and_neither_result_is_the_better_guess():
    parts = splits(0)
    everything = [digits for part in parts.values() for digits in part]
    assert len(set(everything)) == len(everything)
    shown = {row["prompt"][0]["content"].removesuffix("=") for row in demonstrations(count=2000)}
    assert shown <= set(parts["demonstrated"])
    assert fmean(task.answer[0] == "1" for task in tasks("train")) == pytest.approx(0.5, abs=0.02)


def test_seeds_decide_the_tasks():
    assert tasks("train", 1) == tasks("train", 1) != tasks("train", 2)
    assert list(demonstrations(1, 50)) == list(demonstrations(1, 50)) != list(demonstrations(2, 50))


def test_demonstrations_slip_keep_mend_and_spoil_as_often_as_asked():
    rows = list(demonstrations(count=20_000))
    firsts = [(parity(row["prompt"][0]["content"][:-1])[1], row["answer"]) for row in rows[::2]]
    seconds = [(parity(row["prompt"][0]["content"][:-1])[1], row["prompt"][1]["content"], row["answer"]) for row in rows[1::2]]
    assert all(row["prompt"][2]["content"] == AGAIN for row in rows[1::2])
    assert fmean(said[0] != right[0] for right, said in firsts) == pytest.approx(0.4, abs=0.02)
    assert fmean(said[2:] != right[2:] for right, said in firsts) == pytest.approx(0.15, abs=0.02)
    assert fmean(said == right for right, said in firsts) == pytest.approx(0.6 * 0.85, abs=0.02)
    # Kept 0.7, else spoiled in the result; mended 0.4, else repeated.
    right, wrong = [s for r, f, s in seconds if f == r], [(r, s) for r, f, s in seconds if f != r]
    answers = [r for r, f, s in seconds if f == r]
    assert fmean(s == r for r, s in zip(answers, right, strict=True)) == pytest.approx(0.7, abs=0.02)
    assert fmean(s == r for r, s in wrong) == pytest.approx(0.4, abs=0.02)
    assert wrong_at(0, "0:110010") == "1:110010" and wrong_at(7, "0:110010") == "0:110011"


def test_the_run_files_fit_together():
    config, starter = load("score"), load("score_starter")
    stages = [config.of_stage(i) for i in range(2)]
    assert [make_algorithm(stage, None).name for stage in stages] == ["score", "score"]
    assert [stage.algorithm["stage"] for stage in stages] == [1, 2]
    task = load_tasks(config.data).tasks[0]
    env = bind(config.env, ENVIRONMENTS, "env")(task)
    assert env.message == AGAIN and config.rollout.max_turns == 2 and config.reward_pool.per_turn
    assert config.rollout.max_tokens > len(task.answer)
    assert len(load_tasks(starter.data).tasks) == starter.steps * starter.tasks_per_step
