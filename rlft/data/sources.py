"""Tasks from files, a Hub data set or a Python function, and the endless seeded stream a run draws from."""

from __future__ import annotations

import glob
import gzip
import inspect
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from rlft.chat.messages import normal
from rlft.config import DataConfig
from rlft.data.csv_rows import DELIMITERS, csv_rows
from rlft.errors import ConfigError, DataError, RenderError, RlftError, explain
from rlft.files import cure
from rlft.hub import check_on_hub, looks_local
from rlft.names import bind, close_to
from rlft.types import Message, Task

SUFFIXES = (".jsonl", ".json", ".parquet", *DELIMITERS)
PACKED = ".gz"  # behind any of them but .parquet, which is packed already
FILES = "a .jsonl, .json, .parquet, .csv or .tsv file"
URL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
ON_HUB = re.compile(r"(?:https?://[^/]+/datasets/|hf://datasets/)([^/?#]+/[^/?#]+)", re.IGNORECASE)
UNSET = f"data.source is not set; give {FILES}, a Hub name, or 'module:function'"
EXPECTED = f"expected {FILES}, a folder, a Hub name or 'module:function'"
FILE_ENDING = re.compile(r"\.[a-z]{2,7}")  # such as .txt and .xlsx; a version in a Hub name has numbers
SHOWN = 5  # bad rows quoted in a message


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot become a task."""

    source: str  # file, Hub name or function
    row: int  # counted from 1; the line number in a JSONL file
    field: str  # "" when the row as a whole is broken
    reason: str

    def __str__(self) -> str:
        place = f"{self.source}, row {self.row}"
        return f"{place}, field {self.field!r}: {self.reason}" if self.field else f"{place}: {self.reason}"


class LoadedTasks(NamedTuple):
    """What a source holds: its usable tasks in order, and the rows left out."""

    tasks: tuple[Task, ...]
    bad_rows: tuple[BadRow, ...]


class SourceRow(NamedTuple):
    """What stands at one place of a source."""

    source: str
    row: int
    value: Any  # what the source holds there, or the BadRow it turned out to be


def load_tasks(config: DataConfig, progress: Callable[[Iterable[SourceRow]], Iterable[SourceRow]] = iter) -> LoadedTasks:
    """Read the tasks that `config` names. A broken row is left out, never fatal by itself.

    A row's id is its `config.id` field, or else its number in the source (from 1, over all files).
    Columns that are not mapped land in `Task.meta`. Only text with lone surrogates is refused
    wherever it stands: neither a tokenizer nor a UTF-8 file can take it.

    Args:
        progress: shows how many rows are read.

    Raises:
        DataError: no such file, unreadable file or data set, or not one usable row.
        ConfigError: the function cannot be imported or takes other options.
    """
    if not config.source:
        raise DataError(UNSET)
    tasks: dict[str, Task] = {}
    bad_rows: list[BadRow] = []
    columns: Counter[str] = Counter()
    for number, (source, row, value) in enumerate(progress(read_rows(config)), start=1):
        if isinstance(value, Mapping):
            columns.update(str(name) for name in value)
        task = _checked(value, number, config, tasks)
        if isinstance(task, Task):
            tasks[task.id] = task
        else:
            bad_rows.append(replace(task, source=source, row=row))
        if len(tasks) == config.limit:
            break
    if not tasks:
        raise DataError(_nothing_usable(config, bad_rows, columns))
    return LoadedTasks(tuple(tasks.values()), tuple(bad_rows))


def describe(bad_rows: Sequence[BadRow]) -> str:
    """The first few bad rows, one a line, and how many more there are."""
    lines = [str(bad) for bad in bad_rows[:SHOWN]]
    return "\n".join([*lines, f"... and {len(bad_rows) - SHOWN} more"] if len(bad_rows) > SHOWN else lines)


def read_rows(config: DataConfig) -> Iterator[SourceRow]:
    """What a source holds, row by row. Raises DataError, ConfigError."""
    source = config.source
    _check_place(source)
    if ending(source) in SUFFIXES:
        return chain.from_iterable(_read_file(file) for file in _files(source))
    return _call(config) if ":" in source else _read_hub(config)


def look_at(config: DataConfig, tasks: bool = True) -> None:
    """Refuse a source that is not there, and a file without one usable row, in which a good one is looked for from its top.

    A function is imported and not called; a Hub name is asked for; Parquet files are not opened.

    Args:
        tasks: whether rows become tasks; pairs are not looked at.

    Raises:
        DataError, ConfigError: as `load_tasks`.
    """
    if not config.source:
        raise DataError(UNSET)
    _check_place(config.source)
    if ending(config.source) in SUFFIXES:
        files = _files(config.source)
        if tasks and not any(ending(file) == ".parquet" for file in files):
            load_tasks(config.model_copy(update={"limit": 1}))
    elif ":" in config.source:
        _function(config)
    else:
        _check_name(config.source)


def ending(source: str | Path) -> str:
    """What a file holds by its name: its ending in lower case, without a .gz behind it."""
    name = Path(str(source).lower())
    return Path(name.stem).suffix if name.suffix == PACKED else name.suffix


def _check_place(source: str) -> None:
    """Refuse an address on the network. Raises DataError."""
    if URL.match(source):
        found = ON_HUB.match(source)
        name = f"the data set's Hub name, {found[1]!r}" if found else "a Hub name such as 'openai/gsm8k'"
        raise DataError(f"data.source {source!r} is no path on this machine: download the file and give its path, or give {name}")


def _files(pattern: str) -> list[Path]:
    found = [Path(pattern)] if Path(pattern).exists() else sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [file for file in found if not file.is_dir()]
    if found and not files:
        inner = f"{found[0]}/*{ending(pattern)}"
        raise DataError(f"data.source {pattern!r} is a folder: give the file, or all that lie in it as {inner!r}")
    if not files:
        raise DataError(f"data.source {pattern!r}: no such file (looked in {Path.cwd()}); check the path")
    return files


def _read_file(file: Path) -> Iterator[SourceRow]:
    # Not through `datasets` for JSON: it turns text that looks like a date into a datetime.
    read = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}.get(ending(file), _read_csv)
    try:
        yield from read(file)
    except (OSError, EOFError, zlib.error) as error:
        if file.suffix.lower() == PACKED and not isinstance(error, PermissionError):
            raise DataError(f"{file}: not a whole gzip file: {error}; unpack it with gunzip, or pack it again") from error
        told = getattr(error, "strerror", None) or error
        raise DataError(f"{file} cannot be read: {told}{cure(error) if isinstance(error, OSError) else ''}") from error


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if file.suffix.lower() == PACKED else file.open("rb")


def _read_jsonl(file: Path) -> Iterator[SourceRow]:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield SourceRow(str(file), number, _parse(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line))


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return BadRow("", 0, "", f"not valid JSON: {error}")


def _read_json(file: Path) -> Iterator[SourceRow]:
    try:
        with _open(file) as data:
            rows = json.loads(data.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON: {error}; for one object a line name the file .jsonl") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of objects, got {type(rows).__name__}; for one object a line name the file .jsonl")
    for number, value in enumerate(rows, start=1):
        yield SourceRow(str(file), number, value)


def _read_csv(file: Path) -> Iterator[SourceRow]:
    with _open(file) as data, io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv_rows(lines, file, ending(file)), start=1):
            surplus = isinstance(row, list)
            yield SourceRow(str(file), number, BadRow("", 0, "", f"more cells than columns: {row}") if surplus else row)


def _read_parquet(file: Path) -> Iterator[SourceRow]:
    if file.suffix.lower() == PACKED:
        raise DataError(f"{file}: a packed Parquet file; unpack it with gunzip")
    import datasets
    import pyarrow

    try:
        rows = datasets.load_dataset("parquet", data_files=[glob.escape(str(file))], split="train", streaming=True)
        for number, value in enumerate(rows, start=1):
            yield SourceRow(str(file), number, without_fillings(value))
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a readable Parquet file: {error}") from error


def _read_hub(config: DataConfig) -> Iterator[SourceRow]:
    """`owner/name`, `owner/name/subset`, or a folder that `datasets` can load."""
    name, subset = _check_name(config.source)
    import datasets

    try:
        rows = datasets.load_dataset(name, subset, split=config.split)
    except (OSError, ValueError) as error:
        what = f"data.source {config.source!r}, split {config.split!r}"
        raise DataError(f"{what}: {error}; {EXPECTED}") from error
    for number, value in enumerate(rows, start=1):
        yield SourceRow(config.source, number, without_fillings(value))


def _check_name(source: str) -> tuple[str, str | None]:
    """The data set and its subset that a folder or Hub name means. Raises DataError where there is none."""
    if Path(source).is_dir():
        return source, None
    if Path(source).is_file():
        raise DataError(f"data.source {source!r}: expected a file that ends in {', '.join(SUFFIXES)}")
    if looks_local(source) or ("/" not in source and FILE_ENDING.fullmatch(Path(source).suffix.lower())):
        raise DataError(f"data.source {source!r}: no such file or folder (looked in {Path.cwd()}); {EXPECTED}")
    name, _, subset = source.rpartition("/") if source.count("/") == 2 else (source, "", None)
    try:
        check_on_hub(name, "dataset")
    except ConfigError as error:
        raise DataError(f"data.source {source!r}: {error}; {EXPECTED}") from error
    return name, subset


def _function(config: DataConfig) -> Callable[[], Any]:
    if "name" in config.options:
        raise ConfigError("data.options.name: the key 'name' names the function itself; rename the parameter")
    function = bind({**config.options, "name": config.source}, {}, "data.source")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ConfigError(f"data.source {config.source!r}: {error}; give it in data.options") from None
    return function


def _call(config: DataConfig) -> Iterator[SourceRow]:
    function = _function(config)
    try:
        rows = function()
        if not isinstance(rows, Iterable):
            raise DataError(f"data.source {config.source!r}: expected an iterable of Task or of dict rows, got {type(rows).__name__}")
        table = _is_table(rows)
        for number, value in enumerate(rows, start=1):
            yield SourceRow(config.source, number, without_fillings(value) if table else value)
    except RlftError:
        raise
    except Exception as error:  # a function by others: it may raise anything
        raise DataError(f"data.source {config.source!r} raised {explain(error)}") from error


def _is_table(rows: Any) -> bool:
    """Whether `rows` is a data set of Hugging Face. If that library is not loaded, it is none."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(rows, (library.Dataset, library.IterableDataset))


