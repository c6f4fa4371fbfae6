"""What a model's own configuration allows a run: how long a context, and which tokens."""

from __future__ import annotations

from typing import Any

from rlft.config import USUAL_CONTEXT
from rlft.errors import ConfigError

# Where architectures keep the number of their positions, and how a rotary embedding that stretches them is named (both as
# vLLM reads them); one that is not listed here multiplies them by its factor.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions")
STRETCHED_ALREADY = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def context_length(model: str, asked: int, option: str) -> int:
    """Tokens of a context: `asked`, or where that is 0 the smaller of 4096 and the model's positions.

    Raises:
        ConfigError: the model has fewer positions than `option` asks for.
    """
    known = positions(model_config(model))
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


def tokens_without_embedding(tokenizer: Any, model: str) -> list[str]:
    """Tokens of a tokenizer whose ids lie beyond the model's embedding, by id: a text that holds one cannot be computed."""
    size = model_config(model).get_text_config().vocab_size
    return [token for token, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]) if i >= size]


def model_config(model: str) -> Any:
    """transformers' configuration of a model folder or Hub name. Raises ConfigError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {model!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
