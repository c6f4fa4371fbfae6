"""Weights as one flat buffer per bucket, which Ray's object store shares between processes without a copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Bucket:
    """Some weights, one behind the other."""

    names: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    buffer: np.ndarray  # uint8


def pack(weights: Iterable[tuple[str, Tensor]]) -> Bucket:
    """Copy weights into a bucket on the CPU."""
    items = [(name, tensor.detach().cpu().contiguous()) for name, tensor in weights]
    flat = [tensor.view(-1).view(torch.uint8) for _, tensor in items]
    return Bucket(
        names=tuple(name for name, _ in items),
        dtypes=tuple(tensor.dtype for _, tensor in items),
        shapes=tuple(tuple(tensor.shape) for _, tensor in items),
        buffer=torch.cat(flat).numpy(),
    )


def unpack(bucket: Bucket) -> Iterator[tuple[str, Tensor]]:
    """The weights of a bucket. Shared memory is read-only, which torch has no notion of: they are copies."""
    whole = torch.from_numpy(bucket.buffer.copy())
    sizes = [int(np.prod(shape)) * dtype.itemsize for dtype, shape in zip(bucket.dtypes, bucket.shapes, strict=True)]
    for name, dtype, shape, piece in zip(bucket.names, bucket.dtypes, bucket.shapes, whole.split(sizes), strict=True):
        yield name, piece.clone().view(dtype).view(shape) if piece.storage_offset() % dtype.itemsize else piece.view(dtype).view(shape)
