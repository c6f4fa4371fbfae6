"""Adapters merged into a weight, against what the same adapters do in a forward pass: before rounding hides the difference.

Axes: R adapter rank, N outputs, K inputs, S test vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rlft.errors import PublishError

NUM_VECTORS = 2
MAX_OFF = 0.05  # of what the adapters add
ROUNDING = 2.0**-23  # of float32, in which the sum is taken: both numbers of it


def adapted_layers(policy: Any) -> dict[str, Any]:
    """Layers with adapters, by the Hugging Face name of their weight."""
    from peft.tuners.lora import LoraLayer

    return {f"{path}.weight": module for path, module in policy.lm.named_modules() if isinstance(module, LoraLayer)}


def check_merge(layer: Any, merged: Tensor, name: str) -> None:
    """Raise PublishError unless `merged` [N, K], not rounded yet, adds to random inputs what the adapters of `layer` add to them."""
    base = layer.base_layer.weight.detach().float()
    generator = torch.Generator().manual_seed(base.shape[1])
    x = torch.randn(NUM_VECTORS, base.shape[1], generator=generator).to(base.device)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        applied = linear(linear(x, down.float()), up.float()) * layer.scaling["default"]
        added = linear(x, merged.float() - base)
        off, most = float((applied - added).norm()), max(float(applied.norm()), float(added.norm()))
        limit = MAX_OFF * most + ROUNDING * float(base.norm()) * float(x.norm())
    if not off <= limit:
        raise PublishError(
            f"learner: {name} with its adapters merged is not what the learner computes with: merged they add {float(added.norm()):.3g} "
            f"to random inputs, applied {float(applied.norm()):.3g}, {off:.3g} apart. Engines would sample from another policy: set "
            "learner.lora_rank = 0 or other learner.lora_targets, and report the model with the version of peft"
        )
