"""Run file -> actors -> loop: the only place that wires."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.actors.judge_engine import Completing, JudgeEngine
from rlft.actors.learner import Learner
from rlft.actors.learner_rank import LearnerRank, free_address
from rlft.actors.reward import RewardWorker
from rlft.actors.rollout_worker import RolloutWorker
from rlft.actors.rollouts import STORE_S, Grading, Rollouts
from rlft.actors.weights.probe import Probe, probe_ids
from rlft.actors.weights.transfer import Transfer, choose_transfer
from rlft.algorithms.base import Algorithm, Need
from rlft.config import CriticConfig, RolloutConfig, RunConfig
from rlft.data.stored import PARTS
from rlft.envs.base import EnvFn
from rlft.errors import ConfigError, DataError, RlftError, StallError
from rlft.hub import check_model
from rlft.rewards.compose import PackedGrader
from rlft.rewards.grader import EngineSize, SizesEngines, UsesEngines
from rlft.rewards.learned.judge import POLICY
from rlft.rollout.renderer import Renderer, read_template
from rlft.runs.joining import TOKEN_HINT, prepare_to_join
from rlft.runs.limits import context_length
from rlft.runs.stopping import leave_signals_to_guard, note
from rlft.types import Task

ABANDON_S = 3.0  # for stored rollouts to reach the disk when a run fails


def gives_turn_rewards(make_env: EnvFn, task: Task) -> bool:
    """Whether the task's environment says that it rewards every turn itself."""
    return bool(getattr(make_env(task), "gives_turn_rewards", False))


def check_needs(config: RunConfig, algorithm: Algorithm, make_env: EnvFn, tasks: Sequence[Task]) -> None:
    """Refuse a run file that lacks what its algorithm needs, or sets what it has no use for. Raises ConfigError, DataError."""
    if "demonstrations" in algorithm.needs and (without := next((task.id for task in tasks if task.answer is None), None)):
        raise DataError(f"algorithm {algorithm.name!r} learns from answers, and task {without} has none; name their field in data.answer")
    values, per_turn = "values" in algorithm.needs, "turn_rewards" in algorithm.needs
    changed = [key for key in CriticConfig.model_fields if getattr(config.critic, key) != getattr(CriticConfig(), key)]
    if changed and not values:
        raise ConfigError(f"critic.{changed[0]} needs an algorithm with a critic, and {algorithm.name!r} has none; remove [critic]")
    if config.guards.mismatch and "old_logprobs" not in algorithm.needs:
        raise ConfigError(f"guards.mismatch needs an algorithm that compares probabilities (old_logprobs), and {algorithm.name!r} does not")
    if config.rollout.drop_no_signal and not algorithm.by_outcome:
        raise ConfigError(
            f"rollout.drop_no_signal drops groups whose members earned the same in all, from which {algorithm.name!r} learns too; remove it"
        )
    env, most = make_env(tasks[0]), config.rollout.max_turns
    if most < (asked := getattr(env, "num_turns", 1)):
        raise ConfigError(f"rollout.max_turns {most}: an episode of {type(env).__name__!r} can need {asked} turns; allow as many")
    if missing := sorted(set(algorithm.tags) - set(getattr(env, "tags", ()))):
        raise ConfigError(
            f"algorithm {algorithm.name!r} trains only turns tagged {missing[0]!r}, and environment {type(env).__name__!r} has no such "
            "turn in its `tags`: take one that does (for 'reflection', env.name = 'reflect_retry')"
        )
    if values and config.critic.model:
        check_model(config.critic.model)
    if per_turn and not config.reward_pool.per_turn and not gives_turn_rewards(make_env, tasks[0]):
        raise ConfigError(
            f"algorithm {algorithm.name!r} needs a reward for every turn: set reward_pool.per_turn = true, "
            "or name an environment that gives them (gives_turn_rewards = True)"
        )


