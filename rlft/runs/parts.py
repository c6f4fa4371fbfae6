"""What a run is made of besides its actors, loaded and checked before any of them starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlft.config import DataConfig, RunConfig
from rlft.data.sources import UNSET, BadRow, load_tasks, shaped
from rlft.envs.base import EnvFn
from rlft.errors import ConfigError, DataError
from rlft.hub import check_model
from rlft.report.progress import shown
from rlft.rewards.compose import PackedGrader, pack
from rlft.rollout.renderer import Renderer, load_renderer
from rlft.rollout.templates import check_template
from rlft.runs.applies import check_evaluates
from rlft.runs.first import make_env_fn, make_terms
from rlft.runs.fit import fit_context, fit_demonstrations, offered
from rlft.runs.golds import gradable
from rlft.runs.start import judge_models, judge_rollout
from rlft.types import Task


@dataclass(frozen=True)
class Parts:
    """What a run is made of, checked before any actor starts."""

    renderer: Renderer
    make_env: EnvFn
    grader: PackedGrader
    tasks: Sequence[Task]
    eval_tasks: Sequence[Task]
    bad_rows: Sequence[BadRow]
    notes: Sequence[str] = ()  # what a person should know before the run


def prepare(
    config: RunConfig,
    reward: Any,
    env: Any,
    tasks: Sequence[Task] | None,
    eval_tasks: Sequence[Task] | None,
    training: bool,
) -> Parts:
    """Load and check everything that can be checked without an actor."""
    evaluates = bool(config.eval.data.source) or eval_tasks is not None
    check_evaluates(config, evaluates)
    check_model(config.model)
    make_env = make_env_fn(config, env)
    terms, pool = make_terms(config, reward, env), config.reward_pool
    grader = pack(terms)
    for judge, size in judge_models(grader).items():
        judge_rollout(config.rollout, judge, size)  # refuses what its engine would, but at once
    renderer = load_renderer(config.model, config.chat_template)
    train_tasks, bad = load_source("data", config.data, tasks) if training else ([], [])
    held_out, bad_eval = load_source("eval.data", config.eval.data, eval_tasks) if evaluates else ([], [])
    tools, roles = offered(make_env, [*train_tasks[:1], *held_out[:1]][0])
    try:
        check_template(renderer, tools, roles if tools or config.rollout.max_turns > 1 else ())
    except ConfigError as error:
        raise ConfigError(f"model {config.model!r}: {error}") from error
    fitted, fitted_eval = (fit_context(some, renderer, config, tools) for some in (train_tasks, held_out))
    found = gradable({"data": fitted.tasks, "eval.data": fitted_eval.tasks}, terms, pool.max_failed, pool.timeout_s)
    graded, held = found["data"], found["eval.data"]
    bad_rows = [*bad, *bad_eval, *fitted.bad_rows, *fitted_eval.bad_rows, *graded.bad_rows, *held.bad_rows]
    notes = [note for note in (fitted.note, fitted_eval.note) if note]
    return Parts(renderer, make_env, grader, graded.tasks, held.tasks, bad_rows, notes)


def taught(parts: Parts, answers: bool) -> Parts:
    """The parts of a run that teaches given answers: `answers` of its tasks, which are set aside where the template cannot render them.

    Raises:
        ConfigError, DataError: the chat template renders no answer as its prompts open it.
    """
    check_template(parts.renderer, demonstrations=True)
    if not answers:
        return parts
    fitted = fit_demonstrations(parts.tasks, parts.renderer)
    return replace(parts, tasks=fitted.tasks, bad_rows=[*parts.bad_rows, *fitted.bad_rows])


def load_source(where: str, data: DataConfig, tasks: Sequence[Task] | None) -> tuple[Sequence[Task], Sequence[BadRow]]:
    if tasks is not None:
        if not tasks:
            raise DataError(f"{where}: an empty list of tasks; give at least one")
        if isinstance(tasks, str):
            raise DataError(f"{where}: expected a list of rlft.Task, got {tasks!r}; a file is named in {where}.source of the run file")
        for wrong in (task for task in tasks if not isinstance(task, Task)):
            made = "rlft.Task(id, ({'role': 'user', 'content': prompt},), answer)"
            raise DataError(f"{where}: expected a list of rlft.Task, got one with {type(wrong).__name__} {str(wrong)[:60]!r}; make {made}")
        return [shaped(task) for task in tasks], ()
    if not data.source:
        raise DataError(UNSET.replace("data", where, 1))
    try:
        return load_tasks(data, lambda rows: shown(rows, f"[{where}] rows read"))
    except DataError as error:
        raise DataError(f"[{where}] {error}") from error
