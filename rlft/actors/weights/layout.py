"""Finds where a vLLM worker keeps each Hugging Face tensor (fused, split over workers, padded), by asking the model's own loader.

The loader is run once on tensors without contents while every write is noted instead of done, so no table of models is needed here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlft.actors.weights.receipt import Sent


@dataclass(frozen=True)
class View:
    """Part of a tensor, as torch's as_strided takes it."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        return tensor.as_strided(self.size, self.stride, int(tensor.storage_offset()) + self.offset)

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Whether it is all of a contiguous tensor of that shape, in its order."""
        return self == _view(torch.empty(tuple(shape), device="meta"))


@dataclass(frozen=True)
class Piece:
    """Part of a Hugging Face tensor and the part of a parameter that its loader copies it to."""

    name: str
    source: View
    target: View
    shape: tuple[int, ...]  # of the parameter when it was loaded: its layer may keep another form of it since
    places: tuple[tuple[str, str], ...]  # (module, parameter): more than one where parameters are tied


def find_layout(worker: Any, tensors: Mapping[str, Sent]) -> tuple[Piece, ...]:
    """What this worker's model takes from each tensor. Tensors of which it takes nothing, or more than copies, are missing."""
    model = worker.get_model()
    tied: dict[int, list[tuple[str, str]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                tied.setdefault(id(parameter), []).append((path, name))
    places = {place: tuple(same) for same in tied.values() for place in same}
    sources = {name: torch.empty(sent.shape, dtype=sent.dtype, device="meta") for name, sent in tensors.items()}
    with _empty_parameters(worker, model):
        parameters = {_storage(p): ((path, name), tuple(p.shape)) for path, name, p in _parameters(model)}
        copies = _Copies()
        with copies, torch.no_grad():
            model.load_weights(iter(sources.items()))
    names = {_storage(tensor): name for name, tensor in sources.items()}
    pieces = []
    for target, source in copies.made:
        if _storage(target) in parameters and _storage(source) in names and target.shape == source.shape:
            place, shape = parameters[_storage(target)]
            pieces.append(Piece(names[_storage(source)], _view(source), _view(target), shape, places[place]))
    return tuple(dict.fromkeys(pieces))


class _Copies(TorchDispatchMode):
    """Notes every copy and does nothing that writes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.made.append((args[0], args[1]))
        return args[0] if func._schema.is_mutable else func(*args, **(kwargs or {}))


@contextmanager
def _empty_parameters(worker: Any, model: Any) -> Iterator[None]:
    """Within it the model has the parameters that its loader expects, without contents; then its own again."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    log = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    level = log.level
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(model)
        try:
            for _, _, parameter in _parameters(model):
                loader = getattr(parameter, "weight_loader", None)
                while loader is not None and loader.__name__ == "online_process_loader":  # it would fill the parameter
                    loader = loader.__wrapped__
                    parameter.weight_loader = loader
            yield
        finally:
            log.setLevel(logging.ERROR)  # it warns that nothing was loaded, which is what was wanted
            finalize_layerwise_reload(model, worker.vllm_config.model_config)
            log.setLevel(level)


def _parameters(model: Any) -> Iterator[tuple[str, str, Any]]:
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield path, name, parameter


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _view(tensor: Tensor) -> View:
    return View(tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()))
