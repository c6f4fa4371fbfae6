"""Preference pairs: two answers to one prompt of which the first is better, read from any source of tasks.

Axes: P pairs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from rlft.chat.messages import normal
from rlft.config import DataConfig, PreferencesConfig
from rlft.data.sources import UNSET, BadRow, describe, has_lone_surrogate, read_rows, without_nulls
from rlft.errors import DataError, RenderError
from rlft.rewards.learned.models import Encoder
from rlft.rollout.renderer import Renderer
from rlft.types import Message

Pair = TypeVar("Pair")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Preference:
    """`chosen` is the better answer by at least `margin` units of score."""

    id: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float = 0.0


class LoadedPreferences(NamedTuple):
    """What a source holds: its usable pairs in order, and the rows left out."""

    pairs: tuple[Preference, ...]
    bad_rows: tuple[BadRow, ...]


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as whole token sequences, prompt included."""

    chosen: np.ndarray  # int32
    rejected: np.ndarray
    margin: float
    answer_tokens: tuple[int, int]  # of the chosen and the rejected answer alone

    @property
    def width(self) -> int:
        """Tokens of the longer side: both are padded to it."""
        return max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A pair as a policy is trained on it: one context, and two answers up to their EOS."""

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    gap: float  # reward of the chosen answer less that of the other


class _Unusable(Exception):
    """A row that cannot become a pair: field, and why."""


def load_preferences(data: DataConfig, fields: PreferencesConfig) -> LoadedPreferences:
    """Read pairs in the preference format of Hugging Face. A broken row is left out, never fatal by itself.

    Prompt and answers are texts or lists of messages. With `data.prompt` = "" the answers hold the whole
    conversation, and what both begin with is the prompt; whole conversations beside a prompt that they repeat are taken as well.

    Raises:
        DataError: no such source, or not one usable row.
        ConfigError: as of tasks.
    """
    if not data.source:
        raise DataError(UNSET)
    pairs: dict[str, Preference] = {}
    bad_rows: list[BadRow] = []
    for number, (source, row, value) in enumerate(read_rows(data), start=1):
        try:
            pair = _to_pair(value, number, data, fields)
            if pair.id in pairs:
                raise _Unusable(data.id or "id", f"the id {pair.id!r} stands in an earlier row too")
            pairs[pair.id] = pair
        except _Unusable as error:
            bad_rows.append(BadRow(source, row, *error.args))
        if len(pairs) == data.limit:
            break
    if not pairs:
        raise DataError(f"data.source {data.source!r}: no usable preference pair in {len(bad_rows)} rows:\n{describe(bad_rows)}")
    return LoadedPreferences(tuple(pairs.values()), tuple(bad_rows))


def encode_pairs(pairs: Sequence[Preference], encoder: Encoder) -> tuple[list[EncodedPair], list[BadRow]]:
    """Pairs as tokens; one that is longer than the model takes is set aside, for cut answers cannot be compared.

    Raises:
        DataError: none is left.
    """
    encoded, bad = [], []
    for number, pair in enumerate(pairs, start=1):
        try:
            sides = [encoder.ids([*pair.prompt, *answer]) for answer in (pair.chosen, pair.rejected)]
        except RenderError as error:
            bad.append(BadRow(f"pair {pair.id}", number, "", str(error)))
            continue
        longest = max(map(len, sides))
        if longest > encoder.max_length:
            bad.append(BadRow(f"pair {pair.id}", number, "", f"{longest} tokens are more than the model's {encoder.max_length}"))
            continue
        if sides[0] == sides[1]:
            bad.append(BadRow(f"pair {pair.id}", number, "", "both answers are the same tokens"))
            continue
        said = [sum(len(encoder.tokens(m["content"])) for m in answer) for answer in (pair.chosen, pair.rejected)]
        encoded.append(EncodedPair(np.asarray(sides[0], np.int32), np.asarray(sides[1], np.int32), pair.margin, (said[0], said[1])))
    if not encoded:
        raise DataError(f"no preference pair is left for the model:\n{describe(bad)}")
    return encoded, bad


def tokenize_pairs(
    pairs: Sequence[Preference], renderer: Renderer, max_length: int, margins: bool
) -> tuple[list[TokenPair], list[BadRow]]:
    """Pairs as a policy's tokens; one that it cannot learn from is set aside.

    Args:
        max_length: tokens of prompt and answer together that the model takes.
        margins: a pair's gap is its margin, which has to be above 0; else it is 1.

    Raises:
        DataError: none is left.
    """
    fitting, bad = [], []
    for number, pair in enumerate(pairs, start=1):
        try:
            prompt_ids = renderer.render(pair.prompt)
            room = max_length - len(prompt_ids)
            chosen, rejected = (_target(answer, renderer, pair.prompt, room) for answer in (pair.chosen, pair.rejected))
            if chosen == rejected:
                raise _Unusable("", "both answers are the same tokens")
            if margins and pair.margin <= 0:
                raise _Unusable("margin", f"expected more than 0, got {pair.margin:g}; put the better answer first")
            fitting.append(TokenPair(prompt_ids, chosen, rejected, pair.margin if margins else 1.0))
        except _Unusable as error:
            bad.append(BadRow(f"pair {pair.id}", number, *error.args))
        except RenderError as error:
            bad.append(BadRow(f"pair {pair.id}", number, "", str(error)))
    if not fitting:
        raise DataError(f"no preference pair is left for the policy:\n{describe(bad)}")
    return fitting, bad


def _target(answer: Sequence[Message], renderer: Renderer, prompt: Sequence[Message], room: int) -> list[int]:
    if len(answer) != 1 or answer[0]["role"] != "assistant" or answer[0].get("tool_calls"):
        raise _Unusable("", "expected an answer of one assistant message without tool calls; put what was said before into the prompt")
    ids = renderer.target(answer[0]["content"], prompt)
    if len(ids) > room:
        raise _Unusable("", f"an answer of {len(ids)} tokens, where the model has room for {room} after the prompt")
    return ids


class PairStream(Iterator[Pair], Generic[Pair]):
    """Pairs without end, epoch after epoch, each exactly once per epoch; the order is a function of (seed, epoch)."""

    def __init__(self, pairs: Sequence[Pair], seed: int = 0, shuffle: bool = True) -> None:
        self._pairs, self._seed, self._shuffle, self.position = pairs, seed, shuffle, 0
        self._order = np.arange(len(pairs))

    def __next__(self) -> Pair:
        epoch, index = divmod(self.position, len(self._pairs))
        if index == 0 and self._shuffle:
            self._order = np.argsort(np.random.PCG64([self._seed % 2**64, epoch]).random_raw(len(self._pairs)), kind="stable")
        self.position += 1
        return self._pairs[self._order[index]]


def _to_pair(value: Any, number: int, data: DataConfig, fields: PreferencesConfig) -> Preference:
    if isinstance(value, BadRow):
        raise _Unusable(value.field, value.reason)
    if not isinstance(value, Mapping):
        raise _Unusable("", f"expected an object with fields, got {type(value).__name__}")
    for name in filter(None, (data.prompt, fields.chosen, fields.rejected, fields.margin, data.id)):
        if value.get(name) is None:
            hint = '; for answers that hold their prompt set data.prompt = ""' if name == data.prompt else ""
            raise _Unusable(name, ("missing" if name not in value else "null") + hint)
        if has_lone_surrogate(value[name]):
            raise _Unusable(name, "holds a lone surrogate character, which is not valid Unicode")
    chosen, rejected = value[fields.chosen], value[fields.rejected]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise _Unusable(fields.rejected, "expected text where the chosen answer is text, and messages where it is messages")
    if data.prompt:
        prompt = _messages(value[data.prompt], "user", data.prompt)
    else:
        prompt, chosen, rejected = _common(chosen, rejected, fields)
    better, worse = (_answer(answer, prompt, name) for answer, name in ((chosen, fields.chosen), (rejected, fields.rejected)))
    if better == worse:
        raise _Unusable(fields.rejected, "the same as the chosen answer")
    margin = value[fields.margin] if fields.margin else 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise _Unusable(fields.margin, f"expected a finite number, got {margin!r}")
    system = ({"role": "system", "content": data.system},) if data.system else ()
    if system and any(m["role"] == "system" for m in prompt):
        raise _Unusable(data.prompt, "has a system message of its own; leave data.system empty")
    return Preference(str(value[data.id]) if data.id else str(number), (*system, *prompt), better, worse, float(margin))


def _answer(value: Any, prompt: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    answer = _messages(value, "assistant", field)
    if answer[: len(prompt)] == prompt:
        answer = answer[len(prompt) :]
    if not answer:
        raise _Unusable(field, "holds nothing after the prompt")
    return answer


def _common(chosen: Any, rejected: Any, fields: PreferencesConfig) -> tuple[tuple[Message, ...], Any, Any]:
    """Prompt and answers of two conversations: the turns that both begin with are the prompt.

    Where they part within a turn, that turn is the answer from its beginning: two answers may begin alike.
    """
    if isinstance(chosen, str):
        chosen, rejected = _turns(chosen, fields.chosen), _turns(rejected, fields.rejected)
    sides = _messages(chosen, "assistant", fields.chosen), _messages(rejected, "assistant", fields.rejected)
    count = next((i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b), min(map(len, sides)))
    if not count:
        raise _Unusable(fields.chosen, "chosen and rejected have no common beginning, the prompt; name its field in data.prompt")
    return sides[0][:count], sides[0][count:] or [], sides[1][count:] or []


def _turns(text: str, field: str) -> list[Message]:
    """A conversation written as "Human: ... Assistant: ...", the form of the HH-RLHF data."""
    before, *pieces = TURN.split(text)
    if before.strip() or not pieces:
        told = "text in which no turn is marked ('Human: ...', blank line, 'Assistant: ...'): where its answer begins is not known"
        raise _Unusable(field, f"{told}; name the prompt's field in data.prompt, or give messages")
    roles = ("user" if speaker == "Human" else "assistant" for speaker in pieces[::2])
    return [{"role": role, "content": said.strip()} for role, said in zip(roles, pieces[1::2], strict=True)]


def _messages(value: Any, role: str, field: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": role, "content": value},)
    if not isinstance(value, Sequence):
        raise _Unusable(field, f"expected text or a list of messages, got {type(value).__name__}")
    try:
        return tuple(normal([without_nulls(message) for message in value]))
    except RenderError as error:
        raise _Unusable(field, str(error)) from error
