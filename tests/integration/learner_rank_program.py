"""What one learner rank does in test_learner.py: every case in one process, results in one file.

Usage: learner_rank_program.py RANK WORLD_SIZE PORT TIED_MODEL UNTIED_MODEL FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rlft.actors.learner_rank import LearnerRank
from rlft.algorithms.grpo import grpo
from rlft.algorithms.ppo import ppo
from rlft.config import CriticConfig, LearnerConfig
from rlft.errors import NonFiniteError
from rlft.learner.batching import collate, micro_batches
from rlft.learner.rows import Row, RowBlock, pack_rows
from rlft.types import Setting, Source

BUDGETS = (32, 96, 4096)  # padded tokens: about one row each, a few, all at once
# With beta1 = 0 Adam's first moment is the step's gradient, and at this rate no weight moves.
GRADIENT = {"lr": 1e-30, "betas": [0.0, 0.999], "grad_clip": 1e9}
STEP = {"lr": 1e-2, "betas": [0.9, 0.99], "grad_clip": 0.05, "weight_decay": 0.1, "schedule": "linear"}
POISONS = {"nan": float("nan"), "inf": float("inf")}
PROBE = [[3, 5, 7, 11], [2, 4]]
ENGINES = [(0, False), (1, False), (2, False), (3, False), (2, True), (3, True)]  # ZeRO stage, optimizer offload
UNTIED_ENGINES = [(2, False), (3, False)]
CRITICS = {"separate": CriticConfig(lr=3e-3), "shared": CriticConfig(lr=3e-3, shared=True)}


def make_rows() -> list[Row]:
    """Five groups of three ragged trajectories; the first trajectory of each group has two turns, each in a row of its own."""
    rng = np.random.default_rng(0)
    rows = []
    for group in range(5):
        for trajectory in range(3):
            for part in range(2 if trajectory == 0 else 1):
                prompt, sampled = int(rng.integers(2, 8)), int(rng.integers(1, 30))
                length = prompt + sampled
                sources = np.array([Source.PROMPT] * prompt + [Source.POLICY] * sampled, np.int8)
                sources[prompt + 1 : prompt + 3] = Source.ENVIRONMENT  # not trained, inside what was sampled
                rewards = np.zeros(length, np.float32)
                rewards[-1] = rng.normal() if part == 0 else 0.0
                rows.append(
                    Row(
                        token_ids=rng.integers(1, 96, length).astype(np.int32),
                        sources=sources,
                        turn_ids=np.where(sources == Source.POLICY, part, -1).astype(np.int16),
                        rewards=rewards,
                        logprobs=np.where(sources == Source.POLICY, -1.0, 0.0).astype(np.float32),
                        traj_id=trajectory,
                        group_id=f"g{group}",
                        policy_version=0,
                    )
                )
    return rows


def share(rank: int, world_size: int, layout: str = "uneven") -> list[Row]:
    """Rank 0 of 2 holds four of the five groups ("uneven"), or all of them ("alone")."""
    first = {f"g{i}" for i in range(4 if layout == "uneven" else 5)}
    return [row for row in make_rows() if world_size == 1 or (row.group_id in first) == (rank == 0)]


def packed(rows: list[Row]) -> list[RowBlock]:
    """One block per group, none without rows."""
    return [pack_rows([row for row in rows if row.group_id == name]) for name in dict.fromkeys(row.group_id for row in rows)]


def poisoned(value: float, where: int, rank: int):
    """GRPO whose loss on rank `where` is not finite: its gradient is NaN for a NaN, and finite for an infinity."""
    good = grpo(aggregation="sequence")

    def loss(logprobs, batch):
        per_token, metrics = good.loss(logprobs, batch)
        bad = (per_token * value) if value != value else (per_token + value)
        return (bad if rank == where else per_token), metrics

    return replace(good, loss=loss)


def broken_policy():
    """PPO whose policy loss is NaN; its critic's is not."""
    good = ppo()

    def loss(logprobs, batch):
        per_token, metrics = good.loss(logprobs, batch)
        return per_token * float("nan"), metrics

    return replace(good, loss=loss)


