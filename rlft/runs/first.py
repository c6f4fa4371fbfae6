"""What a run file, a model's config.json and a user's own modules tell before torch is loaded: told in the first second.

The command line looks here first; the run itself makes the same checks, and those that need more.
"""

from __future__ import annotations

import glob
import importlib.util
import inspect
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlft import algorithms, envs
from rlft.config import RolloutConfig, RunConfig
from rlft.data.sources import look_at
from rlft.effects import is_named
from rlft.envs.base import EnvFn
from rlft.errors import ConfigError, DataError
from rlft.hub import check_folder, check_model
from rlft.names import bind, check_name, nearest
from rlft.report.folder import RunFolder
from rlft.rewards.compose import Term, compose
from rlft.rollout.renderer import check_given_template
from rlft.runs.applies import Command, check_applies, check_evaluates
from rlft.runs.limits import in_context, stated_positions

if TYPE_CHECKING:
    from rlft.algorithms.base import Algorithm


def look(config: RunConfig, command: Command, beside: Path | None = None, overwrite: bool = False, resume: bool = False) -> None:
    """Refuse what cannot run, the quickest checks first.

    Args:
        beside: folder of the run file, for a message where paths were meant to start there; None: a recipe.
        overwrite, resume: as of `rlft.train`.

    Raises:
        ConfigError, DataError: in the words of the run itself.
    """
    if beside is not None:
        check_paths(config, beside)
    if command == "check":
        _look_at_stage(config, command)
        return
    check_applies(config, command)
    check_wishes(overwrite, resume)
    check_run_dir(config.run_dir)
    folder = RunFolder(Path(config.run_dir))
    folder.check_resumable() if resume else folder.check_free(config, overwrite)
    check_model(config.model)
    check_given_template(config.chat_template)
    if command in ("train", "eval"):
        in_context(config, stated_positions(config.model))
    _in_stages(config, lambda own: _look_at_stage(own, command))
    if command == "train":  # last: an algorithm loads torch, which everything from here on needs
        _in_stages(config, lambda own: check_sampling(own.rollout, make_algorithm(own, None)))


def look_from_afar(config: RunConfig, command: Command, overwrite: bool = False, resume: bool = False) -> None:
    """Refuse what cannot run on another machine either, in a copy of the current folder.

    What that machine may have and this one lacks is left to it: its run_dir, absolute paths, Hub names and installed modules.

    Raises:
        ConfigError, DataError: as `look`.
    """
    check_applies(config, command)
    check_wishes(overwrite, resume)
    if _is_ours(config.chat_template):
        check_given_template(config.chat_template)
    if Path(config.model).is_dir():
        check_folder(config.model)
        if command in ("train", "eval"):
            in_context(config, stated_positions(config.model))
    _in_stages(config, lambda own: _look_at_stage(own, command, afar=True))
    if command == "train":
        _in_stages(config, lambda own: _try(lambda: check_sampling(own.rollout, make_algorithm(own, None)), afar=True))


def _is_ours(path: str) -> bool:
    """Whether this machine can tell what a path names: it starts at the current folder, or something is there."""
    return not Path(path).is_absolute() or bool(glob.glob(path))


def _in_stages(config: RunConfig, check: Callable[[RunConfig], None]) -> None:
    """Check the run file of every stage. Raises ConfigError, which names the stage."""
    for index in range(max(1, len(config.stages))):
        try:
            check(config.of_stage(index) if config.stages else config)
        except ConfigError as error:
            raise ConfigError(f"stages[{index}]: {error}") if config.stages else error from None


def _look_at_stage(config: RunConfig, command: Command, afar: bool = False) -> None:
    if command in ("train", "train-rm"):
        check_evaluates(config, bool(config.eval.data.source))
    if command in ("train", "eval", "check"):
        _try(lambda: make_terms(config, None, None), afar)
    if command in ("train", "eval"):
        _try(lambda: make_env_fn(config, None), afar)
    if command == "train":
        check_temperature(config.rollout)
        check_name(config.algorithm, algorithms.BUILTIN, "algorithm")
    sources = [("data", config.data)] if command != "eval" else []
    if command != "check" and config.eval.data.source:
        sources.append(("eval.data", config.eval.data))
    for where, data in sources:
        if afar and data.source and (is_named(data.source) or not _is_ours(data.source)):
            continue
        try:
            _try(partial(look_at, data, tasks=command not in ("dpo", "train-rm")), afar)
        except DataError as error:
            raise DataError(f"[{where}] {error}") from error


def _try(check: Callable[[], object], afar: bool) -> None:
    """Check something that imports modules by others; `afar`, one that is not here may be there, unless a name is mistyped."""
    try:
        check()
    except ConfigError as error:
        if not afar or not isinstance(error.__cause__, ModuleNotFoundError) or "did you mean" in str(error):
            raise


def check_wishes(overwrite: bool, resume: bool) -> None:
    """Refuse to go on with a run and to remove it. Raises ConfigError."""
    if resume and overwrite:
        raise ConfigError("resume goes on with the earlier run and overwrite removes it: ask for one of them")


def check_paths(config: RunConfig, beside: Path) -> None:
    """Paths and modules start at the current folder. Raises ConfigError where one lies beside the run file instead."""
    here = Path.cwd()
    if beside.resolve() == here:
        return
    for key, path, found in _meant(config):
        if not found and (beside / path).exists():
            way = f"start rlft in {beside.resolve()}" + ("" if path.endswith(".py") else f", or write {str(beside / path)!r}")
            raise ConfigError(f"{key}: no {path!r} in {here}, where paths of a run file start; there is one beside the run file: {way}")


