"""Describes what a publish sent, tensor by tensor, in checksums and columns small enough to travel beside the weights.

Axes: N rows, K columns, S sampled columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rlft.errors import PublishError

NUM_COLUMNS = 8  # of every matrix, others at every publish
CHUNK = {"cpu": 1 << 16}  # elements at once: what a core's cache holds
CHUNK_ELSEWHERE = 1 << 27


@dataclass(frozen=True)
class Sent:
    """One tensor as the learner sent it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: int
    columns: Tensor | None  # [N, S], those of `sampled_columns`; None where there are none, or none are wanted


@dataclass(frozen=True)
class Receipt:
    """What was sent as one version, by Hugging Face name."""

    version: int
    tensors: Mapping[str, Sent]


class ReceiptWriter:
    """Notes the tensors that pass through it."""

    def __init__(self, version: int, columns: bool) -> None:
        self.version, self.columns = version, columns
        self.tensors: dict[str, Sent] = {}

    def note(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            columns = None
            if self.columns and tensor.ndim == 2:
                columns = tensor[:, list(sampled_columns(tensor.shape[1], self.version))].cpu()
            self.tensors[name] = Sent(tensor.dtype, tuple(tensor.shape), checksum(tensor), columns)
            yield name, tensor

    def receipt(self) -> Receipt:
        return Receipt(self.version, dict(self.tensors))


def narrowed(weights: Iterable[tuple[str, Tensor]], dtype: str) -> Iterator[tuple[str, Tensor]]:
    """The weights as engines of `dtype` hold them, where that is coarser. "": as they are."""
    coarser = getattr(torch, dtype) if dtype else torch.float64
    for name, tensor in weights:
        yield name, tensor.to(coarser) if tensor.is_floating_point() and coarser.itemsize < tensor.itemsize else tensor


def received_wrong(receipt: Receipt, weights: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Tensors that did not arrive as they were sent, each with what was seen."""
    arrived = {name: (tensor.dtype, tuple(tensor.shape), checksum(tensor)) for name, tensor in weights}
    wrong = {name: "it was not sent" for name in arrived if name not in receipt.tensors}
    for name, sent in receipt.tensors.items():
        if name not in arrived:
            wrong[name] = "it did not arrive"
        elif arrived[name] != (sent.dtype, sent.shape, sent.checksum):
            wrong[name] = "it did not arrive as it was sent"
    return wrong


def refuse(wrong: Mapping[str, str], num_sent: int, who: str, version: int) -> None:
    """Raise PublishError if any tensor is wrong."""
    if wrong:
        some = "; ".join(f"{name}: {why}" for name, why in list(wrong.items())[:5])
        raise PublishError(
            f"{who} does not hold the weights of version {version}: {len(wrong)} of {num_sent} tensors are wrong. {some}"
            f"{'; ...' if len(wrong) > 5 else ''}. Training on would learn from another policy's samples: resume from the last checkpoint "
            "(--resume); if it happens again, report the model with the versions of vllm and torch"
        )


def sampled_columns(width: int, version: int) -> tuple[int, ...]:
    """`NUM_COLUMNS` different columns of `width`, far apart. Versions in a row go through all of them before one comes again."""
    step = max(1, round(width * 0.618))
    while math.gcd(step, width) != 1:
        step += 1
    most = min(NUM_COLUMNS, width)
    return tuple((version * most + i) * step % width for i in range(most))


def checksum(tensor: Tensor) -> int:
    """A 32-bit sum over the bits of a tensor, each place weighed by an odd number of its own.

    Order counts: two elements or rows that change places change it, and any change of one element does; of other changes one in
    2**32 goes unseen. A tensor that is 0 but for one part has that part's share of the sum, so parts that lie on several devices
    are summed apart and added modulo 2**32; of 2-byte numbers a part starts and ends at even columns. Computed where the tensor is.
    """
    if tensor.numel() == 0:
        return 0
    words = _words(tensor.detach().contiguous())
    rows, columns = words.shape
    row_weights, column_weights = _weights(rows, words.device), _weights(columns, words.device)
    at_once = max(1, CHUNK.get(words.device.type, CHUNK_ELSEWHERE) // columns)
    sums = []
    for start in range(0, rows, at_once):
        part = words[start : start + at_once].to(torch.int32)
        mixed = part ^ (part >> 16)  # so that numbers whose lower half is 0, as bfloat16 in float32, fill all bits
        sums.append((mixed * column_weights).sum(-1, dtype=torch.int32))
    return int((torch.cat(sums) * row_weights).sum(dtype=torch.int32)) % 2**32


def add(sums: Iterable[int]) -> int:
    """The checksum of a whole from those of its parts."""
    return sum(sums) % 2**32


def _words(tensor: Tensor) -> Tensor:
    """The bits as a matrix of integers; of 4 bytes each where a row holds a whole number of them."""
    rows = tensor.view(1, -1) if tensor.ndim < 2 else tensor.view(-1, tensor.shape[-1])
    whole = rows.shape[1] * rows.element_size() % 4 == 0
    return rows.view(torch.int32 if whole else {1: torch.int8, 2: torch.int16}[rows.element_size()])


@lru_cache(maxsize=256)
def _weights(count: int, device: torch.device) -> Tensor:
    drawn = torch.randint(-(2**31), 2**31 - 1, (count,), generator=torch.Generator().manual_seed(count), dtype=torch.int32)
    return (drawn | 1).to(device)
