"""What can be found before a run starts: the tokenizer's limits, whether a checkpoint can be written, room for it on the disk."""

from __future__ import annotations

import json
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.config import RunConfig
from rlft.errors import ConfigError
from rlft.learner.policy import save_settings
from rlft.report.tracking import Tracker
from rlft.rollout.renderer import Renderer
from rlft.runs.first import existing
from rlft.runs.limits import model_config, tokens_without_embedding

ADAM_BYTES = 12  # of a trained parameter in the optimizer's state: float32 weight and two moments
GB = 1e9
CHAT_NAME = re.compile(r"(?i)(^|[-_.])(instruct|chat|it)($|[-_.])")
CHAT_MARKS = {
    *("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "[INST]", "<|assistant|>", "<|user|>", "<|turn>", "<|start|>"),
    *("<｜User｜>", "<|START_OF_TURN_TOKEN|>", "<|start_of_role|>", "<|user_start|>"),
}


def look_ahead(config: RunConfig, renderer: Renderer, num_saves: int, critic: str = "", keeps_state: bool = False) -> list[str]:
    """What a run that trains should be told about its model and its checkpoints. Raises ConfigError where they would end it."""
    check_savable(config.model, renderer.tokenizer)
    return [*check_tokenizer(config.model, renderer), *check_room(config, num_saves, critic, keeps_state)]


def tell(tracker: Tracker, told: Sequence[str]) -> None:
    """Print warnings."""
    for message in told:
        tracker.warn(message)


def check_tokenizer(model: str, renderer: Renderer) -> list[str]:
    """What a person should know about a model's tokenizer. Raises ConfigError, as `check_vocabulary`."""
    return [*check_vocabulary(model, renderer.tokenizer, sorted(renderer.eos_ids)), *check_chat(model, renderer)]


def check_chat(model: str, renderer: Renderer) -> list[str]:
    """A warning where a model that was made for chat, by its name or its control tokens, comes without a chat template."""
    marks = sorted(token for token in renderer.tokenizer.get_vocab() if token in CHAT_MARKS)
    if not renderer.chat.template.plain or not (marks or CHAT_NAME.search(Path(model).name)):
        return []
    why = f"its tokenizer has {marks[0]!r}" if marks else "its name says so"
    return [
        f"model {model!r} has no chat template, though it was made for chat ({why}): prompts reach it as plain text. Set chat_template to "
        "its template, or copy chat_template.jinja from the model's origin into the folder"
    ]


def check_vocabulary(model: str, tokenizer: Any, eos_ids: Sequence[int]) -> list[str]:
    """Warnings about tokens that the model has no embedding for.

    Raises:
        ConfigError: one of them ends an answer.
    """
    missing = tokens_without_embedding(tokenizer, model)
    if not missing:
        return []
    named = f"{len(missing)} of its tokens ({', '.join(map(repr, missing[:5]))}) have ids beyond the model's embedding"
    if ends := sorted(set(tokenizer.convert_tokens_to_ids(missing)) & set(eos_ids)):
        raise ConfigError(f"model {model!r}: {named}, and {ends[0]} ends an answer: take the tokenizer that the model was trained with")
    return [f"tokenizer of {model!r}: {named}; a prompt that holds one cannot be computed"]


def check_savable(model: str, tokenizer: Any) -> None:
    """Write everything of a checkpoint but its weights once, into a folder that goes at once.

    Raises:
        ConfigError: something that loads cannot be saved.
    """
    from transformers import GenerationConfig
    from transformers.utils import cached_file

    config = model_config(model)
    stated = cached_file(model, "generation_config.json", _raise_exceptions_for_missing_entries=False)
    generation = GenerationConfig.from_pretrained(model) if stated else GenerationConfig.from_model_config(config)
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_settings(folder, config, generation, tokenizer)
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"model {model!r}: its configuration or tokenizer cannot be saved in a checkpoint: {error}") from error


def check_room(config: RunConfig, num_saves: int, critic: str = "", keeps_state: bool = False) -> list[str]:
    """Warnings where the disk of run_dir has no room for every checkpoint of the run.

    Args:
        num_saves: checkpoints that are kept.
        critic: model whose state lies beside the policy's; "": none.
        keeps_state: whether the newest checkpoint holds the optimizer's state.

    Raises:
        ConfigError: it has no room for the first.
    """
    parameters = num_parameters(config.model)
    if not parameters:
        return []
    weights = parameters * (2 if config.learner.dtype == "bfloat16" or (config.learner.dtype == "auto" and config.learner.gpus) else 4)
    state = state_bytes(weights, parameters, config.learner.lora_rank) if keeps_state else 0
    if critic and state:
        state += state_bytes(weights, num_parameters(critic), 0)
    free = shutil.disk_usage(existing(Path(config.run_dir))).free
    return room_for(weights, state, num_saves, free, config.run_dir)


def room_for(weights: int, state: int, num_saves: int, free: int, where: str) -> list[str]:
    """Warnings where `free` bytes hold the first checkpoint of a run but not all of them. Raises ConfigError for the first.

    Args:
        weights, state: bytes; every checkpoint keeps its weights, the newest its state, and the one before until then.
        where: the folder, for the message.
    """
    first, whole = weights + state, num_saves * weights + min(2, num_saves) * state
    held = f"the disk of run_dir {where!r} has {free / GB:.3g} GB left"
    sizes = f"{weights / GB:.3g} GB of weights and {state / GB:.3g} GB of optimizer state"
    if first > free:
        raise ConfigError(
            f"a checkpoint takes about {first / GB:.3g} GB ({sizes}), and {held}: make room, choose another run_dir, "
            "or set tracking.save_state = false"
        )
    if whole > free:
        return [f"{num_saves} checkpoints take about {whole / GB:.3g} GB ({sizes} each, state in the newest), and {held}: make room"]
    return []


def state_bytes(weights: int, parameters: int, lora_rank: int) -> int:
    """Bytes of DeepSpeed's state: the weights once more, and what AdamW keeps of each trained parameter; adapters are left out.

    Measured on 5 M parameters, in bytes of each: 16.0 said and 16.0 found with ZeRO 2 in float32 (12.0 with ZeRO 0, which keeps no
    second copy), 14.0 and 14.0 in bfloat16, 4.0 and 4.8 with adapters of rank 8.
    """
    return weights + (0 if lora_rank else ADAM_BYTES * parameters)


def num_parameters(model: str) -> int:
    """Parameters in a folder's safetensors files, read from their headers; 0 where there are none, as for a Hub name."""
    return sum(_size(entry["shape"]) for file in Path(model).glob("*.safetensors") for entry in _tensors(file).values())


def num_saves(stages: Sequence[RunConfig]) -> int:
    """Checkpoints of a run: every `tracking.save_every` steps, and each stage's last step."""
    total, ends, every = 0, set(), stages[0].tracking.save_every
    for stage in stages:
        total += stage.steps
        ends.add(total)
    return len(ends | set(range(every, total + 1, every) if every else ()))


def _tensors(file: Path) -> Mapping[str, Mapping[str, Any]]:
    with file.open("rb") as data:
        (length,) = struct.unpack("<Q", data.read(8))
        entries = json.loads(data.read(length))
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}


def _size(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
