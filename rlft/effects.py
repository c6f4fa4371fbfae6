"""Options of a run file that would change nothing, or leave nothing to do, beside what else it says."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rlft.errors import ConfigError

USUAL_CONTEXT = 4096  # tokens of a context where nothing is said and the model has that many positions
WHOLE_FILES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")  # sources that have no splits


def is_named(source: str) -> bool:
    """Whether a source of data may have splits: a Hub name or a folder, and not a file or a function."""
    return ":" not in source and Path(source.lower().removesuffix(".gz")).suffix not in WHOLE_FILES


def check_effects(config: Any) -> None:
    """An option that cannot have an effect is an error, never a silent no-op.

    Args:
        config: a RunConfig, which stands above this module.

    Raises:
        ConfigError: what the option needs, or where it applies.
    """
    rollout, learner, data, held_out = config.rollout, config.learner, config.data, config.eval.data
    filtered = data.min_pass_rate > 0 or data.max_pass_rate < 1
    wandb = tuple(name for name in type(config.tracking).model_fields if name.startswith("wandb_"))
    rules: list[tuple[Any, tuple[str, ...], bool, str]] = [
        (learner, ("lora_alpha", "lora_targets"), learner.lora_rank > 0, "needs lora_rank > 0"),
        (learner, ("min_lr_ratio",), learner.schedule != "constant", "needs schedule = 'linear' or 'cosine'"),
        (learner, ("offload_optimizer",), learner.zero_stage != 0, "needs zero_stage 1, 2 or 3"),
        (rollout, ("top_p", "top_k", "min_p"), rollout.temperature > 0, "has no effect at temperature 0"),
        (rollout, ("max_refills",), rollout.drop_no_signal, "needs drop_no_signal = true"),
        (config.tracking, wandb, config.tracking.wandb != "off", "needs wandb = 'offline' or 'online'"),
        (data, ("options",), ":" in data.source, "applies to a 'module:function' source only"),
        (held_out, ("options",), ":" in held_out.source, "applies to a 'module:function' source only"),
        (data, ("split",), is_named(data.source), "applies to Hub names and folders only"),
        (held_out, ("split",), is_named(held_out.source), "applies to Hub names and folders only"),
        (data, ("min_attempts",), filtered, "needs min_pass_rate or max_pass_rate"),
        (data, ("shuffle",), data.curriculum != "learnable", "has no effect with curriculum = 'learnable', which draws at random"),
        (held_out, ("curriculum", "min_pass_rate", "max_pass_rate", "min_attempts"), False, "applies to training tasks only"),
        (rollout, ("entropy_gain", "min_temperature", "max_temperature"), rollout.entropy_target is not None, "needs entropy_target"),
        (config.critic, ("model", "num_minibatches", "num_epochs"), not config.critic.shared, "has no effect with shared = true"),
        (config.critic, ("loss_coef",), config.critic.shared, "needs shared = true"),
    ]
    names = {id(getattr(config, name)): name for name in type(config).model_fields} | {id(held_out): "eval.data"}
    for section, keys, applies, reason in rules:
        for key in keys:
            if not applies and getattr(section, key) != type(section).model_fields[key].get_default(call_default_factory=True):
                raise ConfigError(f"{names[id(section)]}.{key} {reason}")
    if max(config.eval.pass_k) > config.eval.samples:
        raise ConfigError(f"eval.pass_k {max(config.eval.pass_k)} needs at least as many eval.samples, got {config.eval.samples}")
    if rollout.max_tokens >= (length := rollout.max_model_len or USUAL_CONTEXT):
        raise ConfigError(f"rollout.max_tokens {rollout.max_tokens} leaves no room for a prompt in max_model_len {length}")
    if data.min_pass_rate > data.max_pass_rate:
        raise ConfigError(f"data.min_pass_rate {data.min_pass_rate:g} is above max_pass_rate {data.max_pass_rate:g}: no task would be left")
    if rollout.entropy_target is not None and not rollout.min_temperature <= rollout.temperature <= rollout.max_temperature:
        bounds = f"min_temperature {rollout.min_temperature:g} and max_temperature {rollout.max_temperature:g}"
        raise ConfigError(f"rollout.temperature: expected a start between {bounds}, got {rollout.temperature:g}")
    if "mismatch" in config.guards.stop and not config.guards.mismatch:
        raise ConfigError("guards.stop: 'mismatch' needs guards.mismatch, the limit from which it sounds")


def check_reached(config: Any, steps: int, given: Collection[str]) -> None:
    """Refuse what would begin after the run's last step. A run made shorter on the command line, to try it, may leave its file as it is.

    Args:
        config: a RunConfig.
        steps: of the whole run.
        given: keys that stand on the command line.

    Raises:
        ConfigError: which option, and what to do.
    """
    every, save_every, warmup = config.eval.every, config.tracking.save_every, config.learner.warmup_steps
    rules = (
        ("eval.every", every, every > steps, "set it lower, or to 0 to evaluate before and after only"),
        ("tracking.save_every", save_every, save_every > steps, "set it lower, or to 0 to save at the end only"),
        ("learner.warmup_steps", warmup, warmup >= steps, "set it lower, for the rate is still rising then"),
    )
    for key, value, late, way in rules:
        if value and late and (key in given or "steps" not in given):
            raise ConfigError(f"{key} {value}: the run ends after {steps} step{'s' * (steps > 1)}; {way}")
