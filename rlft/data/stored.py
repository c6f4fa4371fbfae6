"""Episodes on disk: their columns, how the parts that workers write become one file a step, and how they are read back.

One record per token row, which is one per trajectory unless its history was rewritten. `datasets.load_dataset`, pandas
and DuckDB read the files; reward components are a struct there, a dict in Python.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PARTS = ".parts"  # folder of what workers wrote and nobody has merged yet
GROUP_TOKENS = 2**20  # of a row group: what a merge holds in memory, up to one record more
TEXT, WHOLE = pa.string(), pa.int32()
MESSAGE = pa.struct([("role", TEXT), ("content", TEXT), ("other", TEXT)])
# A part holds components as JSON: a worker does not know what other workers' rewards are called.
COLUMNS = {
    "run": TEXT,
    "model": TEXT,
    "kind": TEXT,  # "step" (trained on), "eval", "greedy" or "first"
    "step": WHOLE,
    "worker": WHOLE,
    "policy_version": WHOLE,  # oldest over the turns
    "group_id": TEXT,
    "index": WHOLE,  # in its group
    "row": WHOLE,  # of its trajectory
    "seed": pa.int64(),  # of its first answer; null where answers are not seeded
    "task_id": TEXT,
    "task_meta": TEXT,  # JSON
    "answer": TEXT,  # null: the task has none
    "messages": pa.list_(MESSAGE),  # everything that was said; "other" is JSON of what else a message holds
    "status": TEXT,
    "error": TEXT,
    "ungraded": pa.list_(TEXT),  # "component: cause"
    "feedback": TEXT,
    "outcome": pa.float64(),  # everything it earned
    "reward": pa.float64(),  # of that for the whole trajectory; the turns' come on top
    "components": TEXT,
    "tags": pa.list_(TEXT),
    "turn_rewards": pa.list_(pa.float64()),
    "turn_components": pa.list_(TEXT),
    "finish_reasons": pa.list_(TEXT),
    "policy_versions": pa.list_(WHOLE),
    "text": TEXT,
    "token_ids": pa.list_(WHOLE),
    "sources": pa.list_(pa.int8()),
    "turn_ids": pa.list_(pa.int16()),
    "loss_mask": pa.list_(pa.bool_()),
    "logprobs": pa.list_(pa.float32()),
}
TOKENS = ("text", "token_ids", "sources", "turn_ids", "loss_mask", "logprobs")
SPOKEN = tuple(name for name in COLUMNS if name not in TOKENS)  # what a reader of conversations needs


def file_name(kind: str, step: int) -> str:
    """Of the file that holds a step's trajectories, or an evaluation's."""
    return f"{kind}-{step:06d}"


def write_part(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a worker's records to `path`, in row groups of about GROUP_TOKENS tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(COLUMNS)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for chunk in _chunks(records):
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))


def merge(folder: Path, name: str, known: frozenset[str] = frozenset()) -> frozenset[str]:
    """Make `folder/<name>.parquet` of its parts, one row group in memory at a time, and remove them.

    Args:
        known: components of earlier files, which have a place in this one too, so that all read alike.

    Returns:
        The components that the file has a place for. Without parts there is no file.
    """
    home = folder / PARTS / name
    parts = [pq.ParquetFile(path) for path in sorted(home.glob("*.parquet"))]
    if not parts:
        return known
    names = known.union(*(_components(part) for part in parts))
    scratch = folder / f".{name}.tmp"
    schema = _merged_schema(names)
    with pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
        for part in parts:
            for number in range(part.num_row_groups):
                writer.write_table(_as_structs(part.read_row_group(number), schema))
            part.close()
    scratch.rename(folder / f"{name}.parquet")  # a reader never finds half a file
    shutil.rmtree(home)
    return names


def read(path: Path, columns: Sequence[str] | None = SPOKEN) -> list[dict[str, Any]]:
    """The records of a file; by default without tokens. A component that a trajectory does not have is not in its dict."""
    file = pq.ParquetFile(path)
    wanted = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
    records = file.read(wanted).to_pylist()
    for record in records:
        record["components"] = _without_none(record.get("components"))
        record["turn_components"] = [_without_none(parts) for parts in record.get("turn_components") or record["turn_rewards"]]
    return records


def plain_text(text: str) -> str:
    """Text as UTF-8 can hold it: half a surrogate pair, which a model can put into JSON, is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def as_json(value: Any) -> str:
    """Anything as JSON; what JSON does not know is written as its text."""
    return plain_text(json.dumps(value, ensure_ascii=False, default=str))


def _chunks(records: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    chunk: list[Mapping[str, Any]] = []
    held = 0
    for record in records:
        chunk.append(record)
        held += len(record["token_ids"])
        if held >= GROUP_TOKENS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _components(part: pq.ParquetFile) -> set[str]:
    columns = part.read(["components", "turn_components"])
    texts = [*columns["components"].to_pylist(), *(text for turns in columns["turn_components"].to_pylist() for text in turns)]
    return {name for text in set(texts) for name in json.loads(text)}


def _merged_schema(names: Iterable[str]) -> pa.Schema:
    """The columns of a file. Parquet has no struct without fields: where nothing has components there is no such column."""
    struct = pa.struct([(name, pa.float64()) for name in sorted(names)])
    columns = {**COLUMNS, "components": struct, "turn_components": pa.list_(struct)}
    if not struct.num_fields:
        del columns["components"], columns["turn_components"]
    return pa.schema(columns)


def _as_structs(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if "components" in schema.names:
        whole = [json.loads(text) for text in table["components"].to_pylist()]
        turns = [[json.loads(text) for text in texts] for texts in table["turn_components"].to_pylist()]
        for name, values in (("components", whole), ("turn_components", turns)):
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, schema.field(name).type))
    return table.select(schema.names)


def _without_none(parts: Mapping[str, float | None] | float | None) -> dict[str, float]:
    return {name: value for name, value in parts.items() if value is not None} if isinstance(parts, Mapping) else {}
