"""The driver's work grows with trajectories, not with tokens: real Ray, loop and handles, synthetic workers."""

import asyncio
import gc
import os

import psutil
import pytest
import ray

from rlft.actors.learner import Learner
from rlft.actors.rollout_worker import Collected, Published
from rlft.actors.rollouts import Rollouts
from rlft.actors.weights.buckets import Bucket
from rlft.actors.weights.probe import Probe
from rlft.actors.weights.receipt import Receipt
from rlft.algorithms.grpo import grpo
from rlft.config import validate
from rlft.learner.rows import RowBlock
from rlft.loop import Plan, Progress, train
from rlft.testing.fakes import FakeTracker
from rlft.types import GroupRef, Task, TrajectoryInfo

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

GROUPS, GROUP_SIZE, TOKENS = 32, 8, 32_000  # 256 trajectories
LIMIT = 64 * 2**20


class SyntheticRollouts:
    """Makes groups of long trajectories and keeps them in the object store, as a rollout worker does."""

    def __init__(self):
        import numpy as np

        self.np = np

    async def collect(self, tasks, step, temperature):
        return Collected(tuple(self._group(name) for name, _ in tasks), {"rollout": 0.0, "reward": 0.0, "store": 0.0})

    async def flush(self):
        pass

    async def merge(self, name):
        pass

    async def load_weights(self, receipt, probe, *buckets):
        return Published([[0.0] * (len(ids) - 1) for ids in probe], 0, 0, 0)

    def _group(self, name):
        np, total = self.np, GROUP_SIZE * TOKENS
        streams = tuple(np.ones(total, dtype) for dtype in (np.int32, np.int8, np.int16, np.float32, np.float32))
        owners = tuple((i, name, 0, False) for i in range(GROUP_SIZE))
        block = RowBlock(np.full(GROUP_SIZE, TOKENS, np.int32), streams, owners)
        infos = tuple(TrajectoryInfo("t", "completed", float(i % 2), {"right": 1.0}, 100, TOKENS, 0) for i in range(GROUP_SIZE))
        return GroupRef(name, infos, ray.put(block), total)


class SyntheticRank:
    """Counts the tokens that reach it, as a learner rank would train on them."""

    def update(self, algorithm, setting, *blocks):
        return {"num_tokens": float(sum(block.lengths.sum() for block in blocks))}

    def export_weights(self, version, dtype):
        return [ray.put(Receipt(version, {})), ray.put(Bucket((), (), (), ()))]

    def probe_logprobs(self, probe):
        return [[0.0] * (len(ids) - 1) for ids in probe]


@pytest.fixture(scope="module")
def actors():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**30)
    yield ray.remote(SyntheticRollouts).remote(), ray.remote(SyntheticRank).remote()
    ray.shutdown()


def resident():
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss


def tasks():
    while True:
        yield Task("t", ({"role": "user", "content": "?"},))


def run(actors, steps):
    worker, rank = actors
    rollouts = Rollouts([worker], validate({"model": "m", "tasks_per_step": GROUPS}), Probe([[1, 2, 3]], "float32"))
    recorder = FakeTracker()

    async def after_step(now, metrics):
        recorder.rows[-1]["resident"] = resident()
        return False

    asyncio.run(train(tasks(), rollouts, Learner([rank], 60), grpo(), recorder, Plan(steps, 0.0), Progress(), after_step))
    return recorder.rows


def test_a_step_with_eight_million_tokens_leaves_the_driver_small(actors):
    run(actors, 1)  # imports, connections
    before = resident()
    rows = run(actors, 3)
    assert [row["num_tokens"] for row in rows] == [GROUPS * GROUP_SIZE * TOKENS] * 3
    assert max(row["resident"] for row in rows) - before < LIMIT


def test_fetching_the_tokens_would_show(actors):
    """The control: what the measurement says of a driver that looks at a step's tokens."""
    worker, _ = actors
    before = resident()
    collected = ray.get(worker.collect.remote([(str(i), None) for i in range(GROUPS)], 1, 1.0), timeout=60)
    blocks = [ray.get(group.rows, timeout=60) for group in collected.groups]
    held = [stream.copy() for block in blocks for stream in block.streams]
    assert sum(map(len, held)) > 0 and resident() - before > LIMIT
