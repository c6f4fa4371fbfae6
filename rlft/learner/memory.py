"""What training costs in memory, and the ZeRO stage that follows from it."""

from __future__ import annotations

from rlft.config import LearnerConfig


def choose_stage(config: LearnerConfig, num_ranks: int, bf16: bool) -> int:
    """The ZeRO stage of the run file, or where it names none the cheapest one that keeps the optimizer in float32.

    One rank shares nothing: stage 0 steps plain AdamW. With bfloat16, or an offloaded optimizer, ZeRO alone
    keeps float32 weights beside: stage 1. Several ranks share gradients and optimizer: stage 2.
    """
    if config.zero_stage is not None:
        return config.zero_stage
    if num_ranks > 1:
        return 2
    return 1 if bf16 or config.offload_optimizer else 0