def without_fillings(row: Any) -> dict[str, Any]:
    """A row of a table without the nulls inside its cells: a table gives each object the keys that this object has in any row.

    A cell that is null, and a null that stands in a list, are what the row says, and stay.
    """
    return {name: _without_fillings(cell) for name, cell in row.items()}


def _without_fillings(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_fillings(item) for key, item in value.items() if item is not None}
    return [_without_fillings(item) for item in value] if isinstance(value, list | tuple) else value


def _checked(value: Any, number: int, config: DataConfig, seen: Mapping[str, Task]) -> Task | BadRow:
    task = value if isinstance(value, Task | BadRow) else _to_task(value, number, config)
    if isinstance(task, BadRow):
        return task
    if not isinstance(task.id, str) or not task.id:
        return BadRow("", 0, "id", f"expected text, got {task.id!r}")
    try:
        task = shaped(task)
    except RenderError as error:
        return BadRow("", 0, config.prompt, str(error))
    for way in (task, *task.variants):
        problem = _prompt_problem(way.messages, config) or _surrogate_problem(way, config)
        if problem:
            return problem
    if task.id in seen:
        return BadRow("", 0, config.id or "id", f"the id {task.id!r} stands in an earlier row too")
    return _with_system(task, config.system) if config.system else task


def shaped(task: Task) -> Task:
    """The task, and its variants, with texts as contents: what graders and judges read as well. Raises RenderError."""
    return replace(task, messages=tuple(normal(task.messages)), variants=tuple(map(shaped, task.variants)))


