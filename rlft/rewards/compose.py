"""The run file's [reward] table, or plain functions, as one grader."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle

from rlft.errors import ConfigError
from rlft.names import bind, import_object
from rlft.rewards.grader import Canary, Defaults, Kind, Rule, Scorer, Term

# What ships, by module of this package.
_SHIPPED = {
    "builtin": ("exact_match", "number_match", "regex", "format_tags", "length", "overlong"),
    "math": ("math_equal",),
    "code": ("code_tests",),
    "structured": ("json_schema", "key_value_f1", "graph_f1"),
    "choice": ("multiple_choice",),
    "quantity": ("quantity",),
    "ranking": ("set_match", "list_match", "ranking"),
    "function_call": ("function_call",),
    "instructions": ("instructions",),
    "text": ("bleu", "chrf", "rouge"),
    "countdown": ("countdown",),
    "sql": ("sql_equal",),
    "shaping": ("cosine_length", "relative_length", "pass_rate_label", "adactrl", "best_in_group", "pairwise",
                "safety_gate", "ensemble", "length_debiased"),  # fmt: skip
    "adapters.trl": ("trl_reward",),
    "adapters.verl": ("verl_reward",),
    "adapters.openrlhf": ("openrlhf_reward",),
    "adapters.verifiers": ("verifiers_rubric",),
    "adapters.reasoning_gym": ("reasoning_gym",),
}
_SCORERS = {
    "openrlhf_server": "adapters.openrlhf:OpenRLHFServer",
    "http_reward": "http:HttpReward",
    "reward_model": "learned.reward_model:RewardModel",
    "log_likelihood": "learned.log_likelihood:LogLikelihood",
    "process_reward": "learned.process_reward:ProcessReward",
    "judge": "learned.judge:Judge",
}
BUILTIN: dict[str, str] = {
    **{name: f"rlft.rewards.{module}:{name}" for module, names in _SHIPPED.items() for name in names},
    **{name: f"rlft.rewards.{path}" for name, path in _SCORERS.items()},
}
# Functions of other libraries, by parameters that no reward of ours has: the library, its adapter, the parameters.
BROUGHT = (
    ("TRL", "trl_reward", ("completions",)),
    ("verl", "verl_reward", ("solution_str", "ground_truth")),
    ("OpenRLHF", "openrlhf_reward", ("queries", "prompts")),
)
TAKEN = ("mean", "std")  # what metrics call the statistics of all rewards together
RULE_KEYS = ("weight", "gate", "normalize", "clip", "on_error", "optional", "timeout_s", "memory_mb")


@dataclass(frozen=True)
class PackedGrader:
    """A grader on its way to a reward worker: rules and scorers as they are, functions as bytes for the grading processes."""

    rules: tuple[Rule, ...]
    functions: bytes  # of the terms that are no scorers
    scorers: Mapping[int, Scorer]  # by the term's place
    canaries: tuple[tuple[int, Canary], ...]  # with the term's place


def compose(reward: Callable[..., Any] | Scorer | Mapping[Any, Any]) -> tuple[Term, ...]:
    """The grader that a table describes.

    Args:
        reward: one function (weight 1), or {reward: weight} or {reward: {"weight": w, option: value}}.
            A reward is a built-in name, "module:attribute", a function or a `Scorer`; with the option
            `fn` naming the reward, the key is a name of your own for its part. A function whose first
            parameter is named `group` grades a whole Group and returns one value per trajectory; it
            runs after the others and sees their parts. Any other takes (task, trajectory). Both may be
            async. An empty table grades nothing: what the environment gave is all there is.

    Raises:
        ConfigError: unknown name or option, missing option, wrong rule, or two parts of one name.
    """
    table = reward if isinstance(reward, Mapping) else {reward: 1.0}
    grader = tuple(_term(key, spec) for key, spec in table.items())
    names = [term.rule.name for term in grader]
    for name in names:
        if name in TAKEN:
            raise ConfigError(f"reward: {name!r} is taken by the statistic reward/{name}; give the part another name with the option 'fn'")
        if names.count(name) > 1:
            raise ConfigError(f"reward: two rewards are named {name!r}; parts are logged by name, so name one with the option 'fn'")
    return grader


def pack(grader: Sequence[Term]) -> PackedGrader:
    """A grader as a reward worker takes it, functions of a script or notebook included."""
    scorers = {place: term.fn for place, term in enumerate(grader) if isinstance(term.fn, Scorer)}
    functions = [None if place in scorers else term.fn for place, term in enumerate(grader)]
    canaries = tuple((place, canary) for place, term in enumerate(grader) for canary in term.canaries)
    return PackedGrader(tuple(term.rule for term in grader), cloudpickle.dumps(functions), scorers, canaries)


def _term(key: Any, spec: Any) -> Term:
    options = dict(spec) if isinstance(spec, Mapping) else {"weight": spec}
    target = options.pop("fn", key)
    name = _name(key)
    where = f"reward.{key if isinstance(key, str) else name}"
    if "name" in options:
        raise ConfigError(f"{where}: a reward cannot have an option called 'name'")
    found = import_object(target) if isinstance(target, str) and ":" in target else target
    if not isinstance(found, (str, Scorer)) and not callable(found):
        raise ConfigError(f"{where}: {found!r} is not a function")
    given = {option: options.pop(option) for option in RULE_KEYS if option in options}
    if isinstance(found, Scorer) and not isinstance(found, type):
        if options:
            raise ConfigError(f"{where}: unknown options {sorted(options)}; this scorer was made already, with options of its own")
        fn, kind = found, "scorer"
    else:
        names = BUILTIN if isinstance(found, str) else {name: found}
        fn = bind({"name": found if isinstance(found, str) else name, **options}, names, "reward")
        fn, kind = _settle(fn, where)
    own: Defaults = getattr(fn.func if isinstance(fn, functools.partial) else fn, "rlft_defaults", Defaults())
    if own.check is not None:
        own.check(**options)
    if own.canaries and kind != "each":
        raise ConfigError(f"{where}: canaries are texts with a grade of their own; only a reward of one trajectory can have them")
    if inspect.iscoroutinefunction(fn.func if isinstance(fn, functools.partial) else fn) and "memory_mb" in {**own.options, **given}:
        raise ConfigError(f"{where}: memory_mb does not apply to async rewards, which share their process while they wait")
    canaries = () if isinstance(fn, functools.partial) else own.canaries  # what is known holds for the defaults
    return Term(_rule(name, kind, {**own.options, **given}, where), fn, canaries)


def _name(key: Any) -> str:
    if isinstance(key, str):
        return key.rpartition(":")[2].rpartition(".")[2]
    if isinstance(key, functools.partial):
        return _name(key.func)
    return getattr(key, "__name__", type(key).__name__)


def _settle(fn: Any, where: str) -> tuple[Any, Kind]:
    """What to call and how; checks that it can be called at all. A class of scorers is made one."""
    made = fn.func if isinstance(fn, functools.partial) else fn
    if isinstance(made, type) and isinstance(made, Scorer):
        try:
            return fn(), "scorer"
        except TypeError as error:
            raise ConfigError(f"{where}: {error}") from None
    signature = inspect.signature(fn)
    if adapter := _brought(signature.parameters):
        raise ConfigError(f"{where}: {_name(made)!r} is called as a reward of {adapter[0]}; {adapter[1]}")
    of_group = next(iter(signature.parameters), "") == "group"
    try:
        signature.bind(*([None] if of_group else [None, None]))
    except TypeError as error:
        expected = "(group, *, options)" if of_group else "(task, trajectory, *, options)"
        raise ConfigError(f"{where}: {error}; a reward is called as {expected}") from None
    return fn, "group" if of_group else "each"


def _brought(parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    """The library whose rewards have such parameters, and what to write for one; None: a reward of ours."""
    for library, adapter, names in BROUGHT:
        if all(name in parameters for name in names):
            return library, f"write [reward] name = {{ fn = {adapter!r}, function = 'module:function' }} (docs/rewards-from-elsewhere.md)"
    return None


def _rule(name: str, kind: Kind, given: Mapping[str, Any], where: str) -> Rule:
    rule = Rule(name, kind, _weight(given.get("weight", 1.0), where))
    for key in ("gate", "on_error", "timeout_s"):
        if key in given:
            rule = replace(rule, **{key: _number(given[key], key, where)})
    if "clip" in given:
        low, high = _pair(given["clip"], where)
        rule = replace(rule, clip=(low, high))
    rule = replace(rule, normalize=given.get("normalize", "none"), optional=given.get("optional", False), memory_mb=given.get("memory_mb"))
    problems = {
        f"normalize {rule.normalize!r}; expected 'none' or 'group'": rule.normalize not in ("none", "group"),
        f"optional {rule.optional!r}; expected true or false": not isinstance(rule.optional, bool),
        f"timeout_s {rule.timeout_s}; expected a positive number of seconds": rule.timeout_s is not None and rule.timeout_s <= 0,
        f"memory_mb {rule.memory_mb!r}; expected a positive whole number": not _is_memory(rule.memory_mb),
        "memory_mb applies to rewards that run in the grading processes": kind == "scorer" and rule.memory_mb is not None,
        "gate applies to rewards of one trajectory": kind != "each" and rule.gate is not None,
    }
    for problem, found in problems.items():
        if found:
            raise ConfigError(f"{where}: {problem}")
    return rule


def _weight(given: Any, where: str) -> tuple[tuple[int, float], ...]:
    """A weight, or points [step, weight] between which it moves in a line."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        return ((0, _number(given, "weight", where)),)
    points = [point for point in given if isinstance(point, Sequence) and len(point) == 2]
    steps = [step for step, _ in points]
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    if not points or len(points) < len(given) or not whole or steps != sorted(set(steps)):
        raise ConfigError(f"{where}: weight {given!r}; expected a number, or [[step, weight], ...] with steps that rise")
    return tuple((step, _number(weight, "weight", where)) for step, weight in points)


def _pair(given: Any, where: str) -> tuple[float, float]:
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        low, high = (_number(bound, "clip", where) for bound in given)
        if low < high:
            return low, high
    raise ConfigError(f"{where}: clip {given!r}; expected [low, high]")


def _number(given: Any, key: str, where: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise ConfigError(f"{where}: {key} {given!r}; expected a finite number")
    return float(given)


def _is_memory(given: Any) -> bool:
    return given is None or (isinstance(given, int) and not isinstance(given, bool) and given > 0)
