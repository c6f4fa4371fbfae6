"""What a run is made of besides its actors, loaded and checked before any of them starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlft.config import DataConfig, PreferencesConfig, RunConfig, check_model
from rlft.data.sources import BadRow, load_tasks
from rlft.envs.base import EnvFn
from rlft.errors import ConfigError, DataError
from rlft.rewards.compose import PackedGrader, compose, pack
from rlft.rollout.renderer import Renderer, load_renderer
from rlft.runs.start import judge_models, judge_rollout, make_env_fn
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


def prepare(
    config: RunConfig, reward: Any, env: Any, tasks: Sequence[Task] | None, eval_tasks: Sequence[Task] | None, training: bool
) -> Parts:
    """Load and check everything that can be checked without an actor."""
    if config.preferences != PreferencesConfig():
        raise ConfigError("[preferences] applies to `rlft dpo` and `rlft train-rm` only; remove it")
    check_model(config.model)
    make_env = make_env_fn(config, env)
    terms = compose(config.reward if reward is None else reward)
    if not terms and env is None and config.env.get("name") == "single_turn":
        raise ConfigError("[reward] is empty and single_turn gives no rewards of its own: every outcome would be 0; name a reward")
    grader = pack(terms)
    for judge, size in judge_models(grader).items():
        judge_rollout(config.rollout, judge, size)  # refuses what its engine would, but at once
    renderer = load_renderer(config.model, config.chat_template)
    train_tasks, bad = load_source("data", config.data, tasks) if training else ([], [])
    evaluates = bool(config.eval.data.source) or eval_tasks is not None
    held_out, bad_eval = load_source("eval.data", config.eval.data, eval_tasks) if evaluates else ([], [])
    fitting, too_long = fit_context(train_tasks, renderer, config)
    fitting_eval, too_long_eval = fit_context(held_out, renderer, config)
    return Parts(renderer, make_env, grader, fitting, fitting_eval, [*bad, *bad_eval, *too_long, *too_long_eval])


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


def load_source(where: str, data: DataConfig, tasks: Sequence[Task] | None) -> tuple[Sequence[Task], Sequence[BadRow]]:
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
