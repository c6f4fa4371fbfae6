"""A tokenizer with its chat template: conversations -> token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rlft.chat.codec import Codec, ControlTokens
from rlft.chat.losses import Shape, check_shown, shape_of
from rlft.chat.messages import escaped, fresh, normal
from rlft.chat.template import ChatTemplate
from rlft.errors import RenderError
from rlft.types import Message

ASSISTANT = "assistant"
QUESTION: Message = {"role": "user", "content": "?"}  # what an answer is rendered behind where no other question is known


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and which of its characters are not to begin a control token."""

    text: str
    shield: Mapping[str, str]


class Chat:
    """Token ids of conversations. Text by others is split where it looks like a control token.

    Control tokens are the special tokens, the ids that end an answer, and every added token that the template writes. In an
    assistant's own message only those are split that open or close a turn: `<think>` and `<tool_call>` are its to write.

    Args:
        tokenizer: a transformers tokenizer.
        eos_ids: every id that ends an answer.
        given: the text of a Jinja template; "": the tokenizer's own.

    Raises:
        ConfigError: as of a ChatTemplate or a Codec.
    """

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int] = (), given: str = "") -> None:
        self.tokenizer, self.eos_ids = tokenizer, frozenset(eos_ids)
        self.template, self.codec = ChatTemplate(tokenizer, given), Codec(tokenizer)
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        ends = {*tokenizer.convert_ids_to_tokens(sorted(self.eos_ids)), tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
        ends -= {None}
        written = {token for token in added if token in self.template.source and re.search(r"[^\w\s]", token)}  # no indentation
        self.control = ControlTokens({*(t for t, special in added.items() if special), *tokenizer.all_special_tokens, *ends, *written})
        self.control_ids = frozenset(tokenizer.convert_tokens_to_ids(sorted(self.control.tokens))) - {tokenizer.unk_token_id}
        self._shown: set[Shape] = set()
        frame = self.template.text([QUESTION], open_answer=False)
        self.turns = ControlTokens({*ends, *(token for token in self.control.tokens if token in frame)})

    def ids(self, messages: Sequence[Message], tools: Sequence[Any] = (), open_answer: bool = True) -> list[int]:
        """Token ids of a conversation; with `open_answer` up to where the assistant speaks next.

        A conversation that ends with an assistant's message is then left open behind it. Raises RenderError.
        """
        return self.encode(self.rendered(messages, tools, open_answer))

    def encode(self, rendered: Rendered) -> list[int]:
        """Token ids of a conversation, and before it what the tokenizer puts there where no template does."""
        return [*self.prefix, *self.codec.encode(rendered.text, rendered.shield)]

    @property
    def prefix(self) -> list[int]:
        """What the tokenizer puts before a text; a template writes that itself."""
        return self.codec.prefix if self.template.plain else []

    def rendered(self, messages: Sequence[Message], tools: Sequence[Any] = (), open_answer: bool = True) -> Rendered:
        """The text of `ids`. Raises RenderError."""
        said = normal(messages)
        if not said:
            raise RenderError("an empty conversation: give at least one message")
        continued = open_answer and said[-1]["role"] == ASSISTANT
        plain = said
        shield, said, shown = self._shielded(said, tools)
        if not continued:
            text = self._unescaped(self.template.text(said, shown, open_answer), shield)
            self._check_shown(plain, tools, open_answer)
            return Rendered(text, shield)
        mark = fresh(1, key_of(said, shown), self.template.source)[0]
        text = self.template.text([*said[:-1], {**said[-1], "content": said[-1]["content"] + mark + " "}], shown, open_answer=False)
        before, found, after = self._unescaped(text, shield).rpartition(mark)
        if not found:
            raise RenderError("the chat template does not render the assistant's content; set chat_template to one that does")
        self._check_shown(plain, tools, open_answer=False)
        return Rendered(before if after.startswith(" ") else before.rstrip(), shield)  # a template that trims it trims all of it

    def after(self, messages: Sequence[Message], tools: Sequence[Any] = (), open_answer: bool = True) -> Rendered:
        """What follows an assistant's content: the end of its message, and `messages` up to the next answer. Raises RenderError."""
        said = normal(messages)
        shield, said, shown = self._shielded(said, tools)
        mark = fresh(1, key_of(said, shown), self.template.source)[0]
        turn = [QUESTION, {"role": ASSISTANT, "content": mark}, *said]
        if said and said[-1]["role"] == ASSISTANT:
            raise RenderError("an environment answered with an assistant's message last; the policy speaks next")
        _, found, after = self._unescaped(self.template.text(turn, shown, open_answer), shield).rpartition(mark)
        if not found:
            raise RenderError("the chat template does not render the assistant's content; set chat_template to one that does")
        self._check_shown(turn, tools, open_answer)
        return Rendered(after, shield)

    def opening(self, messages: Sequence[Message], role: str) -> Rendered:
        """What stands before the content of one more message. Raises RenderError."""
        said = normal(messages)
        shield, said, _ = self._shielded(said, ())
        mark = fresh(1, key_of(said, ()), self.template.source)[0]
        text = self.template.text([*said, {"role": role, "content": mark}], open_answer=False)
        before, found, _ = self._unescaped(text, shield).rpartition(mark)
        if not found:
            raise RenderError(f"the chat template does not render what role {role!r} says last; set chat_template to one that does")
        return Rendered(before, shield)

    def joined(self, before: Rendered, text: str, role: str) -> Rendered:
        """A message's content behind what stands before it."""
        shield, (content,) = self._hidden([{"role": role, "content": text}], before.text)
        return Rendered(before.text + content["content"], {**before.shield, **shield})

    @cached_property
    def closing(self) -> Sequence[int]:
        """The tokens that end an answer where the conversation ends with it."""
        rendered = self.after([], open_answer=False)
        return tuple(self.codec.encode(rendered.text, first=False))

    def _check_shown(self, messages: Sequence[Message], tools: Sequence[Any], open_answer: bool) -> None:
        shape = shape_of(messages, tools, open_answer)
        if shape not in self._shown:
            check_shown(self.template, messages, tools, open_answer)
            self._shown.add(shape)

    def _shielded(self, messages: list[Message], tools: Sequence[Any]) -> tuple[dict[str, str], list[Message], list[Any]]:
        """Messages and tools in which a private character stands for the first one of everything that looks like a control token."""
        offered = {"role": "", "tools": list(tools)}
        shield, (*said, shown) = self._hidden([*messages, offered], self.template.source)
        return shield, said, shown["tools"]

    def _hidden(self, messages: list[Message], *taken: str) -> tuple[dict[str, str], list[Message]]:
        found: set[str] = set()
        for message in messages:
            _look(message, self._control_of(message), found)
        if not found:
            return {}, messages
        if alone := found & self.control.tokens:
            raise RenderError(f"the character {min(alone)!r} is a control token of the model, which cannot be split; take it out")
        chars = sorted(found)
        private = dict(zip(chars, fresh(len(chars), key_of(messages, ()), *taken), strict=True))
        said = [_put(message, self._control_of(message), private) for message in messages]
        return {new: old for old, new in private.items()}, said

    def _control_of(self, message: Message) -> ControlTokens:
        return self.turns if message["role"] == ASSISTANT else self.control

    def _unescaped(self, text: str, shield: Mapping[str, str]) -> str:
        for char in shield:
            text = text.replace(escaped(char), char)
        return text


def key_of(messages: Sequence[Message], tools: Sequence[Any]) -> str:
    try:
        return json.dumps([messages, tools], ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RenderError(f"messages and tools hold what JSON cannot ({error}): {messages!r:.200}") from error


def _look(value: Any, control: ControlTokens, found: set[str]) -> None:
    if isinstance(value, str):
        found.update(value[at] for at in control.places(value))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _look(key, control, found)
            _look(part, control, found)
    elif isinstance(value, list | tuple):
        for part in value:
            _look(part, control, found)


def _put(value: Any, control: ControlTokens, private: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        chars = list(value)
        for at in control.places(value):
            chars[at] = private[chars[at]]
        return "".join(chars)
    if isinstance(value, Mapping):
        return {_put(key, control, private): _put(part, control, private) for key, part in value.items()}
    return [_put(part, control, private) for part in value] if isinstance(value, list | tuple) else value
