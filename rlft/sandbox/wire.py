"""Frames on a byte stream: four bytes of length, then JSON. Written with write(), as a job may not use sendto()."""

from __future__ import annotations

import json
import os
from typing import Any

MAX_FRAME = (1 << 20) + (1 << 16)  # a value of the largest size and what stands around it
MAX_REQUEST = 64 << 20


def frame(message: Any) -> bytes:
    return raw_frame(json.dumps(message))


def raw_frame(text: str) -> bytes:
    data = text.encode("ascii")
    return len(data).to_bytes(4, "little") + data


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_frame(fd: int) -> Any:
    """The next frame of a blocking descriptor; None at its end."""
    head = _read_exactly(fd, 4)
    if not head:
        return None
    return json.loads(_read_exactly(fd, int.from_bytes(head, "little")))


def _read_exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(fd, min(size - len(data), 1 << 16))
        if not part:
            return b""
        data += part
    return bytes(data)


class FrameReader:
    """Cuts a stream that is not trusted into frames: what does not parse is None, an oversized frame ValueError."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        self._data += data
        frames = []
        while len(self._data) >= 4:
            size = int.from_bytes(self._data[:4], "little")
            if size > MAX_FRAME:
                raise ValueError(f"a frame of {size} bytes")
            if len(self._data) < 4 + size:
                break
            frames.append(_parse(bytes(self._data[4 : 4 + size])))
            del self._data[: 4 + size]
        return frames


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        parsed = None
    return parsed
