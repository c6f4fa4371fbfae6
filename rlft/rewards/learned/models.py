"""Loading a frozen model with its tokenizer, and conversations as its token sequences.

Axes: B rows, T tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlft.chat.chat import ASSISTANT, Chat, Rendered
from rlft.errors import ConfigError, RewardError
from rlft.files import read_text
from rlft.hub import check_folder
from rlft.types import Message

DType = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Source:
    """Which model, and how it computes. Checked where it is made, loaded where it runs.

    Raises:
        ConfigError: a folder without a model, or an option out of range.
    """

    model: str
    dtype: DType = "auto"  # of the weights; auto: bfloat16 on GPU, float32 on CPU
    device: str = "auto"  # auto: the GPU if this process sees one
    chat_template: str = ""  # file with a Jinja template; "": the tokenizer's own, else contents joined
    max_length: int = 0  # tokens; 0: the model's own limit

    def __post_init__(self) -> None:
        check_folder(self.model)
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype {self.dtype!r}: expected 'auto', 'float32' or 'bfloat16'")
        if self.max_length < 0:
            raise ConfigError(f"max_length {self.max_length}: expected the number of tokens, or 0 for the model's own limit")
        if Path(self.model).exists():  # workers may run in another folder
            object.__setattr__(self, "model", str(Path(self.model).resolve()))
        object.__setattr__(self, "chat_template", read_template(self.chat_template))


def read_template(file: str) -> str:
    """The text of a template file; "" for "". Raises ConfigError."""
    if file and not Path(file).is_file():
        raise ConfigError(f"chat_template: no file {file!r} (looked in {Path.cwd()})")
    return read_text(file, "chat_template") if file else ""


class Encoder:
    """Conversations -> token ids, through the model's own chat template. No text in them is read as a control token.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template: used instead of the tokenizer's own. Without any, contents are joined, an EOS after each
            assistant message, and the tokenizer adds what it adds to plain text.
        max_length: a longer conversation keeps its end: the answer is there.

    Raises:
        ConfigError: a template that renders no user message, or a tokenizer that `tokenizers` does not know.
    """

    def __init__(self, tokenizer: Any, chat_template: str, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.chat = Chat(tokenizer, (), chat_template)

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a whole conversation. Raises RenderError."""
        suffix = self.chat.codec.suffix if self.chat.template.plain else []
        return [*self.chat.ids(messages, open_answer=False), *suffix]

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, the last `max_length` of them. Raises RewardError when there are none."""
        return self.cut(self.ids(messages))

    def asked(self, messages: Sequence[Message]) -> Rendered:
        """A conversation up to where an assistant speaks next. Raises RenderError."""
        return self.chat.rendered(messages)

    def behind(self, before: Rendered, text: str, role: str) -> tuple[list[int], int]:
        """Token ids of a text behind what stands before it, and how many of them that alone is. A token that reaches over the border
        is the text's."""
        ids, alone = self.chat.encode(self.chat.joined(before, text, role)), self.chat.encode(before)
        return ids, next((n for n, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b), min(len(ids), len(alone)))

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text by others that stands alone."""
        alone = self.chat.joined(Rendered("", {}), text, ASSISTANT)
        return self.chat.codec.encode(alone.text, alone.shield)

    def cut(self, ids: list[int]) -> list[int]:
        """The last `max_length` ids. Raises RewardError when there are none at all."""
        if not ids:
            raise RewardError("an empty conversation has no tokens to score")
        return ids[-self.max_length :]


def load_encoder(source: Source, config: Any) -> Encoder:
    """The encoder of a model with transformers' `config`. Raises ConfigError where it has no tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {source.model!r}: no tokenizer found: save one beside the model ({error})") from error
    known = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    return Encoder(tokenizer, source.chat_template, source.max_length or min(known, tokenizer.model_max_length))


def load_config(source: Source) -> Any:
    """transformers' configuration of a model. Raises ConfigError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {source.model!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def load_frozen(source: Source, auto_class: str) -> Any:
    """A model for inference; `auto_class` is transformers' AutoModelFor..., of which every weight must be there.

    Raises:
        ConfigError: no such model, or one whose head is missing from its weights.
    """
    import torch
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = source.device if source.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = source.dtype == "bfloat16" or (source.dtype == "auto" and device.startswith("cuda"))
    options = {"dtype": torch.bfloat16 if bf16 else torch.float32, "trust_remote_code": False, "output_loading_info": True}
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(source.model, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {source.model!r} is no {auto_class}: {str(error).strip().splitlines()[0]}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise ConfigError(f"model {source.model!r} has no weights for {missing}: it was not trained as a {auto_class}")
    return model.to(device).eval().requires_grad_(False)


def padded(sequences: Sequence[Sequence[int]], model: Any, pad_id: int) -> tuple[Any, Any]:
    """Token ids [B, T], padded on the right, and their mask [B, T], on the model's device."""
    import torch

    lengths = torch.tensor([len(ids) for ids in sequences])
    token_ids = torch.full((len(sequences), int(lengths.max())), pad_id)
    for row, ids in zip(token_ids, sequences, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    mask = torch.arange(token_ids.shape[1]) < lengths[:, None]
    return token_ids.to(model.device), mask.long().to(model.device)