@contextmanager
def ray_session(config: RunConfig, address: str | None, learner: bool = True, rollouts: bool = True, judges: int = 0) -> Iterator[None]:
    """Join the cluster at `address` (or RAY_ADDRESS), or start Ray on this machine and stop it at the end.

    A Ray of our own counts as many CPUs as the roles ask for: the phases of a step take
    turns, so roles may share cores.

    Raises:
        ConfigError: no cluster at that address, or one that wants another token.
        StallError: Ray did not start here.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    note(folder=config.run_dir, steps=config.steps, resumable=learner and rollouts, over=False)
    if address:
        prepare_to_join(address)
    import ray
    from ray.exceptions import AuthenticationError

    options: dict[str, Any] = {"log_to_driver": "RLFT_ACTOR_LOGS" in os.environ, "logging_level": "ERROR"}
    if address:
        try:
            ray.init(address=address, **options)
        except (AuthenticationError, OSError, ValueError) as error:  # without a token it is a ConnectionError
            raise ConfigError(f"cannot join a Ray cluster at {address}: {error}; {TOKEN_HINT}") from error
    else:
        pool = config.reward_pool.num_workers * config.reward_pool.cpus
        learners = config.learner.num_ranks * config.learner.cpus
        engines = (config.rollout.num_workers + judges) * config.rollout.cpus
        cpus = (engines + pool) * rollouts + learners * learner
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 starves actors beside any other busy process
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # actors have environments of their own, and use no such worker
        try:
            ray.init(address="local", num_cpus=math.ceil(cpus), include_dashboard=False, **options)
        except Exception as error:  # Ray has no narrower one for this
            raise StallError(
                f"Ray did not start on this machine, which may be too busy: {str(error).splitlines()[0]}; try again"
            ) from error
    leave_signals_to_guard()
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Slot:
    """CPUs and GPUs of one actor, and the placement group bundle it takes them from."""

    cpus: float
    gpus: float
    group: Any = None
    bundle: int = 0


def spawn(cls: type, slot: Slot, *args: Any, **kwargs: Any) -> Any:
    """Start a plain class as a Ray actor whose threads follow from its CPUs."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    threads = str(max(1, int(slot.cpus)))
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    env_vars = {
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve every other process
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(paths),
        **({} if slot.gpus else {"CUDA_VISIBLE_DEVICES": ""}),  # Ray leaves the devices of a node visible to who asked for none
    }
    strategy = PlacementGroupSchedulingStrategy(slot.group, placement_group_bundle_index=slot.bundle) if slot.group else "DEFAULT"
    options = {"num_cpus": slot.cpus, "num_gpus": slot.gpus, "scheduling_strategy": strategy, "runtime_env": {"env_vars": env_vars}}
    return ray.remote(cls).options(**options).remote(*args, **kwargs)


@dataclass(frozen=True)
class Origin:
    """Where the actors of a run, or of a stage of one, begin."""

    reference: str = ""  # folder or name of the frozen reference; "" = the model
    state: str = ""  # folder with the optimizer's state; "" = a fresh one
    steps_done: int = 0  # of the run
    stage_steps_done: int = 0
    num_groups: int = 0  # numbered so far


def start_learner(
    config: RunConfig,
    algorithm: Algorithm,
    transfer: Transfer | None,
    dump_dir: Path,
    group: Any = None,
    origin: Origin | None = None,
    longest_row: int = 0,
) -> Learner:
    """Start the learner ranks of a policy; `longest_row` is what a row may have in tokens, 0 where nobody knows."""
    origin, critic = origin or Origin(), None
    if "values" in algorithm.needs:
        critic = config.critic.model_copy(update={"model": "" if config.critic.shared else absolute(config.critic.model or config.model)})
    reference = absolute(origin.reference or config.model) if "ref_logprobs" in algorithm.needs else ""
    template = read_template(config.chat_template)
    begin = {"start_step": origin.stage_steps_done, "state": origin.state, "chat_template": template, "longest_row": longest_row}
    ranks = start_ranks(config, LearnerRank, group, reference=reference, critic=critic, dump_dir=str(dump_dir), **begin)
    dtype = dtype_of(config.rollout.dtype, config.rollout.gpus)
    return Learner(ranks, config.learner.timeout_s, transfer, config.rollout.tensor_parallel_size, dtype)


