"""Rows of CSV and TSV files as people save them: with another separator, blanks behind it, or pandas' column of row numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from rlft.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
OTHERS = (",", ";", "\t")
MAX_CELL = 2**31 - 1  # characters of a CSV cell; Python's own limit is 131,072


def csv_rows(lines: IO[str], file: Path, kind: str) -> Iterator[dict[str, str | None] | list[str]]:
    """Rows below a line of names, by name; the surplus cells, as a list, of a row with more cells than there are names.

    A cell is text as it stands ("007" stays so), and an empty one is null. A first column without a name is left out: it holds
    the numbers of rows that pandas writes.

    Args:
        lines: the file, opened with `newline=""`.
        kind: ".csv" or ".tsv"; where the line of names is one name to its separator, the other separators are tried.

    Raises:
        DataError: no name for each column, or a line that is not CSV or not UTF-8.
    """
    csv.field_size_limit(MAX_CELL)
    rows: Any = None
    try:
        first = list(islice(lines, 1))
        rows = csv.DictReader(chain(first, lines), strict=True, **_dialect(first, DELIMITERS[kind]))
        names = [name.strip() for name in rows.fieldnames or []]
        named = names[1:] if names[:1] == [""] and len(names) > 1 else names
        if len(set(named)) < len(named) or "" in named:
            raise DataError(f"{file}: expected a first line with a name for each column, got {names}")
        rows.fieldnames = names
        for row in rows:
            surplus = row.pop(None, None)
            value = {name: cell or None for name, cell in row.items() if name}
            yield surplus or value
    except (csv.Error, UnicodeDecodeError) as error:
        line = rows.line_num + 1 if rows else 1
        raise DataError(f"{file}, line {line}: not readable as {kind[1:].upper()} in UTF-8: {error}") from error


def _dialect(first: Sequence[str], usual: str) -> dict[str, Any]:
    """How a file separates its cells, by its first line."""
    split = {mark: next(csv.reader(first, delimiter=mark), []) for mark in OTHERS}
    delimiter = usual if len(split[usual]) != 1 else max((usual, *OTHERS), key=lambda mark: len(split[mark]))
    others = split[delimiter][1:]
    return {"delimiter": delimiter, "skipinitialspace": bool(others) and all(name.startswith(" ") for name in others)}
