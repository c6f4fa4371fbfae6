"""The three kinds of run: train, supervised fine-tuning, evaluate. What `import rlft` offers and the command line calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlft import report
from rlft.actors.learner import Learner
from rlft.algorithms.base import Algorithm
from rlft.algorithms.sft import sft as sft_algorithm
from rlft.batching import assign
from rlft.config import DataConfig, PreferencesConfig, RunConfig, check_model
from rlft.data import BadRow, load_tasks
from rlft.envs.base import EnvFn
from rlft.errors import ConfigError, DataError
from rlft.evaluation import Evaluation, evaluate_policy
from rlft.launch import judge_models, make_algorithm, make_env_fn, put, ray_session, start, start_learner, start_rollouts
from rlft.loop import learn
from rlft.loop import train as train_loop
from rlft.rewards.compose import PackedGrader, compose, pack
from rlft.rollout.renderer import Renderer, load_renderer
from rlft.rows import Row, demonstration_row, pack_rows
from rlft.stream import TaskStream
from rlft.tracking import RunFolder, Tracker
from rlft.types import GroupRef, Task


@dataclass(frozen=True)
class Parts:
    """What a run is made of, checked before any actor starts."""

    renderer: Renderer
    make_env: EnvFn
    grader: PackedGrader
    tasks: Sequence[Task]
    eval_tasks: Sequence[Task]
    bad_rows: Sequence[BadRow]


def train(
    config: RunConfig,
    *,
    reward: Any = None,
    env: Callable[[Task], Any] | None = None,
    algorithm: Algorithm | None = None,
    tasks: Sequence[Task] | None = None,
    eval_tasks: Sequence[Task] | None = None,
    address: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run reinforcement learning to its end and return the summary that lies in the run folder.

    Args:
        config: a run file, from `rlft.load`.
        reward, env, algorithm, tasks, eval_tasks: objects to use instead of what the run file names.
        address: a Ray cluster to join; default RAY_ADDRESS, else Ray on this machine.
        overwrite: replace the folder of an earlier run.

    Raises:
        ConfigError, DataError: before anything starts. RewardError, PublishError,
        NonFiniteError, StallError: the run stopped, and why.
    """
    if config.rollout.temperature <= 0:
        raise ConfigError(f"rollout.temperature: training needs a temperature above 0, got {config.rollout.temperature}")
    made = make_algorithm(config, algorithm)
    parts = prepare(config, reward, env, tasks, eval_tasks, training=True)
    folder = RunFolder.create(config.run_dir, config, overwrite)
    with Tracker(folder, config) as tracker:
        tracker.quarantine(parts.bad_rows)
        with ray_session(config, address, judges=len(judge_models(parts.grader))):
            return asyncio.run(_train(config, parts, made, folder, tracker))