def _meant(config: RunConfig) -> Iterator[tuple[str, str, bool]]:
    """Each key that names a file, folder or module with what it names, and whether that is found."""
    for key, path in (("model", config.model), ("chat_template", config.chat_template)):
        if path:
            yield key, path, Path(path).exists()
    named = [("data.source", config.data.source), ("eval.data.source", config.eval.data.source)]
    named += [("env.name", config.env.get("name")), ("algorithm.name", config.algorithm.get("name"))]
    named += [(f"reward.{name}", option) for name, spec in config.reward.items() for option in _strings(name, spec)]
    for key, name in named:
        if isinstance(name, str) and ":" in name:
            top = name.partition(":")[0].partition(".")[0]
            yield key, f"{top}.py", not top.isidentifier() or Path(f"{top}.py").exists() or importlib.util.find_spec(top) is not None
        elif isinstance(name, str) and key.endswith("source") and name:
            yield key, name, Path(name).exists()


def _strings(name: str, spec: Any) -> list[Any]:
    return [name, *(spec.values() if isinstance(spec, dict) else ())]


def check_run_dir(path: str | Path) -> None:
    """Refuse a run_dir in which nothing can be written: read-only, too long a name, a file on the way. Raises ConfigError."""
    try:
        with tempfile.TemporaryFile(dir=existing(Path(path))):
            pass
    except OSError as error:
        raise ConfigError(f"run_dir {str(path)!r} cannot be written: {error.strerror or error}; choose another") from error


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists. Raises OSError."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_temperature(rollout: RolloutConfig) -> None:
    """Refuse samples that are all alike. Raises ConfigError."""
    if rollout.temperature <= 0:
        raise ConfigError(
            f"rollout.temperature: training needs a temperature above 0, got {rollout.temperature}: "
            "at 0 all answers to a task are the same one, and none is better than another"
        )


def check_sampling(rollout: RolloutConfig, algorithm: Algorithm) -> None:
    """Refuse samples that an algorithm cannot learn from: all alike, alone in their group, or of another distribution than the
    one that the learner computes. Raises ConfigError."""
    check_temperature(rollout)
    if rollout.group_size < algorithm.min_group:
        raise ConfigError(
            f"rollout.group_size {rollout.group_size}: algorithm {algorithm.name!r} compares trajectories of a task with each other, and "
            f"fewer than {algorithm.min_group} teach nothing: raise it, or take one that does without (reinforce_pp, remax, ppo)"
        )
    cut = [f"{key} {value:g}" for key, value in _truncation(rollout).items() if value != RolloutConfig.model_fields[key].default]
    if cut and not algorithm.may_truncate:
        raise ConfigError(
            f"rollout.{cut[0]}: algorithm {algorithm.name!r} needs samples of the policy itself. The engine would report the probabilities "
            "of a truncated distribution, and the learner compute those of the whole one: leave top_p, top_k and min_p out of [rollout], "
            "and set them in [eval] if you like, or imitate samples (rft, rwr, dpo, kto)"
        )


def _truncation(rollout: RolloutConfig) -> dict[str, float]:
    return {"top_p": rollout.top_p, "top_k": rollout.top_k, "min_p": rollout.min_p}


def make_terms(config: RunConfig, reward: Any, env: Callable[..., Any] | None) -> tuple[Term, ...]:
    """The rewards that the run file names, or those handed in. Raises ConfigError for none, and where eval.metric names no other."""
    terms = compose(config.reward if reward is None else reward)
    if env is not None or config.env.get("name") != "single_turn":
        return terms  # it may give rewards of its own
    if not terms:
        raise ConfigError("[reward] is empty and single_turn gives no rewards of its own: every outcome would be 0; name a reward")
    names, metric = [term.rule.name for term in terms], config.eval.metric
    if metric and metric not in names:
        raise ConfigError(f"eval.metric {metric!r}: no part of [reward] has that name{nearest(metric, names)}")
    return terms


def make_env_fn(config: RunConfig, env: Callable[..., Any] | None) -> EnvFn:
    """The environment that the run file names, or the one handed in."""
    made = bind(config.env, envs.BUILTIN, "env") if env is None else env
    if not callable(made):
        raise ConfigError(f"env: expected a class or function that makes an environment from a task, got {type(made).__name__}")
    where = f"env {config.env.get('name')!r}" if env is None else "env"
    _check_call(made, (None,), where)
    _check_methods(made, where)
    return made


def _check_methods(make_env: Callable[..., Any], where: str) -> None:
    """Refuse a class of which no environment can be made; what a function makes is not known."""
    while isinstance(make_env, partial):
        make_env = make_env.func
    lacking = [name for name in ("reset", "step", "close") if not callable(getattr(make_env, name, None))]
    if isinstance(make_env, type) and not hasattr(make_env, "__getattr__") and lacking:
        told = "an environment has `async def` reset, step and close"
        raise ConfigError(f"{where}: the class has no method {' and no '.join(lacking)}; {told}")


def make_algorithm(config: RunConfig, algorithm: Algorithm | None) -> Algorithm:
    """The algorithm that the run file names, or the one handed in."""
    made: Any = algorithm
    if algorithm is None:
        name, make = config.algorithm.get("name"), bind(config.algorithm, algorithms.BUILTIN, "algorithm")
        _check_call(make, (), f"algorithm {name!r}")
        made = make()
    from rlft.algorithms.base import Algorithm as Made  # loads torch: a name that is not known is told before

    if not isinstance(made, Made):
        expected = "an Algorithm such as grpo() returns" if algorithm is not None else "it to return an Algorithm"
        raise ConfigError(f"algorithm{'' if algorithm is not None else f' {name!r}'}: expected {expected}, got {type(made).__name__}")
    return made


def _check_call(fn: Callable[..., Any], args: tuple[Any, ...], what: str) -> None:
    try:
        inspect.signature(fn).bind(*args)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}; give it as an option, or a default") from None
