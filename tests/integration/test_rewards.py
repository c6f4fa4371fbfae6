"""Rewards of every kind in one real run: functions, a sandbox, a model, a judge on the policy and one on its own engine."""

import json

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import rlft
from rlft.config import validate
from rlft.data.stored import read
from rlft.rewards.learned.reward_model import RewardModel
from rlft.types import Task

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PARTS = {"math_equal", "code_tests", "reward_model", "own_judge", "other_judge", "best"}
STEPS, TASKS, GROUP = 2, 2, 4


def tasks():
    """The last answer is broken for code_tests: its trajectories must fail, and be counted, wherever they are drawn."""
    cases = json.dumps({"inputs": ["1\n"], "outputs": ["1\n"]})
    return [Task(str(n), ({"role": "user", "content": f"{n}?"},), str(n), {"tests": cases}) for n in range(TASKS)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    """Rows, stored trajectories and the reward model's folder of a finished run."""
    folder = tmp_path_factory.mktemp("rewards")
    config = AutoConfig.from_pretrained(tiny_model, num_labels=1)
    AutoModelForSequenceClassification.from_pretrained(tiny_model, config=config).save_pretrained(folder / "rm")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder / "rm")
    judge = {"fn": "judge", "weight": 0.25, "abstained": 0.5, "max_tokens": 4}
    table = {
        "model": tiny_model,
        "steps": STEPS,
        "tasks_per_step": TASKS,
        "run_dir": str(folder / "run"),
        "reward": {
            "math_equal": 1.0,
            "code_tests": {"weight": 1.0, "tests": "tests"},
            "reward_model": {"weight": [[0, 1.0], [2, 0.0]], "model": str(folder / "rm"), "normalize": "group", "clip": [-1.0, 1.0]},
            "own_judge": {**judge, "model": "policy", "mode": "pairwise"},
            "other_judge": {**judge, "model": tiny_model},
            "best": {"fn": "best_in_group", "part": "reward_model", "weight": 0.125},
        },
        "rollout": {"group_size": GROUP, "max_tokens": 8, "max_model_len": 1024, "memory": 1.0, "max_num_seqs": 16},
        "learner": {"lr": 1e-4, "max_tokens_per_micro_batch": 512},
        "reward_pool": {"timeout_s": 60.0},
    }
    rlft.train(validate(table), tasks=tasks())
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    stored = [row for path in sorted((folder / "run" / "rollouts").glob("step-*.parquet")) for row in read(path)]
    return rows, stored, folder / "rm"


def test_every_part_of_every_trajectory_is_kept(run):
    rows, stored, _ = run
    assert len(stored) == STEPS * TASKS * GROUP
    assert {frozenset(record["components"]) for record in stored} == {frozenset(PARTS)}
    assert [row["rollout/ungraded"] for row in rows] == [0.0] * STEPS


def test_the_reward_is_the_weighted_sum_of_its_parts_by_rule(run):
    _, stored, _ = run
    for group_id in {record["group_id"] for record in stored}:
        group = [record for record in stored if record["group_id"] == group_id]
        parts = [record["components"] for record in group]
        scores = [part["reward_model"] for part in parts]
        mean = sum(scores) / len(scores)
        spread = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
        for record, part in zip(group, parts, strict=True):
            scheduled = (1 - record["step"] / 2) * max(-1.0, min(1.0, (part["reward_model"] - mean) / spread))
            judged = 0.25 * (part["own_judge"] + part["other_judge"])
            expected = part["math_equal"] + part["code_tests"] + scheduled + judged + 0.125 * part["best"]
            assert record["reward"] == pytest.approx(expected, abs=1e-6)
            assert part["best"] == float(part["reward_model"] == max(scores))


def test_the_served_reward_model_scores_as_its_own_forward_does(run):
    import asyncio
    from dataclasses import replace

    from rlft.rewards.grader import spoken
    from rlft.types import Group

    _, stored, folder = run
    said = {task.id: task for task in tasks()}
    answers = [record["messages"][-1]["content"] for record in stored]
    trajectories = tuple(
        replace(spoken(said[record["task_id"]], answer), index=i) for i, (record, answer) in enumerate(zip(stored, answers, strict=True))
    )

    async def score():
        scorer = RewardModel(model=str(folder))
        await scorer.start()
        try:
            return await scorer.score(Group("g", trajectories))
        finally:
            await scorer.close()

    served = [record["components"]["reward_model"] for record in stored]
    assert asyncio.run(score()) == pytest.approx(served, abs=1e-4)
    assert len(set(served)) > len(served) // 2, "scores that hardly differ would prove nothing"
