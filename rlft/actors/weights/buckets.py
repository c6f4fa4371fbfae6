"""Weights as plain bytes, which Ray's object store shares between processes without a copy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Bucket:
    """Some weights."""

    names: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    buffers: tuple[np.ndarray, ...]  # uint8, one for each


def pack(weights: Iterable[tuple[str, Tensor]]) -> Bucket:
    """Weights as bytes on the CPU. Those that are there already are not copied: put the bucket away before they change."""
    items = [(name, tensor.detach().cpu().contiguous()) for name, tensor in weights]
    return Bucket(
        names=tuple(name for name, _ in items),
        dtypes=tuple(tensor.dtype for _, tensor in items),
        shapes=tuple(tuple(tensor.shape) for _, tensor in items),
        buffers=tuple(tensor.view(-1).view(torch.uint8).numpy() for _, tensor in items),
    )


def unpack(bucket: Bucket) -> Iterator[tuple[str, Tensor]]:
    """The weights of a bucket, to be read only: shared memory is not theirs to write."""
    for name, dtype, shape, buffer in zip(bucket.names, bucket.dtypes, bucket.shapes, bucket.buffers, strict=True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            flat = torch.from_numpy(buffer)
        yield name, flat.view(dtype).view(shape)