def gradients(learner: LearnerRank) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_optimizer_state

    found = {}
    for name, parameter in learner._engine.module.lm.named_parameters():
        if learner._config.zero_stage == 0:
            found[name] = learner._engine.optimizer.state[parameter]["exp_avg"].clone()
        elif parameter.requires_grad:
            found[name] = safe_get_full_optimizer_state(parameter, "exp_avg").clone()
    return found


def weights(learner: LearnerRank, bucket_bytes: int = 1 << 28) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.weights(bucket_bytes)}


def run(rank: int, world_size: int, port: int, model: str, engines: list[tuple[int, bool]], folder: Path) -> dict[str, object]:
    """Every case for one model; the dumps and saved models go to `folder`."""
    results: dict[str, object] = {}
    place = {"rank": rank, "world_size": world_size, "master_port": port}
    algorithm = grpo(aggregation="sequence")
    for stage, offload in engines:
        key = f"{stage}{'-offload' if offload else ''}"
        options = {"zero_stage": stage, "offload_optimizer": offload}
        learner = LearnerRank(LearnerConfig(**options, **GRADIENT, max_non_finite=2), model, **place, dump_dir=folder / f"dump{key}")
        for layout in ("uneven", "alone")[:world_size]:
            for budget in BUDGETS:
                object.__setattr__(learner, "_config", learner._config.model_copy(update={"max_tokens_per_micro_batch": budget}))
                metrics = learner.update(algorithm, Setting(), *packed(share(rank, world_size, layout)))
                results[f"gradient/{key}/{layout}/{budget}"] = (gradients(learner), metrics)
        for name, value in POISONS.items():
            learner.update(poisoned(value, world_size - 1, rank), Setting(), *packed(share(rank, world_size)))
            learner.update(algorithm, Setting(), *packed(share(rank, world_size)))
            results[f"after_skip/{key}/{name}"] = gradients(learner)
        raised = 0
        for _ in range(2):
            try:
                learner.update(poisoned(float("nan"), 0, rank), Setting(), *packed(share(rank, world_size)))
            except NonFiniteError as error:
                raised += 1
                results[f"stop/{key}"] = str(error)
        assert raised == 1, f"{raised} errors in two bad steps in a row"

        learner = LearnerRank(LearnerConfig(**options, **STEP), model, **place, steps=4)
        steps = [learner.update(algorithm, Setting(), *packed(share(rank, world_size))) for _ in range(3)]
        results[f"step/{key}"] = (weights(learner, 4096), steps)
        results[f"probe/{key}"] = learner.probe_logprobs(PROBE)
        for name, value in POISONS.items():
            before = weights(learner)
            metrics = learner.update(poisoned(value, world_size - 1, rank), Setting(), *packed(share(rank, world_size)))
            unchanged = all(torch.equal(x, before[n]) for n, x in weights(learner).items())
            results[f"skip/{key}/{name}"] = (metrics["learner/num_skipped"], unchanged)
        learner.save(folder / f"saved{key}")

    for stage in (2, 3):
        for name, rank_of_adapters in (("full", 0), ("lora", 4)):
            config = LearnerConfig(zero_stage=stage, lora_rank=rank_of_adapters, lr=1e-2, schedule="constant")
            learner = LearnerRank(config, model, **place, reference=model)
            results[f"{name}/{stage}"] = [learner.update(grpo(kl_coef=0.1), Setting(), *packed(share(rank, world_size))) for _ in range(3)]
            results[f"{name}-probe/{stage}"] = learner.probe_logprobs(PROBE)
            learner.save(folder / f"{name}{stage}")
    for stage in (0, 2, 3):
        for kind, critic in CRITICS.items():
            for budget in (32, 4096) if stage == 2 else (4096,):
                config = LearnerConfig(zero_stage=stage, max_tokens_per_micro_batch=budget, lr=1e-3, schedule="linear")
                learner = LearnerRank(config, model, **place, critic=critic, steps=6)
                before = weights(learner)
                steps = [learner.update(ppo(), Setting(), *packed(share(rank, world_size))) for _ in range(4)]
                moved = any(not torch.equal(x, before[n]) for n, x in weights(learner).items())
                results[f"critic/{stage}/{kind}/{budget}"] = (steps, moved)
            saved = folder / f"resumed{stage}{kind}"
            learner.save(saved, state=True)
            went_on = learner.update(ppo(), Setting(), *packed(share(rank, world_size)))
            again = LearnerRank(config, str(saved), **place, critic=critic, steps=6, start_step=4, state=str(saved / "state"))
            results[f"resumed/{stage}/{kind}"] = (went_on, again.update(ppo(), Setting(), *packed(share(rank, world_size))))
    fresh = LearnerRank(config, str(saved), **place, critic=critic, steps=6, start_step=4)
    results["restarted"] = fresh.update(ppo(), Setting(), *packed(share(rank, world_size)))
    warm = LearnerRank(LearnerConfig(lr=1e-2), model, **place, critic=CriticConfig(lr=3e-3, warmup_steps=2))
    for key in ("warming", "warm"):
        before = weights(warm)
        metrics = [warm.update(ppo(), Setting(), *packed(share(rank, world_size))) for _ in range(2)]
        results[key] = (metrics, all(torch.equal(x, before[n]) for n, x in weights(warm).items()))
    held = LearnerRank(LearnerConfig(lr=1e-2, weight_decay=0.5), model, **place, critic=CriticConfig(lr=3e-3, shared=True, warmup_steps=1))
    before = weights(held)
    results["held"] = []  # whether the weights are the same after an update of warm-up, and after the next
    for _ in range(2):
        held.update(ppo(), Setting(), *packed(share(rank, world_size)))
        results["held"].append(all(torch.equal(x, before[n]) for n, x in weights(held).items()))
    started = LearnerRank(LearnerConfig(), model, **place, critic=CriticConfig(lr=3e-3, warmup_steps=2), start_step=4)
    results["started"] = started.update(ppo(), Setting(), *packed(share(rank, world_size)))
    spoiled = LearnerRank(LearnerConfig(max_non_finite=2), model, **place, critic=CriticConfig(lr=3e-3), dump_dir=folder / "dumpcritic")
    results["spoiled"] = [spoiled.update(broken_policy(), Setting(), *packed(share(rank, world_size)))]
    try:
        spoiled.update(broken_policy(), Setting(), *packed(share(rank, world_size)))
    except NonFiniteError as error:
        results["spoiled"].append(str(error))
    for key, passes in (("critic_once", {}), ("critic_passes", {"num_minibatches": 3, "num_epochs": 2})):
        learner = LearnerRank(LearnerConfig(lr=1e-3), model, **place, critic=CriticConfig(lr=3e-3, **passes))
        steps = [learner.update(ppo(), Setting(), *packed(share(rank, world_size))) for _ in range(2)]
        results[key] = steps
    learner = LearnerRank(LearnerConfig(num_minibatches=3, num_epochs=2, lr=1e-3), model, **place)
    results["minibatches"] = learner.update(algorithm, Setting(), *packed(share(rank, world_size)))
    results["num_micro_batches"] = [len(micro_batches(collate(share(rank, world_size), 0), budget)) for budget in BUDGETS]
    return results


def main(rank: int, world_size: int, port: int, tied: str, untied: str, folder: Path) -> None:
    results = {}
    for name, model, engines in (("tied", tied, ENGINES), ("untied", untied, UNTIED_ENGINES)):
        results[name] = run(rank, world_size, port, model, engines, folder / name)
    torch.save(results, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    rank, world_size, port, tied, untied, folder = sys.argv[1:]
    main(int(rank), int(world_size), int(port), tied, untied, Path(folder))
