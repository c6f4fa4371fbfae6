"""What a run file leaves open and its kind of run decides, written into it before the run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlft.config import Kind, RunConfig, learning_rate
from rlft.errors import ConfigError


def check_loaded(config: Any) -> None:
    """Refuse what is no run file that was read: a path, a table. Raises ConfigError."""
    if not isinstance(config, RunConfig):
        path = str(config) if isinstance(config, str | Path) else "run.toml"
        said = repr(config) if isinstance(config, str) else f"{type(config).__name__} {str(config)[:60]!r}"
        raise ConfigError(f"config: expected what rlft.load returns, got {said}; give rlft.load({path!r}, ['key=value', ...])")


def with_rates(config: RunConfig, kind: Kind) -> RunConfig:
    """The run file with its learning rate, and that of every stage in which another holds (a stage may turn adapters on).

    Written once, it is the rate that `config.toml` shows and that a resumed run has.
    """
    check_loaded(config)
    rate = learning_rate(config.learner, kind)
    stages = []
    for index, stage in enumerate(config.stages):
        own = learning_rate(config.of_stage(index).learner, kind)
        stages.append(stage if own == rate else stage.model_copy(update={"learner": {**stage.learner, "lr": own}}))
    return config.model_copy(update={"learner": config.learner.model_copy(update={"lr": rate}), "stages": stages})