def _with_system(task: Task, system: str) -> Task:
    """The task, and every variant of it, with a system message before its own."""
    messages = ({"role": "system", "content": system}, *task.messages)
    return replace(task, messages=messages, variants=tuple(_with_system(way, system) for way in task.variants))


def _to_task(value: Any, number: int, config: DataConfig) -> Task | BadRow:
    if not isinstance(value, Mapping):
        return BadRow("", 0, "", f"expected an object with fields, got {type(value).__name__}")
    mapped = [name for name in (config.prompt, config.answer, config.id) if name]
    for name in mapped:
        if value.get(name) is None:
            return BadRow("", 0, name, "missing" if name not in value else "null")
    prompt = value[config.prompt]
    if not isinstance(prompt, str | Sequence):
        return BadRow("", 0, config.prompt, f"expected text or a list of messages, got {type(prompt).__name__}")
    task_id = value[config.id] if config.id else number
    if isinstance(task_id, bool) or not isinstance(task_id, str | int) or task_id == "":
        return BadRow("", 0, config.id, f"expected text or a whole number, got {task_id!r}")
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(without_nulls(m) for m in prompt)
    answer = value[config.answer] if config.answer else None
    return Task(str(task_id), messages, answer, {str(k): v for k, v in value.items() if k not in mapped})


