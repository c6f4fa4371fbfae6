"""Two attempts on the real stack: every turn gets a verdict, SCoRe trains on them, and what is logged is what was played."""

import json
from statistics import fmean

import pytest

import rlft
from rlft.config import validate
from rlft.data.stored import read
from rlft.recipes.starter import make_model

ENDS = list("abcdefghijklmnopqrstuvwxyz0123456789")  # an untrained model seldom says its end: any of these is one

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def low_bytes(task, trajectory):
    """1 where the last thing said begins with a low token."""
    return float(trajectory.turns[-1].completion.token_ids[0] < 130)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The metrics' rows and the stored trajectories of a run in two stages."""
    folder = tmp_path_factory.mktemp("attempts")
    model = make_model(folder / "model", layers=1, width=32)
    rows = [{"prompt": f"{i}?", "answer": "x"} for i in range(6)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = validate(
        {
            "model": str(model),
            "tasks_per_step": 3,
            "run_dir": str(folder / "run"),
            "data": {"source": str(folder / "tasks.jsonl")},
            "env": {"name": "attempts", "message": "again?"},
            "reward": {f"{__name__}:low_bytes": 2.0},
            "reward_pool": {"per_turn": True},
            "rollout": {
                "group_size": 4, "max_turns": 2, "max_tokens": 6, "max_model_len": 48, "memory": 0.5, "max_num_seqs": 16, "stop": ENDS,
            },
            "learner": {"lr": 1e-2, "max_tokens_per_micro_batch": 256},
            "eval": {
                "samples": 2, "metric": "low_bytes", "max_tokens": 6, "stop": ENDS, "data": {"source": str(folder / "tasks.jsonl")},
            },
            "stages": [
                {"steps": 1, "algorithm": {"name": "score", "stage": 1, "kl_coef": 0.01}},
                {"steps": 1, "algorithm": {"name": "score", "stage": 2, "alpha": 2.0}},
            ],
        }
    )
    rlft.train(config)
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    stored = [record for path in sorted((folder / "run" / "rollouts").glob("step-*.parquet")) for record in read(path, None)]
    return metrics, stored


def test_every_turn_has_its_own_verdict(played):
    _, stored = played
    assert {record["step"] for record in stored} == {1, 2} and len(stored) == 24
    for record in stored:
        said = [message for message in record["messages"] if message["role"] == "assistant"]
        assert record["tags"] == ["attempt"] * len(said)
        verdicts = [components["low_bytes"] for components in record["turn_components"]]
        assert record["turn_rewards"] == [2.0 * verdict for verdict in verdicts] and record["reward"] == 0.0
        ids = [[t for t, k in zip(record["token_ids"], record["turn_ids"], strict=True) if k == turn] for turn in range(len(verdicts))]
        assert verdicts == [float(sampled[0] < 130) for sampled in ids]
        assert record["outcome"] == sum(record["turn_rewards"])
    assert {len(record["tags"]) for record in stored} == {1, 2}  # some were cut, some went on
    assert {reward for record in stored for reward in record["turn_rewards"]} == {0.0, 2.0}


def test_the_metrics_of_a_step_and_of_an_evaluation_are_those_of_its_attempts(played):
    metrics, stored = played
    steps = [row for row in metrics if "rollout/turns" in row]
    assert len(steps) == 2
    for row in steps:
        firsts = [record["turn_rewards"][0] == 2.0 for record in stored if record["step"] == row["step"]]
        seconds = [record["turn_rewards"][1:] == [2.0] for record in stored if record["step"] == row["step"]]
        assert row["attempt/accuracy_1"] == pytest.approx(fmean(firsts)) and row["attempt/accuracy_2"] == pytest.approx(fmean(seconds))
        assert row["learner/num_trained_tokens"] > 0 and "kl/ref" in row
    evaluated = [row for row in metrics if "eval/mean" in row]
    assert len(evaluated) == 3 and all("eval/attempt/delta" in row for row in evaluated)
