"""Episodes on disk: what is written comes back, in one file a step, whoever wrote the parts."""

import json

import datasets
import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from rlft.data import stored
from rlft.data.stored import COLUMNS, PARTS, as_json, file_name, merge, read, write_part

EMPTY = {"text": "", "token_ids": [], "sources": [], "turn_ids": [], "loss_mask": [], "logprobs": []}


def record(task="t", index=0, components=None, turn_components=(), tokens=(), **changes):
    ids = np.asarray(tokens, np.int32)
    return {
        **{"run": "runs/a", "model": "m", "kind": "step", "step": 1, "worker": 0, "policy_version": 0, "group_id": f"0/{task}"},
        **{"index": index, "row": 0, "seed": 7, "task_id": task, "task_meta": as_json({"level": 3}), "answer": "4"},
        "messages": [{"role": "user", "content": "2+2=", "other": None}, {"role": "assistant", "content": "4", "other": None}],
        **{"status": "completed", "error": "", "ungraded": [], "feedback": "", "outcome": 1.0, "reward": 1.0},
        **{"components": as_json(components or {}), "turn_components": [as_json(parts) for parts in turn_components]},
        **{"tags": [""], "turn_rewards": [0.0] * len(turn_components), "finish_reasons": ["stop"], "policy_versions": [0]},
        **EMPTY,
        **{"token_ids": ids, "sources": ids, "turn_ids": ids, "loss_mask": ids > 0, "logprobs": -ids.astype(np.float32)},
        **changes,
    }  # fmt: skip


def part(folder, name, number, *records):
    write_part(folder / PARTS / name / f"{number:04d}.parquet", records)


def test_parts_of_several_workers_become_one_file_and_go(tmp_path):
    part(tmp_path, "step-000001", 1, record("b", worker=1, tokens=[1, 2]))
    part(tmp_path, "step-000001", 0, record("a", components={"right": 1.0}), record("c", components={"brief": 0.5}))
    assert list(tmp_path.glob("*.parquet")) == []  # nobody takes a part for a step
    assert merge(tmp_path, "step-000001") == {"right", "brief"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == [PARTS, "step-000001.parquet"]
    back = read(tmp_path / "step-000001.parquet", None)
    told = [(one["task_id"], one["worker"], one["components"]) for one in back]
    assert told == [("a", 0, {"right": 1.0}), ("c", 0, {"brief": 0.5}), ("b", 1, {})]
    assert back[2]["token_ids"] == [1, 2] and back[2]["logprobs"] == [-1.0, -2.0] and back[2]["loss_mask"] == [True, True]
    assert json.loads(back[0]["task_meta"]) == {"level": 3} and back[0]["messages"][1]["content"] == "4"


def test_a_reader_of_conversations_loads_no_tokens(tmp_path):
    part(tmp_path, "eval-000000", 0, record(tokens=[1]))
    merge(tmp_path, "eval-000000")
    (one,) = read(tmp_path / "eval-000000.parquet")
    assert not {"token_ids", "logprobs", "text"} & set(one) and one["components"] == {}


def test_components_of_turns_come_back_turn_by_turn(tmp_path):
    part(tmp_path, "s-1", 0, record(turn_components=[{"right": 0.0}, {"right": 1.0, "env": 2.0}]))
    merge(tmp_path, "s-1")
    assert read(tmp_path / "s-1.parquet")[0]["turn_components"] == [{"right": 0.0}, {"right": 1.0, "env": 2.0}]


def test_every_file_of_a_run_has_a_place_for_the_components_of_those_before(tmp_path):
    part(tmp_path, "step-000001", 0, record(components={"right": 1.0}))
    known = merge(tmp_path, "step-000001")
    part(tmp_path, "step-000002", 0, record(components={}, status="failed", error="no verdict"))
    assert merge(tmp_path, "step-000002", known) == known
    assert pq.read_schema(tmp_path / "step-000001.parquet") == pq.read_schema(tmp_path / "step-000002.parquet")
    assert merge(tmp_path, "step-000003", known) == known and not (tmp_path / "step-000003.parquet").exists()  # nothing was stored


def test_data_tools_read_components_as_a_table_by_name(tmp_path):
    for step in (1, 2):
        part(tmp_path, file_name("step", step), 0, record(components={"right": step / 2}))
        merge(tmp_path, file_name("step", step))
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), cache_dir=str(tmp_path / "cache"))["train"]
    assert [row["components"] for row in loaded] == [{"right": 0.5}, {"right": 1.0}]
    assert loaded[0]["messages"][0] == {"role": "user", "content": "2+2=", "other": None}
    frame = pd.read_parquet(tmp_path / "step-000002.parquet")
    assert frame["components"][0] == {"right": 1.0}


def test_a_merge_holds_one_row_group_and_never_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "GROUP_TOKENS", 2**18)
    tokens = np.random.default_rng(0).integers(0, 100, 2**18)
    for worker in range(2):
        part(tmp_path, "step-000001", worker, *(record(index=i, tokens=tokens) for i in range(16)))
    held = []
    write = pq.ParquetWriter.write_table
    monkeypatch.setattr(pq.ParquetWriter, "write_table", lambda self, table: (held.append(table.num_rows), write(self, table))[1])
    before = psutil.Process().memory_info().rss
    merge(tmp_path, "step-000001")
    grown = psutil.Process().memory_info().rss - before
    whole = pq.read_table(tmp_path / "step-000001.parquet")
    assert held == [1] * 32 and whole.num_rows == 32
    assert grown < whole.nbytes / 2  # the control: a table of the whole step is twice as large and more


@pytest.mark.parametrize("text", ["\ud83d", "a\udc00b", "fine ä"])
def test_half_a_surrogate_pair_does_not_stop_a_run(tmp_path, text):
    said = stored.plain_text(text)
    part(tmp_path, "s-1", 0, record(messages=[{"role": "user", "content": said, "other": as_json({"x": text})}]))
    merge(tmp_path, "s-1")
    assert read(tmp_path / "s-1.parquet")[0]["messages"][0]["content"] == text.encode("utf-8", "backslashreplace").decode()


def test_every_column_of_a_record_is_stored_and_no_other(tmp_path):
    assert set(record()) == set(COLUMNS)