def sft(config: RunConfig, *, tasks: Sequence[Task] | None = None, address: str | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Supervised fine-tuning on tasks whose answer is the text to learn. Same learner, same run folder."""
    _check_sft(config)
    check_model(config.model)
    renderer = load_renderer(config.model, config.chat_template)
    loaded, bad_rows = _load("data", config.data, tasks)
    _check_answers(loaded)
    folder = RunFolder.create(config.run_dir, config, overwrite)
    with Tracker(folder, config) as tracker:
        tracker.quarantine(bad_rows)
        with ray_session(config, address, rollouts=False):
            return asyncio.run(_sft(config, loaded, renderer, folder, tracker))


def evaluate(
    config: RunConfig,
    *,
    reward: Any = None,
    env: Callable[[Task], Any] | None = None,
    eval_tasks: Sequence[Task] | None = None,
    address: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate `config.model` on the tasks of `[eval.data]` and return the summary."""
    if not config.eval.data.source and eval_tasks is None:
        raise ConfigError("eval.data.source is not set: name the tasks to evaluate on")
    parts = prepare(config, reward, env, None, eval_tasks, training=False)
    folder = RunFolder.create(config.run_dir, config, overwrite)
    with Tracker(folder, config) as tracker:
        tracker.quarantine(parts.bad_rows)
        with ray_session(config, address, learner=False, judges=len(judge_models(parts.grader))):
            return asyncio.run(_evaluate(config, parts, folder, tracker))


def prepare(
    config: RunConfig, reward: Any, env: Any, tasks: Sequence[Task] | None, eval_tasks: Sequence[Task] | None, training: bool
) -> Parts:
    """Load and check everything that can be checked without an actor."""
    if config.preferences != PreferencesConfig():
        raise ConfigError("[preferences] applies to `rlft train-rm` only; remove it")
    check_model(config.model)
    make_env = make_env_fn(config, env)
    terms = compose(config.reward if reward is None else reward)
    if not terms and env is None and config.env.get("name") == "single_turn":
        raise ConfigError("[reward] is empty and single_turn gives no rewards of its own: every outcome would be 0; name a reward")
    renderer = load_renderer(config.model, config.chat_template)
    train_tasks, bad = _load("data", config.data, tasks) if training else ([], [])
    held_out, bad_eval = _load("eval.data", config.eval.data, eval_tasks) if config.eval.data.source or eval_tasks is not None else ([], [])
    fitting, too_long = fit_context(train_tasks, renderer, config)
    fitting_eval, too_long_eval = fit_context(held_out, renderer, config)
    return Parts(renderer, make_env, pack(terms), fitting, fitting_eval, [*bad, *bad_eval, *too_long, *too_long_eval])


def fit_context(tasks: Sequence[Task], renderer: Renderer, config: RunConfig) -> tuple[list[Task], list[BadRow]]:
    """Set aside tasks whose prompt leaves no room for an answer in the context.

    Raises:
        DataError: none is left.
    """
    limit = config.rollout.max_model_len
    fitting, bad = [], []
    for number, task in enumerate(tasks, start=1):
        length = max(len(renderer.render(way.messages)) for way in (task, *task.variants))
        if length < limit:
            fitting.append(task)
        else:
            bad.append(BadRow(f"task {task.id}", number, "prompt", f"{length} tokens leave no room in rollout.max_model_len {limit}"))
    if bad and not fitting:
        raise DataError(f"every prompt is longer than the context: {bad[0]}; raise rollout.max_model_len or shorten the prompts")
    return fitting, bad


async def _train(config: RunConfig, parts: Parts, algorithm: Algorithm, folder: RunFolder, tracker: Tracker) -> dict[str, Any]:
    rollouts, learner = start(config, parts.renderer, parts.make_env, parts.grader, algorithm, folder.path.resolve())
    await asyncio.gather(rollouts.warm_up(), learner.ready())
    evaluations: dict[int, Evaluation] = {}
    stream = TaskStream(parts.tasks, config.seed, config.data)

    async def measure(step: int) -> None:
        if parts.eval_tasks:
            evaluations[step] = await evaluate_policy(rollouts, parts.eval_tasks, config.eval, config.reward_pool.max_failed)
            tracker.evaluation(step, evaluations[step].summary)

    async def after_step(step: int) -> None:
        last = step == config.steps
        if last or _due(step, config.eval.every):
            await measure(step)
        if last or _due(step, config.tracking.save_every):
            await _save(learner, folder, step, stream.position)

    try:
        await measure(0)
        await train_loop(stream, rollouts, learner, algorithm, tracker, config.steps, config.reward_pool.max_failed, after_step)
    finally:
        await rollouts.close()
    tracker.finish(report.summarize_run(folder, evaluations, config.steps))
    report.show_run(tracker.console, folder, evaluations, config.steps)
    return report.read_summary(folder)


async def _sft(config: RunConfig, tasks: Sequence[Task], renderer: Renderer, folder: RunFolder, tracker: Tracker) -> dict[str, Any]:
    algorithm = sft_algorithm()
    learner = start_learner(config, algorithm, None, folder.path.resolve())
    stream = TaskStream(tasks, config.seed, config.data)

    async def after_step(step: int) -> None:
        if step == config.steps or _due(step, config.tracking.save_every):
            await _save(learner, folder, step, stream.position)

    await learn(_demonstrations(stream, renderer, config), learner, algorithm, tracker, config.steps, after_step)
    tracker.finish(report.summarize_run(folder, {}, config.steps))
    report.show_run(tracker.console, folder, {}, config.steps)
    return report.read_summary(folder)


async def _evaluate(config: RunConfig, parts: Parts, folder: RunFolder, tracker: Tracker) -> dict[str, Any]:
    rollouts = start_rollouts(config, parts.renderer, parts.make_env, parts.grader, folder.rollouts.resolve(), None)
    await rollouts.warm_up()
    evaluation = await evaluate_policy(rollouts, parts.eval_tasks, config.eval, config.reward_pool.max_failed)
    tracker.evaluation(0, evaluation.summary)
    tracker.finish({f"eval_{name}": value for name, value in evaluation.summary.items()})
    report.show_samples(tracker.console, {0: evaluation})
    return report.read_summary(folder)


async def _save(learner: Learner, folder: RunFolder, step: int, position: int) -> None:
    """A checkpoint, and beside its weights how far the run was: steps done and tasks drawn."""
    target = folder.checkpoints.resolve() / f"step-{step:06d}"
    await learner.save(target)
    (target / "progress.json").write_text(json.dumps({"step": step, "position": position}))


def _demonstrations(stream: TaskStream, renderer: Renderer, config: RunConfig) -> Iterator[list[GroupRef]]:
    """Endless batches of `tasks_per_step` demonstrations, one payload per learner rank."""
    while True:
        rows = [
            demonstration_row(renderer.render(t.messages), renderer.target(str(t.answer)), t.id) for t in stream.take(config.tasks_per_step)
        ]
        shares = assign([len(row) for row in rows], config.learner.num_ranks)
        yield [_payload([rows[i] for i in share], f"share {n}") for n, share in enumerate(shares) if share]


def _payload(rows: list[Row], name: str) -> GroupRef:
    return GroupRef(name, (), put(pack_rows(rows)), sum(map(len, rows)))


def _load(where: str, data: DataConfig, tasks: Sequence[Task] | None) -> tuple[Sequence[Task], Sequence[BadRow]]:
    if tasks is not None:
        if not tasks:
            raise DataError(f"{where}: an empty list of tasks; give at least one")
        return tasks, ()
    if not data.source:
        raise DataError(f"{where}.source is not set; give a .jsonl, .json or .parquet file, a Hub name, or 'module:function'")
    try:
        return load_tasks(data)
    except DataError as error:
        raise DataError(f"[{where}] {error}") from error


def _check_sft(config: RunConfig) -> None:
    defaults = RunConfig(model=config.model)
    for section in ("preferences", "env", "reward", "reward_pool", "algorithm", "rollout", "eval"):
        if getattr(config, section) != getattr(defaults, section):
            raise ConfigError(f"[{section}] does not apply to supervised fine-tuning; remove it, or use `rlft train` or `rlft eval`")


def _check_answers(tasks: Sequence[Task]) -> None:
    for task in tasks:
        if task.answer is None:
            raise DataError(f"task {task.id} has no answer, the text to learn; name its field in data.answer")


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
