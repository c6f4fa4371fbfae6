"""What grading processes know of the environment: what programs run by, what they are given by name, and no secrets."""

import asyncio
import os
import sys

import cloudpickle
import pytest

from rlft.actors.reward import RewardWorker
from rlft.rewards.compose import compose, pack
from rlft.rewards.environment import passed_on
from rlft.rewards.grader import spoken
from rlft.rewards.process import GradingProcesses, Request
from rlft.types import Group, Task

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # grading processes need not import this file
SECRETS = [
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "OPENAI_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "REWARD_TOKEN",
    "RLFT_AUTH",
    "RAY_AUTH_TOKEN",
    "GITHUB_TOKEN",
    "DATABASE_URL",
    "PYTHON_KEYRING_PASSWORD",
    "ANYTHING",
]
KEPT = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "PYTHONPATH",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "CUDA_VISIBLE_DEVICES",
    "https_proxy",
    "NO_PROXY",
    "TOKENIZERS_PARALLELISM",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_not_passed_on_unless_it_is_named(name):
    assert passed_on({name: "x"}) == {}
    assert passed_on({name: "x", "OTHER": "y"}, [name]) == {name: "x"}


@pytest.mark.parametrize("name", KEPT)
def test_what_programs_run_by_is_passed_on(name):
    assert passed_on({name: "x"}) == {name: "x"}


def seen(task, trajectory):
    return 0.0, ",".join(name for name in ("WANDB_API_KEY", "MY_KEY", "LANG") if name in os.environ)


@pytest.mark.parametrize(("env", "names"), [((), "LANG"), (("MY_KEY",), "MY_KEY,LANG")])
def test_a_grading_process_sees_no_more(monkeypatch, env, names):
    for name in ("WANDB_API_KEY", "MY_KEY", "LANG"):
        monkeypatch.setenv(name, "C.UTF-8")

    async def ask():
        processes = GradingProcesses(pack(compose(seen)), 1, 30.0, env)
        try:
            await processes.start()
            task = Task("t", ({"role": "user", "content": "?"},))
            (report,) = await processes.evaluate([Request({0: spoken(task, "x")}, [(0, 0)])])
            return report.verdicts[0, 0]
        finally:
            await processes.close()

    assert asyncio.run(ask()) == [(0.0, names)]


def keyed(task, trajectory):
    return float(os.environ.get("MINE_API_KEY") == "sesame")


@pytest.mark.parametrize(("env", "value"), [([], 0.0), (["MINE_API_KEY"], 1.0)])
def test_a_reward_gets_a_variable_that_the_run_file_names_and_no_other(monkeypatch, env, value):
    monkeypatch.setenv("MINE_API_KEY", "sesame")

    async def graded():
        worker = RewardWorker(keyed, 1, 10.0, env)
        try:
            (group,) = await worker.grade([Group("g", (spoken(Task("t", ()), ""),))])
            return group.trajectories[0].parts["keyed"]
        finally:
            await worker.close()

    assert asyncio.run(graded()) == value