def start_ranks(config: RunConfig, cls: type, group: Any = None, **options: Any) -> list[Any]:
    """Start DeepSpeed ranks of a class, as one gang: all are placed, or none. Returns their handles, rank 0 first."""
    import ray
    from ray.util.client import ray as client

    learner = config.learner
    group = group or learner_bundles(config)
    slots = [Slot(learner.cpus, learner.gpus, group, i) for i in range(learner.num_ranks)]
    if not group.wait(learner.timeout_s):
        asked = f"{learner.num_ranks} x ({learner.cpus:g} CPUs, {learner.gpus:g} GPUs)"
        raise StallError(f"learner: the cluster had no room for {asked} within {learner.timeout_s:.0f} s; it has {_resources()}")
    # A task takes a process of its own, which takes seconds to start: on a single node it is asked here.
    alone = len(ray.nodes()) == 1 and not client.is_connected()
    address = free_address() if alone else ray.get(_on(slots[0], free_address), timeout=learner.timeout_s)
    place = {"world_size": learner.num_ranks, "master_addr": address[0], "master_port": address[1]}
    shared = {**place, "steps": config.steps, "seed": config.seed, **options}
    return [spawn(cls, slot, learner, absolute(config.model), rank=i, **shared) for i, slot in enumerate(slots)]


def learner_bundles(config: RunConfig) -> Any:
    """Room for the learner ranks, one bundle each."""
    from ray.util.placement_group import placement_group

    learner = config.learner
    return placement_group([{"CPU": learner.cpus, **({"GPU": learner.gpus} if learner.gpus else {})}] * learner.num_ranks)


def start_rollouts(
    config: RunConfig,
    renderer: Renderer,
    make_env: EnvFn,
    grader: PackedGrader,
    folder: Path,
    transfer: Transfer | None,
    group: Any = None,
    origin: Origin | None = None,
    needs: frozenset[Need] = frozenset(),
) -> Rollouts:
    """Start the reward workers and the rollout workers that use them; `needs` are the algorithm's."""
    pool, rollout = config.reward_pool, config.rollout
    shutil.rmtree(folder / PARTS, ignore_errors=True)  # of a step that was interrupted
    slot = Slot(pool.cpus, pool.gpus)
    rewards = [spawn(RewardWorker, slot, grader, pool.processes, pool.timeout_s, pool.env) for _ in range(pool.num_workers)]
    slot = Slot(rollout.cpus, rollout.gpus * rollout.tensor_parallel_size)
    judges = {
        model: [spawn(JudgeEngine, slot, absolute(model), judge_rollout(rollout, model, size), config.seed)]
        for model, size in judge_models(grader).items()
    }
    graders = [Grading(worker, rollout.timeout_s) for worker in rewards]
    cpus, gpus = rollout.cpus, rollout.gpus * rollout.tensor_parallel_size
    found = config.model_copy(update={"model": absolute(config.model), "chat_template": absolute(config.chat_template)})
    workers = [
        spawn(RolloutWorker, Slot(cpus, gpus, group, i), found, make_env, graders, put, folder, i, transfer, needs)
        for i in range(rollout.num_workers)
    ]
    asked = {model for scorer in grader.scorers.values() if isinstance(scorer, UsesEngines) for model in scorer.engines}
    offered = {model: actors for model, actors in {**judges, POLICY: workers}.items() if model in asked}
    engines = {model: Completing(actors, rollout.timeout_s) for model, actors in offered.items()}  # a worker that gets none loads no torch
    starting = [reward.start.remote(engines) for reward in rewards] + [judge.warm_up.remote() for (judge,) in judges.values()]
    helpers = [*rewards, *(judge for (judge,) in judges.values())]
    origin = origin or Origin()
    steps = config.steps - origin.stage_steps_done
    numbers = {"steps_done": origin.steps_done, "steps": steps, "first_number": origin.num_groups}
    return Rollouts(workers, config, make_probe(config, renderer), starting, **numbers, helpers=helpers, rewards=rewards)


def judge_models(grader: PackedGrader) -> dict[str, EngineSize]:
    """Models that rewards ask and that are not the policy: each gets an engine of its own, large enough for all who ask it."""
    sizes: dict[str, EngineSize] = {}
    for scorer in grader.scorers.values():
        if not isinstance(scorer, UsesEngines):
            continue
        size = scorer.engine_size if isinstance(scorer, SizesEngines) else EngineSize()
        for model in scorer.engines:
            if model != POLICY:
                sizes[model] = sizes[model].both(size) if model in sizes else size
    return sizes


