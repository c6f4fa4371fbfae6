"""Messages <-> tokens through the model's own chat template; it only ever appends.

Sampled ids are carried forward as they are: what the policy wrote is decoded for reading,
never encoded again.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

from rlft.chat.chat import ASSISTANT, QUESTION, Chat, Rendered, key_of
from rlft.chat.messages import normal
from rlft.chat.template import attempt
from rlft.chat.thoughts import MARKS, left_open
from rlft.envs.base import ToolSpec
from rlft.errors import ConfigError, RenderError
from rlft.files import read_text
from rlft.types import Message

OPENING = 64  # tokens at a prompt's end among which a chat template opens the thought
CACHED = 1024  # prompts, and as many replies of environments, whose ids are kept


class Renderer:
    """Chat template of one model.

    What others wrote (prompts, tools, environments) is encoded with its control tokens split: it cannot forge a turn.

    Args:
        tokenizer: a transformers tokenizer. Without a chat template it gets a plain one:
            contents joined as they are, an EOS after each assistant message, before all of it what the tokenizer puts there.
        eos_ids: every id that ends a completion.
        chat_template: the text of a Jinja template to use instead of the tokenizer's own.

    Raises:
        ConfigError: a template that renders no user message, or a tokenizer that `tokenizers` does not know.
    """

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int], chat_template: str = "") -> None:
        self.tokenizer, self.eos_ids = tokenizer, frozenset(eos_ids)
        self.chat = Chat(tokenizer, eos_ids, chat_template)
        self._outside = self.eos_ids | {tokenizer.bos_token_id, tokenizer.pad_token_id}
        self._prompts: dict[str, array[int]] = {}
        self._replies: dict[str, array[int]] = {}

    @property
    def template(self) -> str:
        """The template that serves conversations without tools."""
        return self.chat.template.choose(())

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Token ids of a conversation up to where the policy speaks next.

        One that ends with an assistant's message is left open behind it: the policy goes on with that message.

        Raises:
            RenderError: the template refuses the messages, or they have a shape that is none.
        """
        key = key_of(messages, tools)
        if key not in self._prompts:
            _keep(self._prompts, key, self.chat.ids(messages, tools))
        return self._prompts[key].tolist()

    def extend(self, sampled_ids: Sequence[int], messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Token ids that follow the sampled ids: the end of the assistant's message, the new messages, and the opening of the next
        answer. A message that the policy ended by any of the EOS ids has its one end, and gets no second from the template.

        Raises:
            RenderError: as `render`, or a template that does not render an assistant's content.
        """
        ids = self._reply(messages, tools)
        if not ids or not sampled_ids or sampled_ids[-1] not in self.eos_ids:
            return ids
        closes = bool(self.chat.closing) and self.chat.closing[0] in self.chat.control_ids
        return ids[1:] if ids[0] == sampled_ids[-1] or (closes and ids[0] in self.chat.control_ids) else ids

    def target(self, text: str, messages: Sequence[Message] = (QUESTION,), tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Token ids that a demonstration teaches behind `render(messages)`, up to the EOS that closes it.

        Together the two are what the template renders for the whole conversation, less what it writes behind that EOS (a line break).

        Raises:
            RenderError: they would not be: the template opens its answers otherwise than its prompts end, loses a part of the
                text, or closes it with no EOS of the model.
        """
        return self.demonstrate(text, messages, tools)[1]

    def demonstrate(self, text: str, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> tuple[list[int], list[int]]:
        """`render(messages)`, and `target` behind it. Raises RenderError."""
        prompt, whole = self._demonstration(text, messages, tools)
        ids = self.chat.encode(prompt)
        return ids, self._taught(text, prompt, whole, ids, self.chat.encode(whole))

    def demonstrations(self, asked: Sequence[tuple[str, Sequence[Message]]]) -> list[tuple[list[int], list[int]] | RenderError]:
        """`demonstrate` of each (text, messages), encoded in batches; or why it cannot be taught."""
        rendered = [attempt(self._demonstration, text, messages, ()) for text, messages in asked]
        ids = iter(self.encode_many([side for pair in rendered if not isinstance(pair, RenderError) for side in pair]))
        found: list[tuple[list[int], list[int]] | RenderError] = []
        for (text, _), pair in zip(asked, rendered, strict=True):
            if isinstance(pair, RenderError):
                found.append(pair)
                continue
            prompt_ids = next(ids)
            taught = attempt(self._taught, text, *pair, prompt_ids, next(ids))
            found.append(taught if isinstance(taught, RenderError) else (prompt_ids, taught))
        return found

    def _demonstration(self, text: str, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[Rendered, Rendered]:
        asked = normal(messages)
        begun = asked.pop()["content"] if asked and asked[-1]["role"] == ASSISTANT else ""
        answer = {"role": ASSISTANT, "content": begun + text}
        return self.chat.rendered(messages, tools), self.chat.rendered([*asked, answer], tools, open_answer=False)

    def _taught(self, text: str, prompt: Rendered, whole: Rendered, prompt_ids: Sequence[int], whole_ids: Sequence[int]) -> list[int]:
        way_out = "change the answer, or set chat_template to one that writes answers as its prompts open them"
        if not whole.text.startswith(prompt.text):
            at = len(commonprefix([whole.text, prompt.text]))
            opened, said = prompt.text[at:], whole.text[at : at + 40]
            raise RenderError(f"the prompt ends with {opened!r}, where the chat template begins this answer with {said!r}; {way_out}")
        said = whole.text[len(prompt.text) :]
        if _squashed(_plain(text, {})) not in _squashed(_plain(said, whole.shield)):
            raise RenderError(f"the chat template leaves out a part of the answer {text!r:.80}: it renders {said!r:.80}; {way_out}")
        if list(whole_ids[: len(prompt_ids)]) != list(prompt_ids):
            raise RenderError(f"the answer's beginning {said[:20]!r} joins the prompt's last token {prompt.text[-20:]!r}; {way_out}")
        ids = list(whole_ids[len(prompt_ids) :])
        end = next((n for n, i in enumerate(ids) if i in self.eos_ids), None)
        if end is None:
            names = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(sorted(self.eos_ids))))
            raise RenderError(f"the chat template closes an answer with {said[-20:]!r}, and with no EOS of the model ({names}); {way_out}")
        return ids[: end + 1]

    def lengths(
        self, conversations: Sequence[Sequence[Message]], tools: Sequence[ToolSpec] = (), enough: int = 0
    ) -> list[int | RenderError]:
        """Tokens of `render` of each, counted in batches; or why it cannot be rendered.

        Args:
            enough: where a text cannot have more tokens than this, by its bytes, it is not encoded, and that bound is returned.
        """
        rendered = [attempt(self.chat.rendered, messages, tools) for messages in conversations]
        bounds = [0 if isinstance(made, RenderError) else self._bound(made) for made in rendered]
        sure = [0 < bound <= enough for bound in bounds]
        known = zip(rendered, sure, strict=True)
        ids = iter(self.encode_many([made for made, skip in known if not skip and not isinstance(made, RenderError)]))
        found = zip(rendered, bounds, sure, strict=True)
        return [made if isinstance(made, RenderError) else bound if skip else len(next(ids)) for made, bound, skip in found]

    def _bound(self, rendered: Rendered) -> int:
        """The most tokens that a text can have; 0 where that is not known."""
        each = self.chat.codec.tokens_a_byte
        return each and len(self.chat.prefix) + each * len(rendered.text.encode())

    def encode_many(self, rendered: Sequence[Rendered]) -> list[list[int]]:
        """Token ids of many conversations, in batches and without keeping them."""
        plain = iter(self.chat.codec.encode_many([r.text for r in rendered if not r.shield]))
        return [self.chat.encode(r) if r.shield else [*self.chat.prefix, *next(plain)] for r in rendered]

    def parse(self, completion_ids: Sequence[int]) -> Message:
        """The assistant message that the policy wrote: everything but the ids that begin, end or pad a completion.

        Other special tokens (`<tool_call>`, `<think>`) stay: parsers and rewards read them.
        """
        return {"role": ASSISTANT, "content": self.text([i for i in completion_ids if i not in self._outside])}

    def opened(self, prompt_ids: Sequence[int], messages: Sequence[Message]) -> str:
        """The mark of the thought that a prompt leaves open, "" where it leaves none open.

        Args:
            messages: what was said last; a begun message of the assistant may have opened a thought too.
        """
        if messages and messages[-1]["role"] == ASSISTANT:
            return left_open(messages[-1]["content"])
        end = self.text(prompt_ids[-OPENING:]).rstrip()
        return next((opening for opening, _ in MARKS if end.endswith(opening)), "")

    def readable(self, ids: Sequence[int]) -> str:
        """What `ids` say to a person: no special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def text(self, ids: Sequence[int]) -> str:
        """Everything in `ids`, special tokens included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _reply(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[int]:
        key = key_of(messages, tools)
        if key not in self._replies:
            after = self.chat.after(messages, tools)
            _keep(self._replies, key, self.chat.codec.encode(after.text, after.shield, first=False))
        return self._replies[key].tolist()


def _keep(kept: dict[str, array[int]], key: str, ids: Sequence[int]) -> None:
    """Keep ids, four bytes each, in place of the oldest."""
    kept[key] = array("i", ids)
    if len(kept) > CACHED:
        del kept[next(iter(kept))]


def _plain(text: str, shield: Mapping[str, str]) -> str:
    return text.translate(str.maketrans(dict(shield)))


def _squashed(text: str) -> str:
    """A text without white space, which templates trim."""
    return "".join(text.split())


def check_given_template(chat_template: str) -> None:
    """Refuse a file that is not there or holds no Jinja template; "" names none. Raises ConfigError."""
    if chat_template:
        from rlft.rollout.template_file import check_template_file  # loads jinja2, which few runs need by themselves

        check_template_file(chat_template)


def read_template(chat_template: str) -> str:
    """The text of a template's file; "" names none. Raises ConfigError."""
    return read_text(chat_template, "chat_template") if chat_template else ""


def load_renderer(model: str, chat_template: str = "") -> Renderer:
    """Tokenizer, EOS ids and chat template of a model folder or Hub name. No code that a model brings is run.

    Args:
        chat_template: a file with a Jinja template to use instead of the model's own.

    Raises:
        ConfigError: no such model, no tokenizer, one that needs code of its own, or no template file.
    """
    check_given_template(chat_template)
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    from transformers.utils import cached_file

    here: Any = {"local_files_only": Path(model).is_dir()}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False, **here)
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model, trust_remote_code=False, **here))
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            told = "needs code of its own (auto_map), which is never run: use one that transformers has"
            raise ConfigError(f"model {model!r} {told}") from error
        raise ConfigError(f"model {model!r}: no tokenizer found: give a folder in Hugging Face format or a Hub name ({error})") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes where there are no tokenizer files
        raise ConfigError(f"model {model!r}: no tokenizer found: save one beside the model (tokenizer.save_pretrained)")
    if cached_file(model, "generation_config.json", _raise_exceptions_for_missing_entries=False, **here):  # in the folder or on the Hub
        generation = GenerationConfig.from_pretrained(model, **here)
    listed = generation.eos_token_id
    eos_ids = {*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id} - {None}
    if not eos_ids:
        raise ConfigError(f"model {model!r} names no EOS token: set eos_token in its tokenizer or generation config")
    return Renderer(tokenizer, sorted(eos_ids), read_template(chat_template))
