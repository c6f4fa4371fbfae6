"""Loading a frozen model with its tokenizer, and conversations as its token sequences.

Axes: B rows, T tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlft.config import check_model
from rlft.errors import ConfigError, RewardError
from rlft.types import Message

# What a policy without a chat template is rendered with, so that a model trained here reads it as the policy does.
PLAIN_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
MARK = "\u241erlft\u241e"  # stands for a text while its surroundings are rendered
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
        check_model(self.model)
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
    return Path(file).read_text() if file else ""


class Encoder:
    """Conversations -> token ids, through the model's own chat template.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template: used instead of the tokenizer's own. Without any, contents are joined, an EOS after each
            assistant message, and the tokenizer adds what it adds to plain text.
        max_length: a longer conversation keeps its end: the answer is there.
    """

    def __init__(self, tokenizer: Any, chat_template: str, max_length: int) -> None:
        own = chat_template or tokenizer.chat_template
        self.tokenizer, self.max_length = tokenizer, max_length
        self._template, self._special = own or PLAIN_TEMPLATE, not own

    def render(self, messages: Sequence[Message], open_answer: bool = False) -> str:
        """A conversation as text; with `open_answer` up to where an assistant speaks next. Raises RewardError."""
        from jinja2 import TemplateError

        options = {"chat_template": self._template, "add_generation_prompt": open_answer, "tokenize": False}
        try:
            return self.tokenizer.apply_chat_template(list(messages), **options)
        except TemplateError as error:
            raise RewardError(f"the reward model's chat template refuses {list(messages)!r:.200}: {error}; set chat_template") from error

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, the last `max_length` of them. Raises RewardError when there are none."""
        return self.cut(self.tokens(self.render(messages), first=True))

    def tokens(self, text: str, first: bool = False) -> list[int]:
        """Token ids of a text; `first` where a sequence begins with it."""
        return self.tokenizer(text, add_special_tokens=first and self._special)["input_ids"]

    def cut(self, ids: list[int]) -> list[int]:
        """The last `max_length` ids. Raises RewardError when there are none at all."""
        if not ids:
            raise RewardError("an empty conversation has no tokens to score")
        return ids[-self.max_length :]

    def before(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of everything that stands before the content of the last message."""
        marked = [*messages[:-1], {**messages[-1], "content": MARK}]
        text, found, _ = self.render(marked).rpartition(MARK)
        if not found:
            raise RewardError("the chat template does not render the content of the last message; set chat_template to one that does")
        return self.tokens(text, first=True)


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
