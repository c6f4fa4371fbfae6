"""Messages <-> tokens through the model's own chat template; it only ever appends.

Sampled ids are carried forward as they are: what the policy wrote is decoded for reading,
never encoded again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rlft.envs.base import ToolSpec
from rlft.errors import ConfigError
from rlft.types import Message

PLAIN_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
MARK = "\u241erlft\u241e"  # stands for an assistant's text while its surroundings are rendered


class Renderer:
    """Chat template of one model.

    Args:
        tokenizer: a transformers tokenizer. Without a chat template it gets a plain one:
            contents joined as they are, an EOS after each assistant message.
        eos_ids: every id that ends a completion.
    """

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int], chat_template: str = "") -> None:
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(eos_ids)
        self.template = chat_template or tokenizer.chat_template or PLAIN_TEMPLATE
        self._render_text = lru_cache(maxsize=4096)(self._render_json)

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Token ids of a conversation up to where the policy speaks next."""
        return self._encode(self._text(messages, tools))

    def extend(self, sampled_ids: Sequence[int], messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Token ids that follow the sampled ids: the end of the assistant's message (unless
        its EOS was sampled), the new messages, and the opening of the next answer."""
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}, *messages]
        _, found, after = self._text(turn, tools).rpartition(MARK)
        if not found:
            raise ConfigError("the chat template does not render the assistant's content; set chat_template to one that does")
        ids = self._encode(after)
        closed = bool(sampled_ids) and bool(ids) and sampled_ids[-1] in self.eos_ids and sampled_ids[-1] == ids[0]
        return ids[1:] if closed else ids

    def target(self, text: str) -> list[int]:
        """Token ids of an assistant message that a demonstration holds, closed by an EOS."""
        closing = self.extend([], [])[:1]
        return [*self._encode(text), *(closing if set(closing) & self.eos_ids else [self.tokenizer.eos_token_id])]

    def parse(self, completion_ids: Sequence[int]) -> Message:
        """The assistant message that the policy wrote, special tokens left out."""
        return {"role": "assistant", "content": self.tokenizer.decode(completion_ids, skip_special_tokens=True)}

    def text(self, ids: Sequence[int]) -> str:
        """Everything in `ids`, special tokens included, for people to read."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def _text(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str:
        return self._render_text(json.dumps(messages), json.dumps(tools))

    def _render_json(self, messages: str, tools: str) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                json.loads(messages),
                tools=json.loads(tools) or None,
                chat_template=self.template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except TemplateError as error:
            raise ConfigError(f"the chat template refuses {messages:.200}: {error}; change the messages, or set chat_template") from error

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def load_renderer(model: str, chat_template: str = "") -> Renderer:
    """Tokenizer, EOS ids and chat template of a model folder or Hub name.

    Args:
        chat_template: a file with a Jinja template to use instead of the model's own.

    Raises:
        ConfigError: no such model, no tokenizer, or no template file.
    """
    if chat_template and not Path(chat_template).is_file():
        raise ConfigError(f"chat_template: no file {chat_template!r} (looked in {Path.cwd()})")
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    from transformers.utils import cached_file

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {model!r}: no tokenizer found: give a folder in Hugging Face format or a Hub name ({error})") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes where there are no tokenizer files
        raise ConfigError(f"model {model!r}: no tokenizer found: save one beside the model (tokenizer.save_pretrained)")
    if cached_file(model, "generation_config.json", _raise_exceptions_for_missing_entries=False):  # in the folder or on the Hub
        generation = GenerationConfig.from_pretrained(model)
    listed = generation.eos_token_id
    eos_ids = {*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id} - {None}
    if not eos_ids:
        raise ConfigError(f"model {model!r} names no EOS token: set eos_token in its tokenizer or generation config")
    return Renderer(tokenizer, sorted(eos_ids), Path(chat_template).read_text() if chat_template else "")
