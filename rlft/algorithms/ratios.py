"""exp of log-ratios, bounded: a token of which two policies think altogether differently stays a finite number."""

from __future__ import annotations

from torch import Tensor

MAX_LOG_RATIO = 10.0  # e^10 is 22,026 times as likely


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp(min(log_ratio, 10)), without gradient beyond. Any shape; nats.

    Unbounded, exp(88) leaves float32: an infinite ratio times an advantage of 0, or behind a clip, has the gradient NaN,
    and one a little smaller outweighs every other token of a step.
    """
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def beyond(log_ratio: Tensor) -> Tensor:
    """1.0 where `bounded_exp` bounds, as a metric."""
    return (log_ratio.detach() > MAX_LOG_RATIO).float()
