"""Compares what a vLLM engine computes with, bit for bit, with what the learner sent.

Parameters are read whole. On CPU vLLM keeps linear layers in a packed form that nothing but its own matmul reads: W e_i is
column i of W exactly, since all other products are 0, so sampled columns of these are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlft.actors.weights.layout import Piece, View, find_layout
from rlft.actors.weights.receipt import Receipt, Sent, add, checksum, refuse, sampled_columns

TINY = 2.0**-126  # smaller numbers are 0 in the processor's bfloat16 arithmetic

_layouts: WeakKeyDictionary[Any, tuple[Piece, ...]] = WeakKeyDictionary()  # by model


@dataclass(frozen=True)
class Holding:
    """What one worker of an engine holds of the tensors of a receipt."""

    whole: tuple[tuple[str, View, str, int], ...]  # tensor, part of it, module that holds it, checksum of that part
    columns: tuple[tuple[str, str, bool], ...]  # tensor, module that computes with it, whether the sampled columns are those sent
    absent: tuple[str, ...]  # parameters that no tensor of the receipt is loaded into


def held_by(worker: Any, receipt: Receipt) -> Holding:
    """Runs in a worker of vLLM."""
    model = worker.get_model()
    if model not in _layouts:
        _layouts[model] = find_layout(worker, receipt.tensors)
    layout = [piece for piece in _layouts[model] if piece.name in receipt.tensors]
    modules = dict(model.named_modules(remove_duplicate=False))
    whole, columns = [], []
    with torch.no_grad():
        for piece in layout:
            path, name = piece.places[0]
            parameter = getattr(modules[path], name)
            if _as_loaded(modules[path]) and parameter.shape == piece.shape and parameter.is_contiguous():
                whole.append((piece.name, piece.source, path, _share(piece, parameter, receipt.tensors[piece.name])))
        for path, pieces in _packed(layout, modules):
            columns += _compare_columns(modules[path], path, pieces, receipt)
    return Holding(tuple(whole), tuple(columns), tuple(_without_source(layout, modules)))


@dataclass(frozen=True)
class Verdict:
    """How an engine's weights compare with a receipt: tensors by name, each with what was seen."""

    wrong: Mapping[str, str]
    absent: tuple[str, ...]
    num_whole: int  # tensors of which every bit was compared where the engine computes
    num_columns: int  # of which sampled columns were, in every form that the engine computes with
    unread: tuple[str, ...]  # of which nothing was: quantized, or fused experts

    def require(self, num_sent: int, who: str, version: int) -> None:
        """Raise PublishError unless the engine computes with what was sent."""
        absent = {f"{name} (of the engine)": "nothing was sent for it" for name in self.absent}
        refuse({**self.wrong, **absent}, num_sent, who, version)


def judge(receipt: Receipt, holdings: Sequence[Holding]) -> Verdict:
    """Put together what the workers of an engine hold."""
    wrong: dict[str, str] = {}
    parts: dict[str, dict[View, int]] = {}
    for name, part, path, share in (entry for holding in holdings for entry in holding.whole):
        if parts.setdefault(name, {}).setdefault(part, share) != share:
            wrong[name] = f"copies of it differ, one in {path}"
    for name, shares in parts.items():
        if sum(_numel(part.size) for part in shares) != _numel(receipt.tensors[name].shape):
            wrong.setdefault(name, "parts of it are missing")
        elif add(shares.values()) != receipt.tensors[name].checksum:
            wrong.setdefault(name, "as loaded it is not what was sent")
    in_columns = {name for holding in holdings for name, _, _ in holding.columns}
    for name, path, same in (entry for holding in holdings for entry in holding.columns):
        if not same:
            wrong.setdefault(name, f"{path} computes with other numbers")
    unread = tuple(name for name in receipt.tensors if name not in parts and name not in in_columns)
    absent = tuple(dict.fromkeys(name for holding in holdings for name in holding.absent))
    return Verdict(wrong, absent, len(parts), len(in_columns), unread)


