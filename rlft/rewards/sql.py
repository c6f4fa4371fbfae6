"""SQL graded by what it returns: the predicted and the gold query run on a copy of a SQLite database."""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.errors import TaskError
from rlft.rewards.extract import final, gold, last_fence, short
from rlft.types import Task, Trajectory

MAX_QUERY = 10_000  # characters
MAX_VALUE = 100_000  # bytes of one value: functions of two long texts take time quadratic in it
MAX_RESULT = 20_000_000  # characters and bytes of all values together
STEP = 50  # instructions of SQLite's machine between two looks at the limit
_DENIED_FUNCTIONS = {"load_extension", "fts3_tokenizer", "writefile", "readfile", "edit", "zeroblob", "randomblob"}
_SKIPPED = re.compile(
    r"'[^']*+'|\"[^\"]*+\"|`[^`]*+`|\[[^\]]*+\]|--[^\n]*+|/\*(?s:.*?)\*/|[();]|\border\s+by\b|\blimit\b", re.IGNORECASE
)
_LIMIT = re.compile(r"limit\s+(\d{1,9})(?:\s+offset\s+(\d{1,9})|\s*,\s*(\d{1,9}))?\s*", re.IGNORECASE)


class _Refused(Exception):
    """A query that was not allowed or did not come to an end; the text says why."""


@dataclass(frozen=True)
class Result:
    """What a query returned."""

    columns: int
    rows: list[tuple[Any, ...]]


def sql_equal(
    task: Task, trajectory: Trajectory, *, max_rows: int = 10_000, max_steps: int = 20_000_000, limit_s: float = 5.0, heap_mb: int = 256
) -> tuple[float, str]:
    """1 if the query said returns what the gold query returns; else 0.

    The database is `task.meta["schema"]`, a script of CREATE and INSERT, or a list of them (all must agree: a query may be
    right on one by chance, above all where the gold query returns nothing), or `task.meta["database"]`, the path of a SQLite
    file. It is copied into memory; one SELECT may run on it, and nothing else: no writing, ATTACH, PRAGMA or extension.
    Columns count by place, not by name; rows as a multiset, in order only if the gold query has an outermost ORDER BY, and among
    rows that are equal by it in any order (with a LIMIT, any of them); floats to ten digits. Reads the last ```sql block of the
    final answer, else the last that names no language, else all of it.

    Args:
        max_rows: that a query may return.
        max_steps: instructions of SQLite's virtual machine that a query may take.
        limit_s: longest time of a query, for what takes long in few instructions.
        heap_mb: memory that SQLite may use in this process; the least that was asked for in it.

    Raises:
        TaskError: there is no database, or the gold query (the task's answer) cannot be run on it.
    """
    right = str(gold(task, "sql_equal"))
    text = final(trajectory)
    fenced = last_fence(text, "sql", "sqlite")
    query = (text if fenced is None else fenced).strip()
    for database in _databases(task, heap_mb):
        try:
            expected = run_query(database, right, max_rows, max_steps, limit_s)
        except _Refused as error:
            raise TaskError(f"sql_equal: the gold query of task {task.id!r} cannot be run: {error}") from None
        try:
            found = run_query(database, query, max_rows, max_steps, limit_s)
        except _Refused as error:
            return 0.0, str(error)
        if found.columns != expected.columns:
            return 0.0, f"returned {found.columns} columns, not {expected.columns}"
        if has_order(right):
            same = found.rows == expected.rows or _same_but_for_ties(database, right, found, max_rows, max_steps, limit_s)
        else:
            same = Counter(found.rows) == Counter(expected.rows)
        if not same:
            return 0.0, f"returned {len(found.rows)} rows that are not the {len(expected.rows)} expected ones"
    return 1.0, ""


def run_query(database: bytes, query: str, max_rows: int, max_steps: int, limit_s: float) -> Result:
    """What comes of one SELECT on a serialized database. Raises _Refused for whatever else may happen."""
    if len(query) > MAX_QUERY:
        raise _Refused(f"the query has more than {MAX_QUERY} characters")
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(database)
        _restrict(connection, max_steps, limit_s)
        cursor = connection.execute(query)
        if cursor.description is None:
            raise _Refused("no query")
        rows, size = [], 0
        for row in cursor:
            rows.append(tuple(_comparable(value) for value in row))
            size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
            if len(rows) > max_rows or size > MAX_RESULT:
                raise _Refused(f"more than {max_rows} rows, or values of more than {MAX_RESULT} bytes")
        return Result(len(cursor.description), rows)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        raise _Refused(f"{type(error).__name__}: {short(str(error), 200)}") from None
    finally:
        connection.close()


def has_order(query: str) -> bool:
    """Whether a query has an ORDER BY outside of parentheses, quotations and comments."""
    return any(word[0] in "oO" for word, _ in _outermost(query))


