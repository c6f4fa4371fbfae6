"""What a model's own configuration allows a run: how long a context, and which tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlft.config import RunConfig
from rlft.effects import USUAL_CONTEXT
from rlft.errors import ConfigError
from rlft.files import read_text
from rlft.hub import check_model

# Where architectures keep the number of their positions, and how a rotary embedding that stretches them is named (both as
# vLLM reads them); one that is not listed here multiplies them by its factor.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions")
STRETCHED_ALREADY = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def with_context(config: RunConfig) -> RunConfig:
    """The run file with `rollout.max_model_len` as the model has it where nothing is said. Raises ConfigError, as `in_context`."""
    check_model(config.model)
    return in_context(config, positions(model_config(config.model)))


def in_context(config: RunConfig, known: int | None) -> RunConfig:
    """The run file with `rollout.max_model_len` for a model of `known` positions; each stage's own is checked too.

    Raises:
        ConfigError: a context longer than its positions, or no room in it for an answer.
    """
    length = _length(config.model, known, config.rollout.max_model_len, "rollout.max_model_len")
    resolved = config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_model_len": length})})
    for where, rollout in [
        ("", resolved.rollout),
        *((f"stages[{i}].", resolved.of_stage(i).rollout) for i in range(len(config.stages))),
    ]:
        _length(config.model, known, rollout.max_model_len, f"{where}rollout.max_model_len")
        if rollout.max_tokens >= rollout.max_model_len:
            raise ConfigError(
                f"{where}rollout.max_tokens {rollout.max_tokens} leaves no room for a prompt in max_model_len {rollout.max_model_len}"
            )
    return resolved


def context_length(model: str, asked: int, option: str) -> int:
    """Tokens of a context: `asked`, or where that is 0 the smaller of 4096 and the model's positions.

    Raises:
        ConfigError: the model has fewer positions than `option` asks for.
    """
    return _length(model, positions(model_config(model)), asked, option)


def _length(model: str, known: int | None, asked: int, option: str) -> int:
    if asked and known and asked > known:
        most = f"set at most that, or 0 for what it has up to {USUAL_CONTEXT}"
        raise ConfigError(f"{option} {asked}: model {model!r} has {known} positions; {most}")
    return asked or min(USUAL_CONTEXT, known or USUAL_CONTEXT)


def positions(config: Any) -> int | None:
    """Positions of a model with transformers' `config`, stretched ones included; None where it does not say."""
    text = config.get_text_config()
    stated = [value for key in POSITIONS if isinstance(value := getattr(text, key, None), int)]
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # of all layers, or by their type
    stretched = [kind.get("factor") or 1.0 for kind in kinds if kind.get("rope_type", "default") not in STRETCHED_ALREADY]
    if not stated:
        return None
    return int(min(stated) * (1.0 if config.model_type.startswith("gemma3") else max(stretched, default=1.0)))


def stated_positions(model: str) -> int | None:
    """`positions` as a model folder's config.json states them, without transformers; None where that alone does not tell."""
    file, text = Path(model, "config.json"), _config_text(model)
    try:
        stated = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"model {model!r}: {file} is not valid JSON: {error}") from error
    own = stated.get("text_config", stated) if isinstance(stated, dict) else {}
    stretches = any(isinstance(own.get(key), dict) and "factor" in str(own[key]) for key in ("rope_scaling", "rope_parameters"))
    numbers = [value for key in POSITIONS if isinstance(value := own.get(key), int)]
    return min(numbers) if numbers and not stretches else None


def _config_text(model: str) -> str:
    """A model folder's config.json; "{}" for a Hub name. Raises ConfigError."""
    file = Path(model, "config.json")
    return read_text(file, f"model {model!r}") if file.is_file() else "{}"


def tokens_without_embedding(tokenizer: Any, model: str) -> list[str]:
    """Tokens of a tokenizer whose ids lie beyond the model's embedding, by id: a text that holds one cannot be computed."""
    size = model_config(model).get_text_config().vocab_size
    return [token for token, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]) if i >= size]


def model_config(model: str) -> Any:
    """transformers' configuration of a model folder or Hub name. Raises ConfigError."""
    from transformers import AutoConfig

    _config_text(model)  # transformers would name no file
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {model!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