def _as_loaded(module: Any) -> bool:
    """Whether parameters stay as their loader left them: quantization and fused experts lay them out anew."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    return isinstance(getattr(module, "quant_method", None), (type(None), UnquantizedLinearMethod, UnquantizedEmbeddingMethod))


def _without_source(layout: Sequence[Piece], modules: Mapping[str, Any]) -> Iterator[str]:
    """Parameters, or parts of a linear layer's, that nothing was sent for. An embedding has rows of padding, which nobody sends."""
    from vllm.model_executor.layers.linear import LinearBase

    covered: dict[tuple[str, str], int] = {}
    for piece in layout:
        for place in piece.places:
            covered[place] = covered.get(place, 0) + _numel(piece.target.size)
    shapes = {place: piece.shape for piece in layout for place in piece.places}
    for path, module in modules.items():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                place = (path, name)
                whole = _numel(shapes[place]) if place in shapes and isinstance(module, LinearBase) else 1
                if covered.get(place, 0) < whole:
                    yield f"{path}.{name}"


def _share(piece: Piece, parameter: Tensor, sent: Sent) -> int:
    """The part's share of the tensor's checksum."""
    held = piece.target.of(parameter).to(sent.dtype)  # exact: the learner sends nothing wider than the engine holds
    if piece.source.is_whole(sent.shape):
        return checksum(held)
    whole = torch.zeros(sent.shape, dtype=sent.dtype, device=held.device)
    piece.source.of(whole).copy_(held)
    return checksum(whole)


def _packed(layout: Iterable[Piece], modules: Mapping[str, Any]) -> Iterator[tuple[str, list[Piece]]]:
    """Layers that compute with a packed copy, and the matrices in it."""
    from vllm.model_executor.layers.linear import LinearBase

    def computes(path: str) -> bool:  # an embedding has a packed copy too, but looks up its parameter
        return hasattr(modules[path], "cpu_linear") and (isinstance(modules[path], LinearBase) or path.endswith("lm_head"))

    found = [(path, piece) for piece in layout for path, name in piece.places if name == "weight" and len(piece.shape) == 2]
    for path, group in groupby(sorted(found, key=lambda f: f[0]), key=lambda f: f[0]):
        if computes(path) and _as_loaded(modules[path]):
            yield path, [piece for _, piece in group]


def _compare_columns(module: Any, path: str, pieces: Sequence[Piece], receipt: Receipt) -> list[tuple[str, str, bool]]:
    """The sampled columns of a layer by its own matmul, each matrix in it for itself."""
    compared = []
    outputs: dict[tuple[int, ...], Tensor] = {}  # matrices side by side have the same columns
    for piece in pieces:
        sent = receipt.tensors[piece.name]
        width = sent.shape[1]
        if sent.columns is None or piece.source.stride != (width, 1) or piece.target.stride != (piece.shape[1], 1):
            continue
        row, column = divmod(piece.source.offset, width)
        to_row, to_column = divmod(piece.target.offset, piece.shape[1])
        num_rows, num_columns = piece.source.size
        chosen = sampled_columns(width, receipt.version)
        here = [i for i, c in enumerate(chosen) if column <= c < column + num_columns]
        places = tuple(to_column + chosen[i] - column for i in here)
        if places not in outputs:
            one_hot = torch.zeros(len(places), piece.shape[1], dtype=module.weight.dtype)
            one_hot[range(len(places)), list(places)] = 1
            outputs[places] = module.quant_method.apply(module, one_hot)
        held = _flushed(outputs[places][:, to_row : to_row + num_rows].T)
        expected = sent.columns[row : row + num_rows, here].to(held.dtype)
        compared.append((piece.name, path, torch.equal(held, _flushed(expected))))
    return compared


def _flushed(x: Tensor) -> Tensor:
    return torch.where(x.abs() < TINY, 0.0, x)


def _numel(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())