def without_nulls(message: Any) -> Message:
    """A message without its keys that are null: for these it is the same as if they were not there."""
    return {k: v for k, v in message.items() if v is not None} if isinstance(message, Mapping) else message


def _prompt_problem(messages: Sequence[Message], config: DataConfig) -> BadRow | None:
    if config.system and any(m["role"] == "system" for m in messages):
        return BadRow("", 0, config.prompt, "has a system message of its own; leave data.system empty")
    if not any(m["content"].strip() for m in messages if m["role"] != "system"):
        return BadRow("", 0, config.prompt, "empty prompt")
    return None


def _surrogate_problem(task: Task, config: DataConfig) -> BadRow | None:
    fields = [(config.id or "id", task.id), (config.prompt, task.messages), (config.answer or "answer", task.answer), *task.meta.items()]
    for name, value in fields:
        if has_lone_surrogate(name) or has_lone_surrogate(value):
            return BadRow("", 0, name, "holds a lone surrogate character, which is not valid Unicode")
    return None


def has_lone_surrogate(value: Any) -> bool:
    """Whether text that is not valid Unicode stands anywhere in a value."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, Mapping):
        return any(has_lone_surrogate(part) for item in value.items() for part in item)
    return isinstance(value, list | tuple) and any(has_lone_surrogate(part) for part in value)


def _nothing_usable(config: DataConfig, bad_rows: Sequence[BadRow], columns: Mapping[str, int]) -> str:
    if not bad_rows:
        return f"data.source {config.source!r} is empty; give at least one row"
    for key in ("prompt", "answer", "id"):
        name = getattr(config, key)
        if name and columns and name not in columns:
            near = close_to(name, columns)
            return (
                f"data.source {config.source!r}: no row has the field {name!r} that data.{key} names"
                + (f"; did you mean {' or '.join(map(repr, near))}" if near else "")
                + f"; available: {', '.join(repr(column) for column in sorted(columns))}"
                + ('; without answers set data.answer = ""' if key == "answer" else "")
            )
    what = f"data.source {config.source!r}: none of its {len(bad_rows)} rows is usable"
    return f"{what}; correct them or the field names:\n{describe(bad_rows)}"
