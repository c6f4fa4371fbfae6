"""Tasks and scores of reasoning-gym, and of data sets with its interface."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlft.errors import ConfigError, TaskError
from rlft.rewards.adapters.calling import found, prompt_text
from rlft.rewards.extract import last_tag, said, thinking
from rlft.types import Task, Trajectory

INSTALL = "install it with: pip install reasoning-gym"


def reasoning_gym(
    task: Task, trajectory: Trajectory, *, dataset: str = "", config: Mapping[str, Any] | None = None, tag: str = ""
) -> float:
    """`score_answer(answer, entry)` of a reasoning-gym data set: 0 to 1.

    The entry is made of the prompt's last message, the answer and the data's field "metadata" (or else all its fields).

    Args:
        dataset: a name that reasoning-gym knows; "module:attribute" of a data set or of a function that
            makes one; "": the one that `metadata.source_dataset` names.
        config: options of the data set, such as its seed, where scoring depends on them.
        tag: the answer is what stands in the last <tag>...</tag>, and nothing without one; "": all that was said.

    Raises:
        TaskError: no data set is named, by option or entry.
        ConfigError: reasoning-gym is not installed, or knows no such data set.
    """
    metadata = task.meta.get("metadata", task.meta)
    name = dataset or metadata.get("source_dataset", "")
    if not name:
        raise TaskError(f"reasoning_gym: task {task.id!r} has no metadata.source_dataset; set the option dataset")
    entry = {"question": task.messages[-1]["content"] if task.messages else prompt_text(task), "answer": task.answer, "metadata": metadata}
    return _score_answer(name, json.dumps(config or {}))(_answer(trajectory, tag), entry)


def reasoning_gym_tasks(*, dataset: str, size: int = 500, seed: int = 0, **config: Any) -> Iterator[Task]:
    """Tasks of a reasoning-gym data set, for `data.source = "rlft.rewards.adapters.reasoning_gym:reasoning_gym_tasks"`.

    Where many answers are right the answer is None.
    """
    for number, entry in enumerate(_create(dataset, {"size": size, "seed": seed, **config})):
        message = {"role": "user", "content": entry["question"]}
        yield Task(f"{dataset}/{seed}/{number}", (message,), entry["answer"], {"metadata": entry["metadata"]})


def _answer(trajectory: Trajectory, tag: str) -> str | None:
    inside = last_tag(said(trajectory), tag) if tag else said(trajectory)
    return None if inside is None or thinking(trajectory) else inside.strip()


@functools.cache
def _score_answer(name: str, config: str) -> Callable[[str | None, Mapping[str, Any]], float]:
    options = json.loads(config)
    if ":" not in name:
        return _create(name, options).score_answer
    made = found(name)
    return (made if hasattr(made, "score_answer") and not isinstance(made, type) else made(**options)).score_answer


def _create(name: str, options: Mapping[str, Any]) -> Any:
    try:
        library = importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise ConfigError(f"reasoning_gym: {error}; {INSTALL}") from error
    try:
        return library.create_dataset(name, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"reasoning_gym: data set {name!r}: {error}") from error