def judge_rollout(rollout: RolloutConfig, model: str, size: EngineSize) -> RolloutConfig:
    """The options of a judge's engine: its own size, and the precision and devices of a rollout worker's.

    Raises:
        ConfigError: no such model, or one with fewer positions than asked for.
    """
    check_model(model)
    length = context_length(model, size.max_model_len, "the judge's max_model_len")
    return rollout.model_copy(update={"max_model_len": length, "max_num_seqs": size.max_num_seqs, "memory": size.memory})


def absolute(name: str) -> str:
    """A path that actors find from whatever folder the cluster runs them in; a Hub name stays as it is."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def make_probe(config: RunConfig, renderer: Renderer) -> Probe:
    """The probe in the run's tokens."""
    bf16 = "bfloat16" in {dtype_of(config.rollout.dtype, config.rollout.gpus), dtype_of(config.learner.dtype, config.learner.gpus)}
    ids = probe_ids(renderer.tokenizer, config.rollout.max_model_len)
    return Probe(ids, "bfloat16" if bf16 else "float32", merged=config.learner.lora_rank > 0)


def dtype_of(dtype: str, gpus: float) -> str:
    """What "auto" stands for: bfloat16 on GPU, float32 on CPU."""
    return dtype if dtype != "auto" else ("bfloat16" if gpus else "float32")


def shared_bundles(config: RunConfig, transfer: Transfer | None) -> Any:
    """With CUDA IPC, engine i and learner rank i share the GPU of bundle i; else None."""
    from ray.util.placement_group import placement_group

    if transfer != "ipc":
        return None
    if config.rollout.num_workers != config.learner.num_ranks or config.rollout.tensor_parallel_size > 1:
        raise ConfigError("sharing GPUs (fractions of one) needs rollout.num_workers == learner.num_ranks and tensor_parallel_size 1")
    bundle = {"CPU": config.rollout.cpus + config.learner.cpus, "GPU": 1}
    return placement_group([bundle] * config.learner.num_ranks)


@dataclass(frozen=True)
class Crew:
    """Every actor of a run, or of a stage of one."""

    rollouts: Rollouts
    learner: Learner
    group: Any  # the placement group of the learner ranks

    async def abandon(self) -> None:
        """`dismiss` after an error, which is the one to tell: another one on the way is not, and hardly anything is waited for."""
        from ray.exceptions import RayError

        with suppress(RlftError, RayError):
            await self.dismiss(ABANDON_S)

    async def dismiss(self, limit_s: float = STORE_S) -> None:
        """End every actor, when what it stores is on disk, and give its resources back: the next stage starts its own."""
        import ray
        from ray.util.placement_group import remove_placement_group

        try:
            await self.rollouts.close(limit_s)
        finally:
            for actor in (*self.rollouts.workers, *self.rollouts.helpers, *self.learner.ranks):
                ray.kill(actor)
            remove_placement_group(self.group)


def start(
    config: RunConfig, renderer: Renderer, make_env: EnvFn, grader: PackedGrader, algorithm: Algorithm, folder: Path, origin: Origin
) -> Crew:
    """Every actor of an RL run. They come up side by side; the first call to each waits for it."""
    transfer = choose_transfer(config)
    shared = shared_bundles(config, transfer)
    rollouts = start_rollouts(config, renderer, make_env, grader, folder / "rollouts", transfer, shared, origin, algorithm.needs)
    group = shared or learner_bundles(config)
    return Crew(rollouts, start_learner(config, algorithm, transfer, folder, group, origin, config.rollout.max_model_len), group)


def _resources() -> str:
    import ray

    held = ray.cluster_resources()
    return f"{held.get('CPU', 0):g} CPUs and {held.get('GPU', 0):g} GPUs"


def put(value: Any) -> Any:
    """Keep a value in Ray's object store; returns the reference."""
    import ray

    return ray.put(value)


def _on(slot: Slot, fn: Callable[[], Any]) -> Any:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = PlacementGroupSchedulingStrategy(slot.group, placement_group_bundle_index=slot.bundle)
    return ray.remote(fn).options(num_cpus=0, scheduling_strategy=strategy).remote()
