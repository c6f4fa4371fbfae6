"""DeepSpeed behind few functions: start a process and an engine, step it exactly, read whole weights.

DeepSpeed averages gradients over ranks; the learner's loss is a sum over ranks, so it is scaled by their number
before backward. The number of micro-batches differs between steps, so DeepSpeed's own counting of them
is off (`managed_gradient_accumulation`): every backward accumulates and `step` is the boundary.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from rlft.config import LearnerConfig
from rlft.errors import ConfigError

BUCKET = 200_000_000  # elements that ZeRO reduces or gathers at once, at most
ALIGNMENT = 128  # what DeepSpeed wants bucket sizes to be a multiple of grows with the ranks


def join_ranks(rank: int, world_size: int, master_addr: str, master_port: int, timeout_s: float) -> torch.device:
    """Make this process one of `world_size` DeepSpeed ranks and return its device.

    Threads follow OMP_NUM_THREADS, which must be set before torch is imported to count in full.
    """
    cuda = torch.cuda.is_available()
    local = rank % torch.cuda.device_count() if cuda else 0
    rendezvous = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": local, "MASTER_ADDR": master_addr, "MASTER_PORT": master_port}
    os.environ.update({key: str(value) for key, value in rendezvous.items()})
    # DeepSpeed looks for ninja on the path, where an unactivated environment's is not.
    os.environ["PATH"] = os.pathsep.join([os.path.join(sys.prefix, "bin"), os.environ.get("PATH", "")])
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)  # DeepSpeed's calls
    disable_progress_bar()
    if cuda:
        torch.cuda.set_device(local)
    deepspeed.init_distributed("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False)
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def training_dtype(config: LearnerConfig, device: torch.device) -> torch.dtype:
    """What weights train in: "auto" is bfloat16 on GPU, float32 on CPU.

    Raises:
        ConfigError: bfloat16 without ZeRO, which would also sum gradients in it.
    """
    if config.dtype == "float32" or (config.dtype == "auto" and device.type != "cuda"):
        return torch.float32
    if config.zero_stage == 0:
        raise ConfigError("learner.zero_stage 0 sums bfloat16 gradients in bfloat16; use 1, 2 or 3, or learner.dtype = 'float32'")
    return torch.bfloat16


def start_engine(policy: nn.Module, config: LearnerConfig, bf16: bool, head_lr: float | None = None) -> Any:
    """A DeepSpeed engine with AdamW over the parameters of `policy` that train.

    Args:
        head_lr: peak learning rate of the value head, where `policy` has one; all else has the config's.
    """
    import deepspeed

    assert config.zero_stage is not None and config.lr is not None, "both are chosen before an engine starts"
    trained: Any = parameter_groups(policy, config.lr, config.weight_decay, head_lr)
    adamw = {"lr": config.lr, "betas": list(config.betas), "weight_decay": config.weight_decay, "torch_adam": True, "fused": True}
    zero = _zero_section(policy, config.zero_stage)
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    settings = _settings(zero, bf16) | {
        "optimizer": {"type": "AdamW", "params": adamw},
        "gradient_clipping": config.grad_clip if config.zero_stage else 0.0,  # without ZeRO `step` clips
        "managed_gradient_accumulation": False,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine: Any = deepspeed.initialize(model=policy, model_parameters=trained, config=settings)[0]  # type: ignore[arg-type]
    for group in engine.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if config.zero_stage == 0:
        engine.enable_backward_allreduce = False  # `step` reduces, to see the norm before it applies it
    return engine


def shard_frozen(policy: Any, config: LearnerConfig, bf16: bool) -> Any:
    """Spread a model that never trains over the ranks under ZeRO-3; leave it as it is otherwise."""
    import deepspeed

    policy.requires_grad_(False)
    if config.zero_stage == 3:
        deepspeed.initialize(model=policy, config=_settings(_zero_section(policy, 3), bf16))
    return policy


def step(engine: Any, lr_factor: float, grad_clip: float, freeze_body: bool = False) -> float | None:
    """Apply the accumulated gradients at `lr_factor` times each parameter's peak learning rate, and forget them.

    Args:
        grad_clip: largest norm of the whole gradient; with ZeRO it is the one that the engine was started with.
        freeze_body: leave all but the value head as it is; weight decay would move it even where its gradient is 0.

    Returns:
        Norm of the whole gradient before clipping; None where it was not finite on some rank and
        no rank changed a weight.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0 if freeze_body and group["body"] else group["initial_lr"] * lr_factor
    if engine.zero_optimization():
        engine.step()  # ZeRO itself skips when the norm over all ranks is not finite
        return float(engine.get_global_grad_norm()) if engine.was_step_applied() else None
    if torch.distributed.get_world_size() > 1:  # with one rank it would copy every gradient for nothing
        engine.buffered_allreduce_fallback()
    trained = [p for p in engine.module.parameters() if p.grad is not None]
    total = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    norm = float(total)
    if not math.isfinite(norm):
        engine.zero_grad()
        return None
    if norm > grad_clip:
        nn.utils.clip_grads_with_norm_(trained, grad_clip, total)
    engine.step()
    return norm


def parameter_groups(policy: nn.Module, lr: float, weight_decay: float, head_lr: float | None = None) -> list[dict[str, Any]]:
    """The parameters that train, in AdamW's groups: those of the body and of the value head, matrices with weight decay and
    what has fewer axes (norms, biases) without: it scales what it meets toward 0, and 0 is no neutral value for a norm.
    Without weight decay they share a group: every one is a buffer of its own to ZeRO.

    Args:
        head_lr: learning rate of the value head; None: it has the body's, and stands in its groups.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            body = head_lr is None or not name.startswith("value_head.")
            groups.setdefault((body, parameter.ndim > 1 and weight_decay > 0), []).append(parameter)
    return [
        {"params": found, "lr": lr if body else head_lr, "weight_decay": weight_decay if decays else 0.0, "body": body}
        for (body, decays), found in groups.items()
    ]


def exact_loss(loss: Tensor, world_size: int) -> Tensor:
    """What to call backward on so that gradients are those of the sum of `loss` over ranks and micro-batches.

    A loss that is not finite makes every gradient NaN, also where its own would have been finite:
    the gradient norm then carries the news to every rank.
    """
    finite = loss.detach().isfinite()
    return loss * torch.where(finite, float(world_size), math.nan)


def whole(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Within it, parameters that ZeRO-3 partitioned are whole on every rank. Collective."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    return GatheredParameters(list(parameters))


def _settings(zero: dict[str, Any], bf16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": sys.maxsize,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "zero_optimization": zero,
    }


def _zero_section(policy: Any, stage: int) -> dict[str, Any]:
    """Buckets no larger than the model: DeepSpeed allocates them in full at every backward."""
    bucket = min(BUCKET, -(-sum(p.numel() for p in policy.parameters()) // ALIGNMENT) * ALIGNMENT)
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3:
        hidden = policy.lm.config.get_text_config().hidden_size
        zero |= {"stage3_prefetch_bucket_size": bucket, "stage3_param_persistence_threshold": 10 * hidden}
    return zero
