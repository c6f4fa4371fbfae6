"""What of a run file a kind of run does not use: told before torch is loaded, instead of passed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rlft import algorithms
from rlft.config import DataConfig, EvalConfig, RunConfig
from rlft.errors import ConfigError
from rlft.runs.defaults import check_loaded

Command = Literal["train", "sft", "dpo", "train-rm", "eval", "check"]
# Sections that have no effect, what a run does, and which command is meant where they are there.
UNUSED: dict[Command, tuple[Sequence[str], str, str]] = {
    "sft": (
        ("preferences", "env", "reward", "reward_pool", "algorithm", "rollout", "critic", "eval", "stages"),
        "supervised fine-tuning",
        "`rlft train` or `rlft eval`",
    ),
    "dpo": (("env", "reward", "reward_pool", "rollout", "critic", "eval", "guards", "stages"), "training on given pairs", "`rlft train`"),
    "train-rm": (("env", "reward", "reward_pool", "algorithm", "rollout", "critic", "stages"), "training a reward model", "`rlft train`"),
}
METHODS = ("dpo", "ipo", "kto")
PAIRING = ("pairs", "threshold", "min_gap")  # options of these that find pairs among samples
OF_PAIRS = ("source", "split", "prompt", "id", "system", "limit", "shuffle", "options")  # keys of [data] that given pairs have
NOT_OF_SCORES = ("logprob_chunk", "num_minibatches", "num_epochs")  # keys of [learner] that no reward model has
MEASURED_ANYWAY = ("data", "metric", "threshold")  # keys of [eval] that say more than how held-out tasks are sampled


def check_applies(config: RunConfig, command: Command, has_eval_tasks: bool = False) -> None:
    """Refuse sections and options that a kind of run does not use, and an evaluation without tasks. Raises ConfigError."""
    check_loaded(config)
    defaults = RunConfig(model=config.model)
    if command == "eval" and not config.eval.data.source and not has_eval_tasks:
        raise ConfigError("eval.data.source is not set: name the tasks to evaluate on")
    if command in ("train", "eval") and config.preferences != defaults.preferences:
        raise ConfigError("[preferences] applies to `rlft dpo` and `rlft train-rm` only; remove it")
    sections, doing, instead = UNUSED.get(command, ((), "", ""))
    for section in sections:
        if getattr(config, section) != getattr(defaults, section):
            raise ConfigError(f"[{section}] does not apply to {doing}; remove it, or use {instead}")
    if command == "dpo":
        _check_given_pairs(config)
    if command == "train-rm":
        _check_reward_model(config)


def check_evaluates(config: RunConfig, evaluates: bool) -> None:
    """Refuse what says how held-out tasks are sampled where there are none. Raises ConfigError."""
    defaults, own, data = EvalConfig(), config.eval, config.data
    by_rate = data.curriculum != "none" or data.min_pass_rate > 0 or data.max_pass_rate < 1
    kept = MEASURED_ANYWAY if by_rate or config.rollout.max_turns > 1 else ("data",)
    for key in [] if evaluates else EvalConfig.model_fields:
        # What is right counts in training too: over the attempts of an episode, and in the pass rates that tasks are drawn by.
        if getattr(own, key) != getattr(defaults, key) and key not in kept:
            raise ConfigError(f"eval.{key} needs eval.data.source")


def _check_given_pairs(config: RunConfig) -> None:
    defaults, name = DataConfig(), config.algorithm.get("name")
    for key in DataConfig.model_fields:
        if key not in OF_PAIRS and getattr(config.data, key) != getattr(defaults, key):
            raise ConfigError(f"data.{key} does not apply to preference pairs; name their fields in [preferences]")
    if name in algorithms.BUILTIN and name not in METHODS:
        raise ConfigError(f"algorithm.name: expected one of {', '.join(METHODS)}, or 'module:attribute', got {name!r}")
    for option in PAIRING:
        if name in METHODS and option in config.algorithm:
            raise ConfigError(f"algorithm.{option} does not apply to given pairs; remove it")


def _check_reward_model(config: RunConfig) -> None:
    defaults = RunConfig(model=config.model)
    sampled = [key for key in EvalConfig.model_fields if key not in ("data", "every")]
    refused = [("learner", key) for key in NOT_OF_SCORES] + [("eval", key) for key in sampled]
    for section, key in refused:
        if getattr(getattr(config, section), key) != getattr(getattr(defaults, section), key):
            raise ConfigError(f"{section}.{key} does not apply to training a reward model; remove it")
    for where, data in (("data", config.data), ("eval.data", config.eval.data)):
        if data.answer != defaults.data.answer:
            raise ConfigError(f"{where}.answer does not apply to preference pairs; name their fields in [preferences]")
