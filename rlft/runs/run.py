"""The three kinds of run: train, supervised fine-tuning, evaluate. What `import rlft` offers and the command line calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlft.actors.learner import Learner
from rlft.algorithms.base import Algorithm
from rlft.algorithms.sft import sft as sft_algorithm
from rlft.config import RunConfig
from rlft.data.disk import write_text
from rlft.data.stream import TaskStream
from rlft.errors import ConfigError
from rlft.hub import check_model
from rlft.learner.batching import assign
from rlft.learner.rows import Row, demonstration_row, pack_rows
from rlft.loop import learn
from rlft.report import summary
from rlft.report.callbacks import Callback
from rlft.report.folder import RunFolder
from rlft.report.screen import Screen
from rlft.report.tracking import Tracker
from rlft.rollout.renderer import Renderer, load_renderer
from rlft.rollout.templates import check_template
from rlft.runs.beginning import READING, bring_up, shown_ray
from rlft.runs.checkpoints import PROGRESS, Saved, last, writing
from rlft.runs.defaults import with_rates
from rlft.runs.evaluation import evaluate_policy, store_results
from rlft.runs.first import check_applies, check_run_dir, check_wishes
from rlft.runs.fit import answer_of, fit_demonstrations
from rlft.runs.limits import with_context
from rlft.runs.parts import Parts, load_source, prepare
from rlft.runs.preflight import check_tokenizer, look_ahead, num_saves, tell
from rlft.runs.stages import Stage, is_over, prepare_stages, run_stages
from rlft.runs.start import judge_models, put, start_learner, start_rollouts
from rlft.runs.stopping import note
from rlft.types import GroupRef, Task


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
    resume: bool = False,
    screen: Screen | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Run reinforcement learning to its end and return the summary that lies in the run folder.

    Args:
        config: a run file, from `rlft.load`.
        reward, env, algorithm, tasks, eval_tasks: objects to use instead of what the run file names.
        address: a Ray cluster to join; default RAY_ADDRESS, else Ray on this machine.
        overwrite: replace the folder of an earlier run.
        resume: go on from its last complete checkpoint instead.
        screen: shows the run; default a new one.
        callbacks: what else is to hear of steps, evaluations, checkpoints and alarms.

    Raises:
        ConfigError, DataError: before anything starts. RewardError, PublishError,
        NonFiniteError, StallError: the run stopped, and why.
    """
    check_wishes(overwrite, resume)
    check_applies(config, "train")
    check_run_dir(config.run_dir)
    screen = screen or Screen()
    with screen.phase(READING):
        config = with_rates(with_context(config), "train")
        stages = prepare_stages(config, algorithm, reward, env, tasks, eval_tasks)
        saves = num_saves([stage.config for stage in stages])
        told = look_ahead(config, stages[0].parts.renderer, saves, _critic(stages), config.tracking.save_state)
    folder = RunFolder.resume(config.run_dir, config) if resume else RunFolder.create(config.run_dir, config, overwrite)
    saved = _begin_again(folder, stages) if resume else Saved()
    with Tracker(folder, config, screen=screen, callbacks=callbacks) as tracker:
        tracker.quarantine(list(dict.fromkeys(bad for stage in stages for bad in stage.parts.bad_rows)))
        tell(tracker, list(dict.fromkeys([*told, *(note for stage in stages for note in stage.parts.notes)])))
        if resume:
            tracker.replay(saved.stage)
        largest = max(stages, key=lambda stage: sum(_cpus(stage))).config
        with shown_ray(screen, largest, address, judges=max(len(judge_models(stage.parts.grader)) for stage in stages)):
            return asyncio.run(run_stages(config, stages, folder, tracker, saved))


def _critic(stages: Sequence[Stage]) -> str:
    """The model of values that a checkpoint keeps the state of; "" where it has none of its own."""
    own = [stage.config for stage in stages if "values" in stage.algorithm.needs and not stage.config.critic.shared]
    return own[0].critic.model or own[0].model if own else ""


def _begin_again(folder: RunFolder, stages: Sequence[Stage]) -> Saved:
    """Where an earlier run is to go on. Raises ConfigError for one that has ended."""
    saved = last(folder.checkpoints) or Saved()
    ended = folder.summary.exists() and not summary.read_summary(folder).get("running")
    if ended and saved.stage == len(stages) - 1 and is_over(stages[-1], saved):
        raise ConfigError(f"the run in {str(folder.path)!r} ended at step {saved.step}; raise steps to go on, or choose another run_dir")
    folder.cut(saved.rows, saved.step)
    return saved


def _cpus(stage: Stage) -> tuple[float, float, float]:
    """What its actors ask for, as `ray_session` counts it."""
    pool, rollout, learner = stage.config.reward_pool, stage.config.rollout, stage.config.learner
    return pool.num_workers * pool.cpus, rollout.num_workers * rollout.cpus, learner.num_ranks * learner.cpus


