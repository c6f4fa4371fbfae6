"""Publishing over vLLM's own weight-transfer engines; needs CUDA."""

import json

import pytest
import torch

import rlft
from rlft.config import validate
from rlft.recipes.starter import make_model

NUM_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def digits(task, trajectory):
    ids = trajectory.turns[-1].completion.token_ids
    return sum(token < 130 for token in ids) / len(ids)


@pytest.mark.parametrize(
    ("transfer", "gpus"),
    [
        pytest.param("ipc", 0.4, marks=pytest.mark.skipif(NUM_GPUS < 1, reason="CUDA IPC needs a GPU")),
        pytest.param("nccl", 1.0, marks=pytest.mark.skipif(NUM_GPUS < 2, reason="NCCL between learner and engine needs two GPUs")),
    ],
)
def test_every_publish_between_gpus_is_verified_and_the_policy_learns(tmp_path, transfer, gpus):
    table = {
        "model": str(make_model(tmp_path / "model", layers=2, width=128)),
        "steps": 5,
        "tasks_per_step": 16,
        "run_dir": str(tmp_path / "run"),
        "rollout": {"gpus": gpus, "group_size": 8, "max_tokens": 8, "max_model_len": 64, "memory": 0.3},
        "learner": {"gpus": gpus, "lr": 1e-2, "zero_stage": 2},
    }
    tasks = [rlft.Task(str(n), ({"role": "user", "content": f"{n}+{n}="},), "") for n in range(50)]
    rlft.train(validate(table), reward=digits, tasks=tasks)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["publish/num_unread"] == 0 and row["publish/num_whole"] > 0 for row in rows)
    assert rows[-1]["reward/mean"] > rows[0]["reward/mean"] + 0.1
