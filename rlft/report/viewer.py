"""Stored episodes for people: chosen by step, task and reward, printed as conversations with what they earned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pyarrow as pa
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlft.data.stored import read
from rlft.errors import ConfigError, visible
from rlft.names import nearest
from rlft.report.nearby import check_run

Kind = Literal["step", "eval", "greedy", "first"]
Record = Mapping[str, Any]
FEW = 2  # of the worst and of the best, where nobody says how many
FEW_TASKS = 20  # that an error lists
LONGEST = 2000  # characters of a message; more are counted
ROLES = {"user": "cyan", "system": "magenta", "assistant": "green", "tool": "yellow"}


@dataclass(frozen=True)
class Choice:
    """Which episodes to show."""

    kind: Kind = "step"
    step: int | None = None  # None: the last that is stored
    task: str = ""
    worst: int | None = None
    best: int | None = None
    failed: bool = False  # those without a verdict, and no others
    full: bool = False  # messages of any length


def show(console: Console, folder: Path, choice: Choice) -> None:
    """Print the chosen episodes of the run in `folder`. Raises ConfigError where there is nothing to choose from."""
    path = stored_file(folder, choice.kind, choice.step)
    episodes = _episodes(path)
    chosen = choose(episodes, choice)
    console.print(_heading(episodes, path), markup=False, highlight=False, soft_wrap=True)
    for record in chosen:
        console.print(_panel(record, choice.full))
    if not chosen:
        console.print("no such episode: " + ("all have a verdict" if choice.failed else "none has a verdict; --failed shows why"))


def _episodes(path: Path) -> list[dict[str, Any]]:
    try:
        return [record for record in read(path) if record["row"] == 0]
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable Parquet file: {error}; show another with --step, or restore this one") from error
    except KeyError as error:
        raise ConfigError(f"{path} holds no episodes of a run: it lacks the column {error}; show another with --step") from error


def stored_file(folder: Path, kind: Kind, step: int | None) -> Path:
    """The file of a step, or the last one of its kind. Raises ConfigError."""
    check_run(folder)
    files = {file: int(file.stem.rpartition("-")[2]) for file in (folder / "rollouts").glob(f"{kind}-*.parquet")}
    if not files:
        there = sorted({file.stem.partition("-")[0] for file in (folder / "rollouts").glob("*.parquet")})
        known = f"stored are {', '.join(there)}" if there else "nothing is (tracking.rollouts_every = 0, or a run without rollouts)"
        raise ConfigError(f"{str(folder)!r} holds no stored episodes of kind {kind!r}; {known}")
    wanted = max(files.values()) if step is None else step
    found = sorted(file for file, its in files.items() if its == wanted)
    if not found:
        steps = sorted(set(files.values()))
        near = min(steps, key=lambda other: abs(other - wanted))
        raise ConfigError(f"step {wanted} is not stored; stored are {len(steps)} from {steps[0]} to {steps[-1]}, the nearest is {near}")
    return found[-1]


def choose(episodes: Sequence[Record], choice: Choice) -> list[Record]:
    """The episodes to show, from the worst to the best; all of a task, a few of a whole step. Raises ConfigError."""
    tasks = sorted({record["task_id"] for record in episodes})
    if choice.task and choice.task not in tasks:
        known = nearest(choice.task, tasks) if len(tasks) <= FEW_TASKS else f"; there are {len(tasks)} tasks, such as {tasks[0]!r}"
        raise ConfigError(f"task {choice.task!r} has no episode here{known}")
    mine = [record for record in episodes if not choice.task or record["task_id"] == choice.task]
    asked = choice.worst is not None or choice.best is not None
    if choice.failed and asked:
        raise ConfigError("--failed shows episodes without a verdict, which have no worst and no best: leave --worst and --best out")
    if choice.failed:
        return [record for record in mine if record["status"] == "failed"]
    graded = sorted((record for record in mine if record["status"] != "failed"), key=lambda record: record["outcome"])
    if choice.task and not asked:
        return graded
    worst, best = (choice.worst or 0, choice.best or 0) if asked else (FEW, FEW)
    return [record for i, record in enumerate(graded) if i < worst or i >= len(graded) - best]


def _heading(episodes: Sequence[Record], path: Path) -> str:
    graded = [record["outcome"] for record in episodes if record["status"] != "failed"]
    tasks = len({record["task_id"] for record in episodes})
    mean = f", mean reward {fmean(graded):.3f}" if graded else ""
    lost = len(episodes) - len(graded)
    told = f", {lost} without a verdict (--failed shows them)" if lost else ""
    return f"{path}: {len(episodes)} episodes of {tasks} tasks{mean}{told}"


def _panel(record: Record, full: bool) -> Panel:
    verdict = "no verdict" if record["status"] == "failed" else f"reward {record['outcome']:.4g}"
    ended = record["status"] if record["status"] != "completed" else "ended by itself"
    title = Text(f"task {visible(record['task_id'])}  {verdict}  {ended}", style="bold")
    seed = "" if record["seed"] is None else f"  seed {record['seed']}"
    source = f"step {record['step']}  group {visible(record['group_id'])} #{record['index']}"
    origin = Text(f"{source}  policy {record['policy_version']}  worker {record['worker']}{seed}", style="dim")
    body = Table.grid(padding=(0, 2, 0, 0))  # what a model wrote stays in its column and cannot pass for another message
    body.add_column(no_wrap=True)
    body.add_column(overflow="fold")
    for label, style, text in _lines(record, full):
        body.add_row(Text(label, style=style), Text(text, style="dim" if style == "dim" else ""))
    return Panel(body, title=title, subtitle=origin, title_align="left", subtitle_align="left")


def _lines(record: Record, full: bool) -> Iterator[tuple[str, str, str]]:
    """Label, style of the label, text."""
    turn = 0
    for message in record["messages"]:
        yield visible(message["role"]), ROLES.get(message["role"], "blue"), _cut(visible(_said(message)), full)
        if message["role"] == "assistant" and turn < len(record["turn_rewards"]):
            reward, components = record["turn_rewards"][turn], record["turn_components"][turn]
            if reward or components:
                yield f"turn {turn + 1}", "dim", f"{reward:.4g}  {_components(components)}"
            turn += 1
    if record["answer"] is not None:
        yield "answer", "dim", _cut(visible(record["answer"]), full)
    if record["task_meta"] != "{}":
        yield "task", "dim", _cut(visible(record["task_meta"]), full)
    if record["components"]:
        yield "earned", "bold", _components(record["components"])
    for name, style in (("feedback", "dim"), ("error", "red")):
        if record[name]:
            yield name, style, _cut(visible(record[name]), full)
    if record["ungraded"]:
        yield "ungraded", "red", visible(", ".join(record["ungraded"]))


def _said(message: Mapping[str, Any]) -> str:
    other = json.loads(message["other"]) if message["other"] else {}
    more = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in other.items()]
    return "\n".join([*([message["content"]] if message["content"] or not more else []), *more])


def _cut(text: str, full: bool) -> str:
    more = len(text) - LONGEST
    return text if full or more <= 0 else f"{text[:LONGEST]}\n… {more:,} characters more (--full)"


def _components(parts: Mapping[str, float]) -> str:
    return "  ".join(f"{visible(name)} {value:.4g}" for name, value in parts.items())
