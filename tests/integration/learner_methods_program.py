"""What one learner rank does in test_learner_methods.py, every case in one process.

Usage: learner_methods_program.py PORT MODEL FOLDER
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rlft.actors.learner_rank import LearnerRank
from rlft.algorithms import BUILTIN
from rlft.algorithms.base import Algorithm
from rlft.algorithms.grpo import grpo
from rlft.algorithms.rft import rft
from rlft.config import CriticConfig, LearnerConfig
from rlft.learner.rows import Row, RowBlock
from rlft.names import import_object
from rlft.types import Setting, Source

_spec = importlib.util.spec_from_file_location("learner_rank_program", Path(__file__).with_name("learner_rank_program.py"))
program = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(program)

OPTIONS = {
    "dr_grpo": {"max_length": 30},
    "gdpo": {"weights": {"a": 1.0, "b": 0.5}},
    "score": {"stage": 2, "alpha": 2.0},
    "rft": {"threshold": 0.0},
    "nft": {"threshold": 0.0},
}
VARIANTS = {
    **{name: (name, OPTIONS.get(name, {})) for name in BUILTIN},
    "grpo, KL in the loss": ("grpo", {"kl_coef": 0.1, "kl": "k3_ratio"}),
    "grpo, KL in the reward": ("grpo", {"kl_coef": 0.1, "kl_in": "reward", "kl": "k1"}),
    "grpo, weighed": ("grpo", {"is_cap": 2.0}),
    "dapo, filtered": ("dapo", {}),
}


def method_rows(with_demonstrations: bool) -> list[Row]:
    """The rows of learner_rank_program, with what single methods ask of them; one trajectory of a group may be a demonstration."""
    rng, rows = np.random.default_rng(1), []
    for row in program.make_rows():
        parts = {"a": float(rng.normal()), "b": float(rng.integers(0, 2))}
        tags = ("reflection",) if row.traj_id else ("attempt", "reflection")
        row = replace(row, parts=parts, baseline=0.1, tags=tags, truncated=row.traj_id == 2 and row.group_id == "g1")
        if with_demonstrations and row.traj_id == 1:
            row = replace(row, sources=np.where(row.sources == Source.POLICY, Source.DEMONSTRATION, row.sources).astype(np.int8))
        rows.append(row)
    return rows


def blocks(name: str) -> list[RowBlock]:
    return program.packed(method_rows(name == "spin"))


def equal_rewards() -> list[RowBlock]:
    """The same rows, every trajectory with the reward 1."""
    rows = method_rows(False)
    for place, row in enumerate(rows):
        rewards = np.zeros_like(row.rewards)
        rewards[-1] = float(not any(other.group_id == row.group_id and other.traj_id == row.traj_id for other in rows[:place]))
        rows[place] = replace(row, rewards=rewards)
    return program.packed(rows)


def measured(learner: LearnerRank, algorithm: Algorithm, rows: list[RowBlock]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    metrics = learner.update(algorithm, Setting(), *rows)
    return program.gradients(learner), metrics


def main(port: int, model: str, folder: Path) -> None:
    results: dict[str, object] = {}
    place = {"master_port": port, "reference": model}
    config = LearnerConfig(max_tokens_per_micro_batch=96, **program.GRADIENT)
    learners = {critic: LearnerRank(config, model, **place, critic=CriticConfig(lr=1e-30) if critic else None) for critic in (False, True)}
    for key, (name, options) in VARIANTS.items():
        algorithm = import_object(BUILTIN[name])(**options)
        learner = learners["values" in algorithm.needs]
        own = measured(learner, algorithm, blocks(name))
        passed = measured(learner, replace(algorithm, loss_only=frozenset()), blocks(name))
        results[f"method/{key}"] = (own, passed)
    stale = LearnerRank(LearnerConfig(lr=1e-2, num_epochs=2), model, **place)
    results["two steps"] = measured(stale, grpo(), blocks("grpo"))[1]

    for decay in (0.0, 0.1):
        learner = LearnerRank(LearnerConfig(lr=1e-2, weight_decay=decay), model, **place)
        learner.update(grpo(), Setting(), *blocks("grpo"))  # from here on AdamW has momentum
        before = program.weights(learner)
        for key, algorithm, rows in (
            ("grpo", grpo(), equal_rewards()),
            ("nobody right", rft(threshold=100.0), blocks("rft")),
            ("dpo", import_object(BUILTIN["dpo"])(), equal_rewards()),
            ("kl", grpo(kl_coef=1e-9), equal_rewards()),
        ):
            metrics = learner.update(algorithm, Setting(), *rows)
            moved = any(not torch.equal(x, before[n]) for n, x in program.weights(learner).items())
            results[f"no signal/{decay}/{key}"] = (metrics, moved)
    scheduled = LearnerRank(LearnerConfig(lr=1e-2, schedule="linear"), model, **place, steps=4)
    results["schedule"] = [scheduled.update(grpo(), Setting(), *rows) for rows in (equal_rewards(), blocks("grpo"))]
    torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