def sft(
    config: RunConfig,
    *,
    tasks: Sequence[Task] | None = None,
    address: str | None = None,
    overwrite: bool = False,
    screen: Screen | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Supervised fine-tuning on tasks whose answer is the text to learn. Same learner, same run folder."""
    config = with_rates(config, "sft")
    check_applies(config, "sft")
    check_run_dir(config.run_dir)
    check_model(config.model)
    screen = screen or Screen()
    with screen.phase(READING):
        renderer = load_renderer(config.model, config.chat_template)
        loaded, bad_rows = load_source("data", config.data, tasks)
        try:
            check_template(renderer, demonstrations=True)
        except ConfigError as error:
            raise ConfigError(f"model {config.model!r}: {error}") from error
        fitted = fit_demonstrations(loaded, renderer)
        told = look_ahead(config, renderer, num_saves([config]))
    folder = RunFolder.create(config.run_dir, config, overwrite)
    with Tracker(folder, config, screen=screen, callbacks=callbacks) as tracker:
        tracker.quarantine([*bad_rows, *fitted.bad_rows])
        tell(tracker, told)
        with shown_ray(screen, config, address, rollouts=False):
            return asyncio.run(_sft(config, fitted.tasks, renderer, folder, tracker))


def evaluate(
    config: RunConfig,
    *,
    reward: Any = None,
    env: Callable[[Task], Any] | None = None,
    eval_tasks: Sequence[Task] | None = None,
    address: str | None = None,
    overwrite: bool = False,
    screen: Screen | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Evaluate `config.model` on the tasks of `[eval.data]` and return the summary."""
    check_applies(config, "eval", eval_tasks is not None)
    check_run_dir(config.run_dir)
    screen = screen or Screen()
    with screen.phase(READING):
        config = with_context(config)
        parts = prepare(config, reward, env, None, eval_tasks, training=False)
        told = check_tokenizer(config.model, parts.renderer)
    folder = RunFolder.create(config.run_dir, config, overwrite)
    with Tracker(folder, config, screen=screen, callbacks=callbacks) as tracker:
        tracker.quarantine(parts.bad_rows)
        tell(tracker, [*told, *parts.notes])
        with shown_ray(screen, config, address, learner=False, judges=len(judge_models(parts.grader))):
            return asyncio.run(_evaluate(config, parts, folder, tracker))


async def _sft(config: RunConfig, tasks: Sequence[Task], renderer: Renderer, folder: RunFolder, tracker: Tracker) -> dict[str, Any]:
    algorithm = sft_algorithm()
    with tracker.phase("placing the actors"):
        learner = start_learner(config, algorithm, None, folder.path.resolve())
    tracker.learner(*await bring_up(tracker, {"learner": learner.ready()}))
    stream = TaskStream(tasks, config.seed, config.data)

    async def after_step(step: int) -> None:
        if step == config.steps or _due(step, config.tracking.save_every):
            with tracker.phase(f"checkpoint {step}", tell=False):
                await _save(learner, folder, step, stream.position)
            tracker.saved(step, folder.checkpoints / f"step-{step:06d}")

    await learn(_demonstrations(stream, renderer, config), learner, algorithm, tracker, config.steps, after_step)
    note(over=True)
    tracker.finish(summary.summarize_run(folder, config.steps))
    summary.show_run(tracker.console, folder, {})
    return summary.read_summary(folder)


async def _evaluate(config: RunConfig, parts: Parts, folder: RunFolder, tracker: Tracker) -> dict[str, Any]:
    with tracker.phase("placing the actors"):
        rollouts = start_rollouts(config, parts.renderer, parts.make_env, parts.grader, folder.rollouts.resolve(), None)
    await bring_up(tracker, rollouts.starting())
    with tracker.phase("evaluation") as phase:
        evaluation = await evaluate_policy(rollouts, parts.eval_tasks, config.eval, config.reward_pool.max_failed, phase)
    store_results(folder.evaluations, 0, evaluation, config.eval)
    tracker.measured(0, evaluation.summary, evaluation.sampled)
    tracker.finish({f"eval_{name}": value for name, value in evaluation.summary.items()})
    note(over=True)
    summary.show_evaluation(tracker.console, folder, config.model, evaluation)
    return summary.read_summary(folder)


async def _save(learner: Learner, folder: RunFolder, step: int, position: int) -> None:
    """A checkpoint, and beside its weights how far the run was: steps done and tasks drawn."""
    target = folder.checkpoints.resolve() / f"step-{step:06d}"
    with writing(target):
        await learner.save(target)
        write_text(target / PROGRESS, json.dumps({"step": step, "position": position}))


def _demonstrations(stream: TaskStream, renderer: Renderer, config: RunConfig) -> Iterator[list[GroupRef]]:
    """Endless batches of `tasks_per_step` demonstrations, one payload per learner rank."""
    while True:
        tasks = stream.take(config.tasks_per_step)
        rows = [demonstration_row(*renderer.demonstrate(answer_of(task), task.messages), task.id) for task in tasks]
        shares = assign([len(row) for row in rows], config.learner.num_ranks)
        yield [_payload([rows[i] for i in share], f"share {n}") for n, share in enumerate(shares) if share]


def _payload(rows: list[Row], name: str) -> GroupRef:
    return GroupRef(name, (), put(pack_rows(rows)), sum(map(len, rows)))


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