def _outermost(query: str) -> list[tuple[str, int]]:
    """Every ORDER BY, LIMIT and semicolon outside of parentheses, quotations and comments, with its place."""
    depth, found = 0, []
    for match in _SKIPPED.finditer(query):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0 and match[0][0] in "oOlL;":
            found.append((match[0], match.start()))
    return found


def _same_but_for_ties(database: bytes, right: str, found: Result, max_rows: int, max_steps: int, limit_s: float) -> bool:
    """Whether rows are those of a query with ORDER BY, in another order among rows that are equal by it.

    The query is run twice more, with its columns as further terms of ORDER BY, upwards and downwards: where both have had the same
    rows a stretch of equal ones ends. Nothing of the terms has to be understood for that.
    """
    end = next((place for word, place in _outermost(right) if word == ";"), len(right))
    cut = next((place for word, place in reversed(_outermost(right[:end])) if word[0] in "lL"), end)
    head, tail = right[:cut], right[cut:end]
    limit = _LIMIT.fullmatch(tail.strip() + " ") if tail else None
    start, stop = 0, max_rows
    if limit:  # LIMIT count OFFSET start, or LIMIT start, count
        start, count = (int(limit[1]), int(limit[3])) if limit[3] else (int(limit[2] or 0), int(limit[1]))
        stop, tail = start + count, ""

    def sorted_by(direction: str) -> list[tuple[Any, ...]]:
        terms = ", ".join(f"{i} COLLATE BINARY {direction}" for i in range(1, found.columns + 1))
        return run_query(database, f"{head}\n, {terms}\n{tail}", max_rows, max_steps, limit_s).rows

    with contextlib.suppress(_Refused):  # such as more rows without its LIMIT than a query may return
        return _same_in_stretches(found.rows, sorted_by("ASC"), sorted_by("DESC"), start, stop)
    return False


def _same_in_stretches(
    found: list[tuple[Any, ...]], upwards: list[tuple[Any, ...]], downwards: list[tuple[Any, ...]], start: int, stop: int
) -> bool:
    """Whether `found` are the rows from `start` to `stop` of an order of which two are given, that differ among equal ones alone."""
    if len(found) != max(0, min(stop, len(upwards)) - start):
        return False
    begun, ahead = 0, Counter[tuple[Any, ...]]()
    for place, (one, other) in enumerate(zip(upwards, downwards, strict=True), start=1):
        ahead[one] += 1
        ahead[other] -= 1
        if not ahead[one] and not ahead[other] and not any(ahead.values()):
            here = found[max(begun - start, 0) : max(min(place, stop) - start, 0)]
            if not Counter(here) <= Counter(upwards[begun:place]):
                return False
            begun, ahead = place, Counter()
    return True


def _restrict(connection: sqlite3.Connection, max_steps: int, limit_s: float) -> None:
    """From here on: one SELECT at a time, of bounded time and size."""
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 100),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 50),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        connection.setlimit(limit, value)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA query_only = ON")
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    connection.set_authorizer(_authorize)
    connection.set_progress_handler(_stop_after(max_steps, limit_s), STEP)


def _authorize(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").casefold() not in _DENIED_FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _stop_after(max_steps: int, limit_s: float) -> Callable[[], bool]:
    steps, deadline = 0, time.monotonic() + limit_s

    def look() -> bool:
        nonlocal steps
        steps += STEP
        return steps > max_steps or time.monotonic() > deadline

    return look


def _comparable(value: Any) -> Any:
    """Values that differ by rounding alone are made equal; a whole float is its int."""
    return float(f"{value:.10g}") if isinstance(value, float) else value


def _databases(task: Task, heap_mb: int) -> list[bytes]:
    """Every database of the task, serialized. Raises TaskError."""
    scripts, path = task.meta.get("schema"), task.meta.get("database")
    try:
        if path is not None:
            return [_from_file(str(path), Path(path).stat().st_mtime_ns, heap_mb)]
        if scripts:
            return [_from_script(script, heap_mb) for script in ([scripts] if isinstance(scripts, str) else scripts)]
    except (sqlite3.Error, OSError, TypeError, ValueError) as error:
        raise TaskError(f"sql_equal: the database of task {task.id!r} cannot be made: {error}") from None
    raise TaskError(f"sql_equal: task {task.id!r} has neither meta['schema'] (a SQL script) nor meta['database'] (a path)")


@functools.lru_cache(maxsize=32)
def _from_script(script: str, heap_mb: int) -> bytes:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"PRAGMA hard_heap_limit = {int(heap_mb) << 20}")
        connection.executescript(script)
        return connection.serialize()
    finally:
        connection.close()


@functools.lru_cache(maxsize=8)
def _from_file(path: str, modified_ns: int, heap_mb: int) -> bytes:
    """`modified_ns` is there for the cache alone: a file that changed is read again."""
    connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
    try:
        connection.execute(f"PRAGMA hard_heap_limit = {int(heap_mb) << 20}")
        connection.execute("SELECT count(*) FROM sqlite_master")  # a file that is no database fails here
        return connection.serialize()
    finally:
        connection.close()
