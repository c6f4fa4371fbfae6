"""Plain values come back as they went in; whatever else is written is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.sandbox import values, wire
from rlft.sandbox.forks import fair_share
from rlft.sandbox.types import Execution, Limits

KEYS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.tuples(st.integers(), st.text()))
PLAIN = st.recursive(
    st.one_of(KEYS, st.integers(min_value=2**60, max_value=2**200), st.sets(KEYS)),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(KEYS, inner)),
    max_leaves=20,
)


def same(one, other):
    """Equal, of the same types all the way down; -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(map(same, one.values(), other.values()))
    return one == other and (type(one) is not float or math.copysign(1, one) == math.copysign(1, other))


@given(PLAIN)
def test_plain_values_come_back_with_their_types(value):
    assert same(values.loads(values.dumps(value)), value)


def test_the_comparison_tells_types_apart():
    assert not same([1], [1.0]) and not same((1,), [1]) and not same(True, 1) and not same(0.0, -0.0)


def test_numbers_that_json_lacks_come_back():
    text = values.dumps([math.nan, math.inf, -math.inf, 10**5000, -(2**63)])
    nan, *rest = values.loads(text)
    assert math.isnan(nan)
    assert rest == [math.inf, -math.inf, 10**5000, -(2**63)]
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


class Int(int): ...


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


def circular():
    value = {}
    value["self"] = value
    return value


STRANGE = [Int(5), b"x", object(), 1j, frozenset(), len, nested(51), circular(), "x" * (1 << 20), [None] * (1 << 20)]


@pytest.mark.parametrize("value", STRANGE, ids=range(len(STRANGE)))
def test_other_types_and_sizes_are_refused(value):
    with pytest.raises(ValueError, match="value"):
        values.dumps(value)


def test_the_limits_themselves_are_allowed():
    assert values.loads(values.dumps(nested(50))) == nested(50)
    assert len(values.loads(values.dumps("x" * ((1 << 20) - 2)))) == (1 << 20) - 2


MODULUS = 2**61 - 1  # of the hash of integers
BAD = [
    "",
    "[",
    "NaN",
    "Infinity",
    "1e999",
    '{"a":1}',
    '{"int":5}',
    '{"int":"zz"}',
    '{"float":"1.0"}',
    '{"tuple":5}',
    '{"dict":[[1]]}',
    '{"dict":[[[],1]]}',
    '{"set":[[]]}',
    '{"int":"1","float":"nan"}',
    "[" * 60 + "]" * 60,
    "[" * 100_000,
    '"' + "x" * (1 << 20) + '"',
    '{"set":[' + ",".join(f'{{"int":"{n * MODULUS:x}"}}' for n in range(2000)) + "]}",
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_wrong_with_a_text_is_a_value_error(text):
    with pytest.raises(ValueError):
        values.loads(text)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_value_error(data):
    try:
        values.dumps(values.loads(data))
    except ValueError as error:
        assert str(error)


@given(st.lists(PLAIN, max_size=5), st.integers(min_value=1, max_value=7))
def test_frames_come_back_however_the_stream_is_cut(messages, size):
    texts = [values.dumps(message) for message in messages]
    stream = b"".join(map(wire.raw_frame, texts))
    reader = wire.FrameReader()
    frames = [frame for at in range(0, len(stream), size) for frame in reader.feed(stream[at : at + size])]
    assert frames == [json.loads(text) for text in texts]


def test_a_frame_that_is_not_json_is_none_and_a_huge_one_an_error():
    assert wire.FrameReader().feed(b"\x03\0\0\0abc" + wire.frame(5)) == [None, 5]
    with pytest.raises(ValueError, match="a frame of"):
        wire.FrameReader().feed(b"\xff\xff\xff\xff")


@pytest.mark.parametrize(
    ("sizes", "memory", "share"),
    [([0], 100, 100), ([0, 0], 100, 50), ([60, 0], 100, 40), ([60, 10, 0], 100, 20), ([60, 50], 100, -1), ([60, 40, 0], 100, 0)],
)
def test_memory_is_shared_out_evenly_beyond_what_is_held(sizes, memory, share):
    assert fair_share(sizes, memory) == share


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.integers(0, 500))
def test_shares_never_add_up_to_more_than_there_is(sizes, memory):
    share = fair_share(sizes, memory)
    if share >= 0:
        assert sum(max(size, share) for size in sizes) <= memory
        assert sum(max(size, share + 1) for size in sizes) > memory or share >= max(sizes)
    else:
        assert sum(sizes) > memory


def test_what_a_policy_is_shown_is_cut_in_the_middle():
    execution = Execution("error", stdout="a" * 100, stderr="b" * 100, error="ValueError: c")
    assert execution.shown() == "a" * 100 + "\n" + "b" * 100 + "\n[error] ValueError: c"
    cut = execution.shown(20)
    assert cut.startswith("aaaaaaaaaa\n[203 characters left out]\n") and cut.endswith("ueError: c")
    assert Execution("ok", stdout="x\n", value="5").shown() == "x\n5"
    assert Execution("error", stderr="Traceback\nValueError: c\n", error="ValueError: c").shown() == "Traceback\nValueError: c"


@pytest.mark.parametrize("limit", ["wall_s", "memory_mb", "processes", "output_bytes"])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ValueError, match=limit):
        Limits(**{limit: 0})
