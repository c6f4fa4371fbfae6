"""Stages: one after another, each with its own actors, from the weights that the one before ended with.

A run without `[[stages]]` is a run of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.algorithms.base import Algorithm, Control
from rlft.algorithms.controllers import temperature_toward
from rlft.config import RolloutConfig, RunConfig, StageConfig, UntilConfig
from rlft.data.disk import write_text
from rlft.data.ledger import Ledger, Right
from rlft.data.stream import TaskStream
from rlft.errors import ConfigError
from rlft.loop import Plan, Progress, train
from rlft.report import summary
from rlft.report.evaluation import Evaluation
from rlft.report.folder import RunFolder
from rlft.report.tracking import Tracker
from rlft.runs import checkpoints
from rlft.runs.beginning import bring_up
from rlft.runs.check import first_look
from rlft.runs.checkpoints import LEDGER, STATE, Saved
from rlft.runs.evaluation import evaluate_policy, store_results
from rlft.runs.first import check_sampling, make_algorithm
from rlft.runs.parts import Parts, prepare, taught
from rlft.runs.start import Crew, Origin, check_needs, gives_turn_rewards, start
from rlft.runs.stopping import note
from rlft.types import Task


@dataclass(frozen=True)
class Stage:
    """One stage, checked: its run file and what that names."""

    index: int
    options: StageConfig
    config: RunConfig  # of the stage
    algorithm: Algorithm
    parts: Parts

    @property
    def right(self) -> Right:
        """What the ledger counts. An environment's turn has no part but its reward: with a metric the trajectory's parts are judged."""
        metric = self.config.eval.metric
        paid = not metric and gives_turn_rewards(self.parts.make_env, self.parts.tasks[0])
        return Right(metric, self.config.eval.threshold, self.config.reward_pool.per_turn or paid)


@dataclass
class Until:
    """A stage's stopping rule, and how many records in a row have met it."""

    rule: UntilConfig | None
    met: int = 0

    def look(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the stage is over, with one more record; one without the metric, or where it is not finite, counts for nothing."""
        value = metrics.get(self.rule.metric) if self.rule else None
        if self.rule is None or value is None:
            return False
        above, below = self.rule.above, self.rule.below
        holds = (above is not None and value > above) or (below is not None and value < below)
        self.met = self.met + 1 if holds else 0
        return self.met >= self.rule.for_steps


def prepare_stages(
    config: RunConfig,
    algorithm: Algorithm | None,
    reward: Any,
    env: Callable[[Task], Any] | None,
    tasks: Sequence[Task] | None,
    eval_tasks: Sequence[Task] | None,
) -> list[Stage]:
    """Load and check every stage before anything starts. Objects that are handed in serve all stages. Raises ConfigError, DataError."""
    stages: list[Stage] = []
    for index, options in enumerate(config.stages or [StageConfig(steps=config.steps)]):
        own = config.of_stage(index) if config.stages else config
        try:
            made = make_algorithm(own, algorithm)
            check_sampling(own.rollout, made)
            same = stages and _loads_the_same(stages[-1].config, own)
            parts = stages[-1].parts if same else prepare(own, reward, env, tasks, eval_tasks, training=True)
            check_needs(own, made, parts.make_env, parts.tasks)
            if "demonstrations" in made.needs or options.first_attempts:
                parts = taught(parts, answers="demonstrations" in made.needs)
            if options.reference == "stage" and "ref_logprobs" not in made.needs:
                raise ConfigError(f"reference = 'stage' has no effect: algorithm {made.name!r} needs no reference")
        except ConfigError as error:
            raise ConfigError(f"stages[{index}]: {error}") if config.stages else error from None
        stages.append(Stage(index, options, own, made, parts))
    check_ids(stages)
    return stages


def check_ids(stages: Sequence[Stage]) -> None:
    """The ledger and first attempts tell tasks apart by id alone, over all stages. Raises ConfigError."""
    known: dict[str, Task] = {}
    for stage in stages:
        for task in stage.parts.tasks:
            if known.setdefault(task.id, task).messages != task.messages:
                raise ConfigError(
                    f"stages[{stage.index}]: its task {task.id!r} is not the one of that id in an earlier stage; "
                    "name the field that holds their own ids in data.id"
                )


def is_over(stage: Stage, saved: Saved) -> bool:
    return saved.stopped or saved.stage_step >= stage.config.steps


async def run_stages(config: RunConfig, stages: Sequence[Stage], folder: RunFolder, tracker: Tracker, saved: Saved) -> dict[str, Any]:
    """Every stage that is left after `saved`. Returns the run's summary."""
    run = _Run(config, stages, folder, tracker, _ledger_of(folder, saved), {})
    while True:
        stage = stages[saved.stage]
        if not is_over(stage, saved):
            saved = await run.stage(stage, saved)
        if stage.index == len(stages) - 1:
            break
        saved = Saved(saved.step, stage.index + 1, num_groups=saved.num_groups, weights=saved.name, rows=saved.rows)
    note(over=True)
    tracker.finish(summary.summarize_run(folder, saved.step))
    summary.show_run(tracker.console, folder, run.evaluations)
    return summary.read_summary(folder)


@dataclass(frozen=True)
class _Run:
    """What stays over the stages."""

    config: RunConfig
    stages: Sequence[Stage]
    folder: RunFolder
    tracker: Tracker
    ledger: Ledger
    evaluations: dict[int, Evaluation]

    async def stage(self, stage: Stage, saved: Saved) -> Saved:
        """Start a stage's actors, train to its end or stopping rule, and say where it ended."""
        if self.config.stages:
            self.tracker.begin_stage(stage.index, stage.options.name, stage.config.guards)
        if saved.stage_step and not (self.folder.checkpoints / saved.name / STATE).is_dir():
            self.tracker.warn(f"{saved.name} holds no optimizer state (tracking.save_state): the optimizer, and a critic, start anew")
        with self.tracker.phase("placing the actors"):
            crew = start_crew(self.config, stage, saved, self.folder)
        try:
            trying = [self._try_reward(stage)] if saved.step == 0 else []
            told, *_ = await bring_up(self.tracker, {"learner": crew.learner.ready(), **crew.rollouts.starting()}, trying)
            self.tracker.learner(told)
            attempts = await self._first_attempts(stage, saved, crew)
            if saved.step == 0 or self._measures_anew(stage, saved):
                await self._measure(stage, crew, saved.step)
            ended = await self._train(stage, saved, crew, attempts)
        except BaseException:
            await crew.abandon()
            raise
        await crew.dismiss()
        return ended

    async def _train(self, stage: Stage, saved: Saved, crew: Crew, attempts: Mapping[str, str]) -> Saved:
        config, algorithm = stage.config, stage.algorithm
        at = {"position": saved.position, "order": saved.order}
        stream = TaskStream(
            stage.parts.tasks, config.seed + stage.index, config.data, self.ledger, attempts, stage.options.first_attempts, at
        )
        until, ended = Until(stage.options.until, saved.met), saved

        async def after_step(now: Progress, metrics: Mapping[str, Any]) -> bool:
            nonlocal ended
            stopped = until.look(metrics)
            last = stopped or now.stage_step == config.steps
            if last or _due(now.step, config.eval.every):
                stopped = until.look(await self._measure(stage, crew, now.step)) or stopped
                last = last or stopped
            if last or _due(now.step, config.tracking.save_every):
                ended = Saved(
                    step=now.step,
                    stage=stage.index,
                    stage_step=now.stage_step,
                    **stream.state(now.num_drawn),
                    num_groups=saved.num_groups + now.num_drawn,
                    temperature=now.temperature,
                    controls=dict(now.controls),
                    met=until.met,
                    stopped=stopped,
                    weights=saved.weights,
                    rows=len(self.folder.rows()),
                )
                with self.tracker.phase(f"checkpoint {now.step}", tell=False):
                    await checkpoints.save(crew.learner, self.folder.checkpoints.resolve(), ended, self.ledger, config.tracking.save_state)
                self.ledger.save(self.folder.ledger)
                self.tracker.saved(now.step, self.folder.checkpoints / ended.name)
            return last

        temperature = moving_temperature(config.rollout)
        plan = Plan(config.steps, config.reward_pool.max_failed, self.ledger, stage.right, algorithm.controls, temperature)
        controls = {name: saved.controls.get(name, control.start) for name, control in algorithm.controls.items()}
        begin = config.rollout.temperature if saved.temperature is None else saved.temperature
        start = Progress(saved.step, saved.stage_step, 0, begin, controls)
        await train(stream, crew.rollouts, crew.learner, algorithm, self.tracker, plan, start, after_step)
        return ended

    async def _measure(self, stage: Stage, crew: Crew, step: int) -> dict[str, float]:
        """Evaluate and record. Returns the figures as they are recorded; none without held-out tasks."""
        if not stage.parts.eval_tasks:
            return {}
        config, tasks = stage.config, stage.parts.eval_tasks
        with self.tracker.phase(f"evaluation {'before training' if step == 0 else f'after step {step}'}", tell=step == 0) as phase:
            found = await evaluate_policy(crew.rollouts, tasks, config.eval, config.reward_pool.max_failed, phase)
        store_results(self.folder.evaluations, step, found, config.eval)
        self.evaluations[step] = found
        self.tracker.evaluation(step, found.summary, found.sampled)
        return {f"eval/{name}": value for name, value in found.summary.items()}

    async def _try_reward(self, stage: Stage) -> None:
        """Say what the reward pays for a few right and wrong answers."""
        parts, pool = stage.parts, stage.config.reward_pool
        if parts.grader.rules and (told := await first_look(parts.grader, parts.tasks, pool.timeout_s, stage.config.seed, pool.env)):
            self.tracker.say(told)

    def _measures_anew(self, stage: Stage, saved: Saved) -> bool:
        """Whether an evaluation at the stage's beginning tells more than the one that the stage before ended with."""
        before = self.stages[stage.index - 1].config
        return saved.stage_step == 0 and _yardstick(before) != _yardstick(stage.config)

    async def _first_attempts(self, stage: Stage, saved: Saved, crew: Crew) -> Mapping[str, str]:
        """What the run's model says first to every training task, by task id; asked before the first step and then kept."""
        wanted = [task for other in self.stages if other.options.first_attempts for task in other.parts.tasks]
        file = self.folder.first_attempts
        if wanted and not file.exists():
            if saved.step:
                raise ConfigError(f"{file} is gone, and only the run's model can give first attempts; start the run anew")
            tasks = list({task.id: task for task in wanted}.values())
            with self.tracker.phase("first attempts"):
                sampled = await crew.rollouts.evaluate(tasks, stage.config.rollout, 1, "first")
            said = [{"id": s.task.id, "text": s.said[0][0]} for s in sampled if s.said and s.said[0]]
            write_text(file, "".join(json.dumps(line) + "\n" for line in said))
        return read_first_attempts(file) if wanted else {}


def start_crew(config: RunConfig, stage: Stage, saved: Saved, folder: RunFolder) -> Crew:
    """The actors of a stage, from where it was saved: with the weights that it began with, or those of its checkpoint.

    Adapters lie in the optimizer's state, over the weights that the stage began with.
    """
    saves = folder.checkpoints.resolve()
    began_with = str(saves / saved.weights) if saved.weights else config.model
    state = saves / saved.name / STATE
    resumed = saved.stage_step > 0
    has_state = resumed and state.is_dir()
    model = str(saves / saved.name) if resumed and not (has_state and stage.config.learner.lora_rank) else began_with
    reference = began_with if stage.options.reference == "stage" else config.model
    origin = Origin(reference, str(state) if has_state else "", saved.step, saved.stage_step, saved.num_groups)
    parts, own = stage.parts, stage.config.model_copy(update={"model": model})
    return start(own, parts.renderer, parts.make_env, parts.grader, stage.algorithm, folder.path.resolve(), origin)


def moving_temperature(config: RolloutConfig) -> Control | None:
    """What moves the sampling temperature; None where it stays."""
    target = config.entropy_target
    if target is None:
        return None
    limits = (config.entropy_gain, config.min_temperature, config.max_temperature)

    def toward(temperature: float, metrics: Mapping[str, float], done: int) -> float:
        return temperature_toward(temperature, metrics.get("policy/entropy"), target, *limits)

    return Control(config.temperature, toward)


def read_first_attempts(file: Path) -> dict[str, str]:
    """First attempts by task id."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line["id"]: line["text"] for line in lines}


def _ledger_of(folder: RunFolder, saved: Saved) -> Ledger:
    return Ledger.load(folder.checkpoints / saved.name / LEDGER) if saved.step else Ledger()


def _yardstick(config: RunConfig) -> tuple[Any, ...]:
    """What the figures of an evaluation depend on, besides the policy."""
    held_out = config.eval.model_copy(update={"every": 0})
    return held_out, config.env, config.reward, config.reward_pool.per_turn, config.rollout.max_turns, config.rollout.max_model_len


def _loads_the_same(before: RunConfig, now: RunConfig) -> bool:
    def relevant(config: RunConfig) -> tuple[Any, ...]:
        return config.env, config.reward, config.data, config.eval.data, config.rollout.max_model_len

    return relevant(before) == relevant(now)


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
