"""A learner update beside bare transformers and AdamW on the same rows: `python benchmarks/learner/run.py MODEL`.

MODEL is a folder of SmolLM2-135M-Instruct (`rlft starter smollm2`). Both sides train in this process, one update after the other, so that a
busy machine disturbs both alike: 32 rows of about 70 tokens of which 24 are trained, in the same micro-batches. The bare side is
transformers' forward, a log-softmax over the trained tokens, backward, clipping and torch's fused AdamW.
`--dtype bfloat16` measures rlft's update alone, with the peak of resident memory.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rlft.actors.learner_rank import LearnerRank
from rlft.algorithms.grpo import grpo
from rlft.config import LearnerConfig
from rlft.learner.batching import collate, micro_batches
from rlft.learner.rows import Row, pack_rows
from rlft.types import Batch, Setting, Source

ROWS, GROUP, TRAINED = 32, 8, 24
LR = 1e-6


def make_rows() -> list[Row]:
    rng, rows = np.random.default_rng(0), []
    for number in range(ROWS):
        length = int(rng.integers(62, 79))
        sampled = np.arange(length) >= length - TRAINED
        rewards = np.zeros(length, np.float32)
        rewards[-1] = number % 2
        rows.append(
            Row(
                token_ids=rng.integers(20, 49000, length).astype(np.int32),
                sources=np.where(sampled, Source.POLICY, Source.PROMPT).astype(np.int8),
                turn_ids=np.where(sampled, 0, -1).astype(np.int16),
                rewards=rewards,
                logprobs=np.where(sampled, -5.0, 0.0).astype(np.float32),
                traj_id=number % GROUP,
                group_id=f"g{number // GROUP}",
                policy_version=0,
            )
        )
    return rows


class Bare:
    """transformers and torch, and nothing else."""

    def __init__(self, model: str, micros: list[Batch]) -> None:
        from transformers import AutoModelForCausalLM

        self.lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.lm.parameters(), lr=LR, weight_decay=0.0, fused=True)
        self.micros, self.tokens = micros, sum(int(m.loss_mask.sum()) for m in micros)

    def update(self) -> None:
        self.optimizer.zero_grad()
        for micro in self.micros:
            hidden = self.lm.model(input_ids=micro.token_ids, use_cache=False).last_hidden_state
            rows, columns = micro.loss_mask.nonzero(as_tuple=True)
            logits = self.lm.lm_head(hidden[rows, columns - 1])
            logprobs = logits.log_softmax(-1).gather(1, micro.token_ids[rows, columns, None])
            (-logprobs.sum() / self.tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.lm.parameters(), 1.0)
        self.optimizer.step()


def timed(fn: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    fn()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 2**20


def shares(learner: LearnerRank, blocks: list, algorithm) -> list[tuple[str, float]]:
    """Own seconds of an update by what they are spent in, in per cent."""
    profile = cProfile.Profile()
    profile.enable()
    learner.update(algorithm, Setting(), *blocks)
    profile.disable()
    stats = pstats.Stats(profile)
    groups = {"rlft's own lines": 0.0}
    cumulative = {}
    for (file, _, name), (_, _, own, total, _) in stats.stats.items():  # type: ignore[attr-defined]
        cumulative[(Path(file).name, name)] = total
        if "/rlft/" in file:
            groups["rlft's own lines"] += own
    everything = stats.total_tt  # type: ignore[attr-defined]
    groups["backward"] = max(t for (_, n), t in cumulative.items() if "run_backward" in n)
    groups["optimizer, norm and clipping"] = cumulative.get(("zero.py", "step"), 0.0)
    groups["forward"] = cumulative.get(("learner_rank.py", "_forward"), 0.0)
    return [(name, 100 * seconds / everything) for name, seconds in groups.items() if seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=1024)
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = LearnerConfig(lr=LR, dtype=given.dtype, max_tokens_per_micro_batch=given.tokens)
    learner = LearnerRank(config, given.model, master_port=port)
    print(learner.ready().get("chosen", ""), flush=True)
    rows, algorithm = make_rows(), grpo()
    blocks = [pack_rows(rows[i : i + GROUP]) for i in range(0, ROWS, GROUP)]
    ours: list[tuple[float, float]] = []
    if given.dtype != "float32":
        parts = [learner.update(algorithm, Setting(), *blocks)]
        for _ in range(given.repeats):
            ours.append(timed(lambda: parts.append(learner.update(algorithm, Setting(), *blocks))))
        report("rlft", ours)
        print({k: round(v, 2) for k, v in parts[-1].items() if k.startswith("time/")}, f"peak {peak():.2f} GiB")
        return
    parts = [learner.update(algorithm, Setting(), *blocks) for _ in range(2)]
    print(f"rlft alone, two updates: peak {peak():.2f} GiB", flush=True)
    bare = Bare(given.model, micro_batches(collate(rows, 0), given.tokens))
    bare.update()
    theirs = []
    for _ in range(given.repeats):
        theirs.append(timed(bare.update))
        ours.append(timed(lambda: parts.append(learner.update(algorithm, Setting(), *blocks))))
        print("pair", [f"{x:.2f}" for x in (*theirs[-1], *ours[-1])], flush=True)
    report("bare", theirs)
    report("rlft", ours)
    cpu = [o[0] / t[0] for o, t in zip(ours, theirs, strict=True)]
    print(f"CPU, rlft over bare: median {statistics.median(cpu):.2f} of {[f'{x:.2f}' for x in cpu]}")
    print({k: round(v, 2) for k, v in parts[-1].items() if k.startswith("time/")})
    for name, share in shares(learner, blocks, algorithm):
        print(f"  {name}: {share:.1f} %")


def report(name: str, seconds: list[tuple[float, float]]) -> None:
    cpu, wall = (statistics.median(x) for x in zip(*seconds, strict=True))
    print(f"{name}: CPU {cpu:.2f} s, wall {wall:.2f} s an update (medians of {len(seconds)})", flush=True)


if __name__ == "__main__":
    main()
