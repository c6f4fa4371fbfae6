"""Plain Python values as JSON and back: what crosses the border of the sandbox, instead of pickles."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 50
MAX_BYTES = 1 << 20

# JSON has no tuples, sets, big integers, NaN, nor keys other than text. What it lacks is written {tag: content}.
_TEXT = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_SAFE_INT = 1 << 63


def dumps(value: Any) -> str:
    """Encode None, bool, int, float, str, list, tuple, dict and set of exactly these types.

    Raises ValueError for any other type (subclasses too), for more than MAX_DEPTH levels, which includes
    a value that contains itself, and for more than MAX_BYTES characters.
    """
    room = [MAX_BYTES]
    text = json.dumps(_pack(value, 1, room), ensure_ascii=True, separators=(",", ":"))
    if len(text) > MAX_BYTES:
        raise ValueError(f"the value takes {len(text)} bytes, more than {MAX_BYTES}")
    return text


def loads(text: str | bytes) -> Any:
    """Decode what `dumps` wrote. The text is not trusted: whatever is wrong with it raises ValueError."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"the value takes {len(text)} bytes, more than {MAX_BYTES}")
    try:
        return unpack(json.loads(text))
    except RecursionError as error:
        raise ValueError("the value is nested too deeply") from error


def _pack(value: Any, depth: int, room: list[int]) -> Any:
    kind = type(value)
    room[0] -= 1 + (len(value) if kind is str else 0)
    if room[0] < 0:
        raise ValueError(f"the value takes more than {MAX_BYTES} bytes")
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_SAFE_INT < value < _SAFE_INT else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if depth > MAX_DEPTH:
        raise ValueError(f"the value is nested more than {MAX_DEPTH} deep")
    if kind is list:
        return [_pack(item, depth + 1, room) for item in value]
    if kind is tuple or kind is set:
        return {kind.__name__: [_pack(item, depth + 1, room) for item in value]}
    if kind is dict:
        return {"dict": [[_pack(key, depth + 1, room), _pack(item, depth + 1, room)] for key, item in value.items()]}
    raise ValueError(f"a value of type {kind.__name__} is not plain data (None, bool, int, float, str, list, tuple, dict, set)")


def unpack(packed: Any, depth: int = 1) -> Any:
    """The value of parsed JSON; ValueError if it is not what `dumps` writes."""
    if packed is None or type(packed) in (bool, str, int):
        return packed
    if type(packed) is float:
        if not math.isfinite(packed):
            raise ValueError("a number that is not finite is written with its tag")
        return packed
    if depth > MAX_DEPTH:
        raise ValueError(f"the value is nested more than {MAX_DEPTH} deep")
    if type(packed) is list:
        return [unpack(item, depth + 1) for item in packed]
    if len(packed) != 1:
        raise ValueError("an object must have one tag")
    ((tag, content),) = packed.items()
    if tag in ("int", "float"):
        return _number(tag, content)
    if tag not in ("tuple", "set", "dict") or type(content) is not list:
        raise ValueError(f"unknown tag {tag[:20]!r}")
    if tag == "tuple":
        return tuple(unpack(item, depth + 1) for item in content)
    try:
        return _hashed(tag, content, depth)
    except TypeError as error:
        raise ValueError("a key or member cannot be hashed") from error


def _hashed(tag: str, content: list[Any], depth: int) -> dict[Any, Any] | set[Any]:
    if tag == "set":
        members = [unpack(item, depth + 1) for item in content]
        _check_spread(members)
        return set(members)
    if any(type(pair) is not list or len(pair) != 2 for pair in content):
        raise ValueError("a dict is written as pairs")
    pairs = [(unpack(key, depth + 1), unpack(item, depth + 1)) for key, item in content]
    _check_spread([key for key, _ in pairs])
    return dict(pairs)


def _check_spread(keys: list[Any]) -> None:
    """Thousands of keys made to share a hash would keep the reader busy for seconds."""
    if len(keys) > 1000 and len({hash(key) for key in keys}) * 4 < len(keys):
        raise ValueError("the keys share their hashes")


def _number(tag: str, content: Any) -> int | float:
    if type(content) is not str:
        raise ValueError(f"{tag} is written as text")
    if tag == "int":
        return int(content, 16)
    if content not in _TEXT:
        raise ValueError(f"unknown float {content[:20]!r}")
    return _TEXT[content]
