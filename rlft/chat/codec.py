"""Rendered text -> token ids, in which text by others is never read as a control token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlft.errors import ConfigError

CHUNK = 1024  # texts that are encoded at once


class ControlTokens:
    """A set of control tokens, and where they stand in a text."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = frozenset(token for token in tokens if token)
        self._lengths = sorted({len(token) for token in self.tokens})
        self._beginnings = frozenset(token[:n] for token in self.tokens for n in range(1, len(token)))
        firsts = "".join(map(re.escape, sorted({token[0] for token in self.tokens})))
        self._first = re.compile(f"[{firsts}]" if firsts else r"(?!)")

    def places(self, text: str) -> list[int]:
        """Where a control token begins in `text`, or where its end is the beginning of one that what follows may complete."""
        longest = self._lengths[-1] if self._lengths else 0
        return [at for m in self._first.finditer(text) if self._begins(text, at := m.start(), len(text) - at < longest)]

    def _begins(self, text: str, at: int, near_end: bool) -> bool:
        return any(text[at : at + n] in self.tokens for n in self._lengths) or (near_end and text[at:] in self._beginnings)


class Codec:
    """A tokenizer that can be told which characters of a text are not to begin a control token.

    Raises:
        ConfigError: a tokenizer without the tables of the `tokenizers` library.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"{type(tokenizer).__name__} is no fast tokenizer; save one that `tokenizers` reads (tokenizer.json)")
        self.tokenizer = tokenizer
        self.added = frozenset(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}  # that one stands for any text
        self.tokens_a_byte = _tokens_a_byte(tokenizer.backend_tokenizer)
        self._made: dict[tuple[bool, bool], Any] = {}
        plain, whole = self.encode("a"), tokenizer("a")["input_ids"]
        starts = [k for k in range(len(whole) - len(plain) + 1) if whole[k : k + len(plain)] == plain]
        self.prefix: list[int] = whole[: starts[0]] if starts else []  # what it puts before a text: the BOS
        self.suffix: list[int] = whole[starts[0] + len(plain) :] if starts else []  # and behind it

    def encode(self, text: str, shield: Mapping[str, str] | None = None, first: bool = True) -> list[int]:
        """Token ids of a text, nothing put before or after it.

        Args:
            shield: private characters in the text, with what each stands for: the first character of what looks like a control
                token and is none. The tokens of the text between two control tokens that hold one are made without control tokens.
            first: a sequence begins with the text; otherwise it stands behind other tokens.
        """
        if not shield or not any(char in text for char in shield):
            return list(self._encoding(text, first).ids)
        found = self._encoding(text, first)
        ids: list[int] = []
        piece: list[int] = []
        start = 0
        for token, (begin, end) in zip([*found.ids, None], [*found.offsets, (len(text), len(text))], strict=True):
            if token is not None and not self._stands(token, text[begin:end]):
                piece.append(token)
                continue
            between = text[start:begin]
            ids += self._split(between, shield, first and not start) if any(char in between for char in shield) else piece
            ids += [] if token is None else [token]
            piece, start = [], end
        return ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each of many texts that begin a sequence."""
        ids: list[list[int]] = []
        for at in range(0, len(texts), CHUNK):
            ids += self._call(list(texts[at : at + CHUNK]))["input_ids"]
        return ids

    def _stands(self, token: int, text: str) -> bool:
        """Whether an id was found as an added token in the text, and did not come of it as the id of unknown text may."""
        if token not in self.added:
            return False
        added = self.tokenizer.added_tokens_decoder[token]
        return added.normalized or text.strip() == added.content.strip()

    def _split(self, text: str, shield: Mapping[str, str], first: bool) -> list[int]:
        table = str.maketrans(dict(shield))
        ids = self._copy(True, first).encode(text.translate(table), add_special_tokens=False).ids
        if self.added.isdisjoint(ids):
            return ids
        # The vocabulary itself holds the control token as a piece (Unigram): cut it after its first character.
        pieces = re.split(f"(?<=[{''.join(shield)}])", text)
        parts = (self._copy(True, first and not n).encode(part.translate(table), add_special_tokens=False) for n, part in enumerate(pieces))
        return [i for part in parts for i in part.ids]

    def _encoding(self, text: str, first: bool) -> Any:
        return self._call(text).encodings[0] if first else self._copy(False, False).encode(text, add_special_tokens=False)

    def _call(self, text: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False)

    def _copy(self, split: bool, first: bool) -> Any:
        """The tokenizer without control tokens (`split`), or for text that stands behind other tokens (not `first`)."""
        if (split, first) not in self._made:
            from tokenizers import Tokenizer

            table = json.loads(self.tokenizer.backend_tokenizer.to_str())
            table |= {"truncation": None, "padding": None, "post_processor": None}
            if split:
                table["added_tokens"] = []
            self._made[split, first] = Tokenizer.from_str(json.dumps(table if first else _never_first(table)))
        return self._made[split, first]


def _tokens_a_byte(backend: Any) -> int:
    """How many tokens a byte of text can become at most; 0 where that is not known."""
    steps, normalizer = repr(backend.pre_tokenizer), backend.normalizer
    if "ByteLevel" not in steps or "add_prefix_space=True" in steps:
        return 0
    if normalizer is None:
        return 1
    return 3 if type(normalizer).__name__ == "NFC" else 0  # composing makes some characters longer, by 3 at most


def _never_first(table: Any) -> Any:
    """A tokenizer's table whose Metaspace takes no text for the beginning of a sequence."""
    if isinstance(table, list):
        return [_never_first(part) if isinstance(part, dict) else part for part in table]
    inner = ("pre_tokenizer", "pretokenizers")
    changed = {key: _never_first(part) if key in inner and part else part for key, part in table.items()}
    return changed | ({"prepend_scheme": "never"} if table.get("prepend_scheme") == "first" else {})
