"""Finds the memory that a learner rank may use; all ranks agree on the least."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

NODE_SHARE = 0.5  # of a node's memory for its learner ranks; the rest is for engines, graders and the driver
CGROUP = {"limit": ("memory.max", "memory/memory.limit_in_bytes"), "used": ("memory.current", "memory/memory.usage_in_bytes")}


@dataclass(frozen=True)
class Capacity:
    """Bytes of one rank."""

    available: float  # when it started, what it uses itself included
    total: float  # whatever others use


def rank_capacity(device: torch.device, gpus: float) -> Capacity:
    """The least over the ranks of what each may use. Collective.

    On GPU what is free there, and of a shared one no more than the rank's fraction. On CPU an equal part of half
    the node's memory, or of half what its control group allows.

    Args:
        gpus: what the rank asked Ray for; a fraction shares the GPU with an engine.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        whole = total * min(gpus or 1.0, 1.0)
        mine = [min(free, whole), whole]
    else:
        hosts: list[str | None] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(hosts, socket.gethostname())
        share = NODE_SHARE / hosts.count(socket.gethostname())
        mine = [part * share for part in node_memory()]
    least = torch.tensor(mine, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return Capacity(*least.tolist())


def node_memory(root: Path = Path("/sys/fs/cgroup")) -> tuple[float, float]:
    """Bytes available and in all on this node, or in this process's control group where that allows less."""
    memory = psutil.virtual_memory()
    available, total = float(memory.available), float(memory.total)
    limit, used = _cgroup("limit", root), _cgroup("used", root)
    if limit is not None and limit < total:
        available, total = min(available, limit - (used or 0.0)), limit
    return available, total


def _cgroup(what: str, root: Path) -> float | None:
    """A number of bytes of the control group; None where it says nothing, or has no limit."""
    for name in CGROUP[what]:
        if (root / name).is_file() and (text := (root / name).read_text().strip()).isdigit():
            return float(text)
    return None


def counted(model: nn.Module) -> tuple[int, int]:
    """Parameters of a model, and those of them that train. Before ZeRO-3 spreads them."""
    return sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)
