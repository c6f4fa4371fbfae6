"""A run's numbers as TensorBoard reads them; needs the extra `rlft[tensorboard]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.errors import ConfigError
from rlft.report.callbacks import Callback, Metrics


class TensorBoard(Callback):
    """Writes every number of metrics.jsonl as a scalar into `folder`. Raises ConfigError without the extra."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise ConfigError(f"tracking.tensorboard needs the extra: pip install 'rlft[tensorboard]' ({error})") from error
        self._writer = Writer(str(folder))

    def on_log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def on_evaluate(self, step: int, metrics: Metrics, samples: Sequence[Mapping[str, Any]]) -> None:
        self.on_log(step, metrics)
        self._writer.flush()

    def on_alarm(self, step: int, name: str, text: str) -> None:
        self._writer.add_scalar(f"alarm/{name}", 1.0, step)

    def close(self) -> None:
        self._writer.close()
