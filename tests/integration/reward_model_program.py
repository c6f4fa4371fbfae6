"""What one rank does in test_reward_model_training.py: every case in one process, results in one file.

Usage: reward_model_program.py RANK WORLD_SIZE PORT MODEL FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch

from rlft.actors.reward_model_rank import RewardModelRank, pair_batches
from rlft.algorithms.preference import bradley_terry
from rlft.config import LearnerConfig
from rlft.data.preferences import EncodedPair
from rlft.errors import NonFiniteError

BUDGETS = (64, 4096)  # padded tokens: about a pair each, all at once
GRADIENT = {"lr": 1e-30, "betas": [0.0, 0.999], "grad_clip": 1e9}  # Adam's first moment is the gradient, and no weight moves
STAGES = (0, 2, 3)


def make_pairs() -> list[EncodedPair]:
    """Nine ragged pairs, every other one with a margin; one ends in the padding token."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(9):
        prompt = rng.integers(2, 90, rng.integers(1, 9))
        sides = [np.concatenate([prompt, rng.integers(2, 90, rng.integers(1, 20))]).astype(np.int32) for _ in range(2)]
        pairs.append(EncodedPair(sides[0], sides[1], 0.5 * (i % 2), (1, 1)))
    pairs[4].chosen[-1] = 0
    return pairs


def share(rank: int, world_size: int, layout: str) -> list[EncodedPair]:
    """Rank 0 of 2 holds seven of the nine pairs ("uneven"), or all of them ("alone")."""
    pairs, first = make_pairs(), 7 if layout == "uneven" else 9
    return pairs if world_size == 1 else (pairs[:first] if rank == 0 else pairs[first:])


def gradients(learner: RewardModelRank, stage: int) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_optimizer_state

    named = list(learner._engine.module.lm.named_parameters())
    if stage == 0:
        return {name: learner._engine.optimizer.state[p]["exp_avg"].clone() for name, p in named}
    return {name: safe_get_full_optimizer_state(p, "exp_avg").clone() for name, p in named}


def poisoned(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    return bradley_terry(chosen, rejected, margins) * torch.where(margins > 0, float("nan"), 1.0)


def main(rank: int, world_size: int, port: int, model: str, folder: Path) -> None:
    results: dict[str, object] = {"num_micro_batches": [len(pair_batches(share(rank, world_size, "uneven"), b)) for b in BUDGETS]}
    place = {"rank": rank, "world_size": world_size, "master_port": port}
    for stage in STAGES:
        for budget in BUDGETS:
            config = LearnerConfig(zero_stage=stage, max_tokens_per_micro_batch=budget, **GRADIENT, max_non_finite=2)
            learner = RewardModelRank(config, model, **place)
            for layout in ("uneven", "alone")[:world_size]:
                metrics = learner.update(bradley_terry, 9, share(rank, world_size, layout))
                results[f"gradient/{stage}/{budget}/{layout}"] = (gradients(learner, stage), metrics)
        results[f"scores/{stage}"] = learner.score(share(rank, world_size, "uneven"))
        skipped = learner.update(poisoned, 9, share(rank, world_size, "uneven"))
        results[f"skipped/{stage}"] = skipped["learner/num_skipped"]
        try:
            learner.update(poisoned, 9, share(rank, world_size, "uneven"))
        except NonFiniteError as error:
            results[f"stopped/{stage}"] = str(error)
    for name, adapters in (("full", 0), ("lora", 4)):
        config = LearnerConfig(zero_stage=3, lr=1e-2, lora_rank=adapters)
        learner = RewardModelRank(config, model, **place, steps=8, chat_template="{{ messages }}" if adapters else "")
        losses = [learner.update(bradley_terry, 9, share(rank, world_size, "uneven"))["loss/preference"] for _ in range(8)]
        results[f"trained/{name}"] = (losses, learner.score(share(rank, world_size, "uneven")))
        learner.save(folder / name)
    torch.save(results, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    rank, world_size, port, model, folder = sys.argv[1:]
    main(int(rank), int(world_size), int(port), model, Path(folder))
