import gzip
import json
import os
import random
import string
import sys
import textwrap
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.config import DataConfig
from rlft.data.sources import describe, load_tasks, look_at
from rlft.errors import ConfigError, DataError
from rlft.types import Task


def rows(n):
    return [{"prompt": f"{i}+1=", "answer": i + 1, "level": i % 2} for i in range(n)]


def write_jsonl(path, items):
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))
    return str(path)


def write_parquet(path, items):
    pq.write_table(pa.Table.from_pylist(items), path)
    return str(path)


def write_json(path, items):
    path.write_text(json.dumps(items))
    return str(path)


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", write_jsonl), ("a.json", write_json), ("a.parquet", write_parquet)])
def test_every_file_type_gives_the_same_tasks(tmp_path, name, write):
    tasks, bad = load_tasks(DataConfig(source=write(tmp_path / name, rows(3))))
    want = [Task(str(i + 1), ({"role": "user", "content": f"{i}+1="},), i + 1, {"level": i % 2}) for i in range(3)]
    assert (list(tasks), bad) == (want, ())


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", write_jsonl), ("a.json", write_json), ("a.parquet", write_parquet)])
def test_text_that_looks_like_a_date_stays_text(tmp_path, name, write):
    source = write(tmp_path / name, [{"prompt": "today?", "answer": "2020-01-01"}])
    assert load_tasks(DataConfig(source=source)).tasks[0].answer == "2020-01-01"


def test_a_glob_reads_all_files_in_name_order_with_ids_over_all(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", rows(2))
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "first", "answer": 0}])
    tasks, _ = load_tasks(DataConfig(source=str(tmp_path / "*.jsonl")))
    assert [(t.id, t.messages[0]["content"]) for t in tasks] == [("1", "first"), ("2", "0+1="), ("3", "1+1=")]


def test_a_file_whose_name_holds_glob_characters_is_read(tmp_path):
    for name, write in (("a[1].jsonl", write_jsonl), ("a[1].parquet", write_parquet)):
        assert len(load_tasks(DataConfig(source=write(tmp_path / name, rows(2)))).tasks) == 2


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t")])
def test_cells_of_a_csv_file_are_texts_as_they_stand_and_empty_ones_are_null(tmp_path, name, mark):
    lines = [["prompt", "answer", "note"], ['"two\nlines, said ""so"""', "007", ""], ["p", "", "n"], ["p", "1", "n", "surplus"], ["q", "2"]]
    (tmp_path / name).write_text("\ufeff" + "\n".join(mark.join(line) for line in lines) + "\n", encoding="utf-8")
    tasks, bad = load_tasks(DataConfig(source=str(tmp_path / name)))
    assert [(task.messages[0]["content"], task.answer, dict(task.meta)) for task in tasks] == [
        ('two\nlines, said "so"', "007", {"note": None}),
        ("q", "2", {"note": None}),
    ]
    assert [(row.row, row.field, row.reason) for row in bad] == [(2, "answer", "null"), (3, "", "more cells than columns: ['surplus']")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"prompt,answer\n\"never closed,1\n", "line 2: not readable as CSV in UTF-8: unexpected end of data"),
        (b"prompt,answer\n\xff,1\n", "not readable as CSV in UTF-8: 'utf-8' codec can't decode"),
        (b"prompt,prompt\n1,2\n", "expected a first line with a name for each column, got"),
        (b"", "is empty; give at least one row"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_told_with_its_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_tasks(DataConfig(source=str(tmp_path / "a.csv")))


TWO = [("1+1=", "2"), ("2+2=", "4")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "prompt,answer\n1+1=,2\n2+2=,4\n"),
        ("a.csv", "prompt;answer\n1+1=;2\n2+2=;4\n"),
        ("a.csv", "prompt\tanswer\n1+1=\t2\n2+2=\t4\n"),
        ("a.tsv", "prompt,answer\n1+1=,2\n2+2=,4\n"),
        ("a.csv", "prompt, answer\n1+1=, 2\n2+2=, 4\n"),
        ("a.csv", '"prompt", "answer"\n"1+1=", "2"\n"2+2=", "4"\n'),
        ("a.csv", " prompt ,answer \n1+1=,2\n2+2=,4\n"),
        ("a.csv", ",prompt,answer\n0,1+1=,2\n1,2+2=,4\n"),
        ("A.CSV", "prompt,answer\n1+1=,2\n2+2=,4\n"),
    ],
)
def test_a_table_is_read_as_people_save_it(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    tasks, bad = load_tasks(DataConfig(source=str(tmp_path / name)))
    assert [(task.messages[0]["content"], task.answer, dict(task.meta)) for task in tasks] == [(*pair, {}) for pair in TWO] and not bad


def test_a_separator_in_a_cell_or_in_a_table_of_one_column_stays_text(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,answer\na;b\t c, x\n")
    assert load_tasks(DataConfig(source=str(tmp_path / "a.csv"))).tasks[0].messages[0]["content"] == "a;b\t c"
    assert load_tasks(DataConfig(source=str(tmp_path / "a.csv"))).tasks[0].answer == " x"
    (tmp_path / "b.csv").write_text("prompt\na;b\n")
    assert load_tasks(DataConfig(source=str(tmp_path / "b.csv"), answer="")).tasks[0].messages[0]["content"] == "a;b"
    (tmp_path / "c.csv").write_text("prompt,,answer\na,0,b\n")  # the first column may lack a name, and no other
    with pytest.raises(DataError, match="expected a first line with a name for each column"):
        load_tasks(DataConfig(source=str(tmp_path / "c.csv")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "A.JSONL"])
def test_a_packed_file_and_an_ending_in_capitals_are_read_as_the_plain_file(tmp_path, name):
    text = "prompt,answer\n1+1=,2\n" if name == "a.csv" else json.dumps({"prompt": "1+1=", "answer": "2"})
    text = f"[{text}]" if name == "a.json" else text
    (tmp_path / name).write_text(text)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = (load_tasks(DataConfig(source=str(tmp_path / one))).tasks for one in (name, f"{name}.gz"))
    assert plain == packed and plain[0].answer == "2"


def test_a_packed_parquet_file_is_to_be_unpacked(tmp_path):
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="a packed Parquet file; unpack it with gunzip"):
        load_tasks(DataConfig(source=str(tmp_path / "a.parquet.gz")))


def test_a_long_cell_of_a_csv_file_is_read_whole(tmp_path):
    (tmp_path / "a.csv").write_text(f"prompt,answer\n{'x' * 200_000},1\n")
    assert len(load_tasks(DataConfig(source=str(tmp_path / "a.csv"))).tasks[0].messages[0]["content"]) == 200_000


def test_a_look_at_a_source_reads_no_further_than_its_first_good_row_and_calls_no_function(tmp_path):
    good = write_jsonl(tmp_path / "a.jsonl", rows(1))
    with Path(good).open("a") as file:
        file.write("not json\n")
    look_at(DataConfig(source=good))
    look_at(DataConfig(source="os:abort"))
    for source, message in ((tmp_path / "none.jsonl", "no such file"), (tmp_path / "none", "no such file or folder")):
        with pytest.raises(DataError, match=message):
            look_at(DataConfig(source=str(source)))
    with pytest.raises(DataError, match="no row has the field 'q'"):
        look_at(DataConfig(source=good, prompt="q"))
    look_at(DataConfig(source=good, prompt="q"), tasks=False)  # the control: pairs have other fields


def test_fields_are_mapped_and_the_rest_lands_in_meta(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"q": "hi", "gold": [1, 2], "key": 7, "src": "x", "prompt": "unused"}])
    (task,), _ = load_tasks(DataConfig(source=source, prompt="q", answer="gold", id="key", system="Be brief."))
    assert task == Task(
        "7", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}), [1, 2], {"src": "x", "prompt": "unused"}
    )


def test_a_prompt_of_messages_is_kept_and_parquets_null_keys_are_not(tmp_path):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u", "name": "ann"}]
    source = write_parquet(tmp_path / "a.parquet", [{"prompt": messages, "answer": 1}])
    assert load_tasks(DataConfig(source=source)).tasks[0].messages == tuple(messages)


def test_contents_of_text_parts_become_the_text_that_graders_and_judges_read(tmp_path):
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
    call = {"function": {"name": "add", "arguments": {}}}
    prompt = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    source = write_jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": 1}])
    user, assistant = load_tasks(DataConfig(source=source)).tasks[0].messages
    assert user["content"] == "1+1?" and assistant == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_an_empty_answer_field_means_no_answers(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "write a poem"}])
    assert load_tasks(DataConfig(source=source, answer="")).tasks[0].answer is None


GOOD = {"id": "good", "prompt": "p", "answer": 1}
BROKEN = [
    ('{"id": "x", "prompt": ', "", "not valid JSON"),
    ("[1, 2]", "", "expected an object with fields, got list"),
    ("[" * 100_000, "", "not valid JSON"),
    ({"id": "x", "answer": 1}, "prompt", "missing"),
    ({"id": "x", "prompt": "p", "answer": None}, "answer", "null"),
    ({"prompt": "p", "answer": 1}, "id", "missing"),
    ({"id": "x", "prompt": 5, "answer": 1}, "prompt", "expected text or a list of messages, got int"),
    ({"id": "x", "prompt": " \n", "answer": 1}, "prompt", "empty prompt"),
    ({"id": "x", "prompt": [], "answer": 1}, "prompt", "empty prompt"),
    ({"id": "x", "prompt": [{"role": "user"}], "answer": 1}, "prompt", "message 0: expected text in 'role' and 'content'"),
    ({"id": "x", "prompt": ["hi"], "answer": 1}, "prompt", "message 0"),
    ({"id": "x", "prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1}, "prompt", "part 0 of 'content'"),
    ({"id": "good", "prompt": "again", "answer": 1}, "id", "the id 'good' stands in an earlier row too"),
    ({"id": True, "prompt": "p", "answer": 1}, "id", "expected text or a whole number, got True"),
    ({"id": "", "prompt": "p", "answer": 1}, "id", "expected text or a whole number, got ''"),
    ({"id": "x", "prompt": "a\ud800b", "answer": 1}, "prompt", "lone surrogate"),
    ({"id": "x", "prompt": [{"role": "user", "content": "\udc00"}], "answer": 1}, "prompt", "lone surrogate"),
    ({"id": "x", "prompt": "p", "answer": ["\ud800"]}, "answer", "lone surrogate"),
    ({"id": "\ud800", "prompt": "p", "answer": 1}, "id", "lone surrogate"),
    ({"id": "x", "prompt": "p", "answer": 1, "note": {"k": "\ud800"}}, "note", "lone surrogate"),
]


@pytest.mark.parametrize(("item", "field", "reason"), BROKEN)
def test_a_bad_row_is_reported_with_file_row_and_field_and_the_rest_goes_on(tmp_path, item, field, reason):
    source = write_jsonl(tmp_path / "a.jsonl", [GOOD, "", item, {"id": 2, "prompt": "q", "answer": 2}])
    tasks, (bad,) = load_tasks(DataConfig(source=source, id="id"))
    assert [task.id for task in tasks] == ["good", "2"]
    assert (bad.source, bad.row, bad.field) == (source, 3, field)  # the third line: the blank one counts
    assert reason in bad.reason
    describe([bad]).encode()  # can be shown on any screen


def test_a_surrogate_pair_is_a_character_and_no_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "\\ud83d\\ude00", "answer": 1}\n')
    assert load_tasks(DataConfig(source=str(tmp_path / "a.jsonl"))).tasks[0].messages[0]["content"] == "😀"


def test_a_line_that_is_not_utf8_is_a_bad_row_and_a_byte_order_mark_is_none(tmp_path):
    good = json.dumps({"prompt": "p", "answer": 1}).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"\n" + b'{"prompt": "\xff"}\n' + good)
    tasks, (bad,) = load_tasks(DataConfig(source=str(tmp_path / "a.jsonl")))
    assert [t.id for t in tasks] == ["1", "3"] and bad.row == 2


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any))
def test_good_and_bad_rows_partition_the_file(tmp_path_factory, goods):
    items = [{"prompt": f"p{i}", "answer": i} if good else {"prompt": "", "answer": i} for i, good in enumerate(goods)]
    tasks, bad = load_tasks(DataConfig(source=write_jsonl(tmp_path_factory.mktemp("part") / "a.jsonl", items)))
    assert sorted([*(int(t.id) for t in tasks), *(b.row for b in bad)]) == list(range(1, len(goods) + 1))


def test_limit_counts_good_rows(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "", "answer": 0}, *rows(5)])
    tasks, bad = load_tasks(DataConfig(source=source, limit=2))
    assert [t.id for t in tasks] == ["2", "3"] and len(bad) == 1


def test_a_second_system_message_is_refused(tmp_path):
    own = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "answer": 1}
    source = write_jsonl(tmp_path / "a.jsonl", [own, *rows(1)])
    tasks, bad = load_tasks(DataConfig(source=source, system="Be brief."))
    assert len(tasks) == 1 and "leave data.system empty" in bad[0].reason
    assert len(load_tasks(DataConfig(source=source)).tasks) == 2


def test_a_system_message_stands_before_every_variant(tmp_path, monkeypatch):
    (tmp_path / "two_orders.py").write_text(
        "from rlft import Task\n"
        "def ask(text): return ({'role': 'user', 'content': text},)\n"
        "def tasks(): return [Task('1', ask('ab'), 'A', variants=(Task('1/2', ask('ba'), 'B'),))]\n"
        "def empty(): return [Task('1', ask('ab'), 'A', variants=(Task('1/2', ask(' '), 'B'),)), *tasks()[:0], Task('2', ask('x'), 'A')]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (task,), _ = load_tasks(DataConfig(source="two_orders:tasks", system="Be brief."))
    assert [[m["content"] for m in way.messages] for way in (task, *task.variants)] == [["Be brief.", "ab"], ["Be brief.", "ba"]]
    assert [(len(load_tasks(DataConfig(source=f"two_orders:{name}")).bad_rows)) for name in ("tasks", "empty")] == [0, 1]


ERRORS = [
    (DataConfig(), "data.source is not set"),
    (DataConfig(source="no/such/file.jsonl"), r"no/such/file.jsonl'?: no such file"),
    (DataConfig(source="no/such/*.parquet"), "no such file"),
]


@pytest.mark.parametrize(("config", "message"), ERRORS)
def test_a_missing_source_is_named(config, message):
    with pytest.raises(DataError, match=message):
        load_tasks(config)


def test_a_field_that_no_row_has_is_named_with_the_nearest(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"prompts": "p", "solution": 1}] * 3)
    with pytest.raises(DataError, match="field 'prompt' that data.prompt names; did you mean 'prompts'; available: 'prompts', 'solution'"):
        load_tasks(DataConfig(source=source))
    with pytest.raises(DataError, match="'answer' that data.answer names; available: .* without answers set data.answer"):
        load_tasks(DataConfig(source=source, prompt="prompts"))


def test_a_source_without_a_usable_row_says_why(tmp_path):
    with pytest.raises(DataError, match="none of its 7 rows is usable(.|\n)*row 1, field 'prompt': empty prompt(.|\n)*and 2 more"):
        load_tasks(DataConfig(source=write_jsonl(tmp_path / "a.jsonl", [{"prompt": "", "answer": 1}] * 7)))
    with pytest.raises(DataError, match="is empty"):
        load_tasks(DataConfig(source=write_jsonl(tmp_path / "b.jsonl", [])))


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.json", '{"a": 1}'), ("a.parquet", "nonsense"), ("a.csv", "a,b")])
def test_an_unreadable_file_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=name):
        load_tasks(DataConfig(source=str(tmp_path / name)))


def test_a_folder_goes_through_datasets_with_its_split(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    write_parquet(tmp_path / "hub" / "test.parquet", rows(2))
    assert len(load_tasks(DataConfig(source=str(tmp_path / "hub"), split="test")).tasks) == 2
    with pytest.raises(DataError, match="split 'train'.*Unknown split"):
        load_tasks(DataConfig(source=str(tmp_path / "hub"), split="train"))


@pytest.fixture
def functions(tmp_path, monkeypatch):
    module = "functions_" + "".join(random.choices(string.ascii_lowercase, k=8))
    (tmp_path / f"{module}.py").write_text(
        textwrap.dedent("""
        from rlft.types import Task
        def make(number, base=1):
            for i in range(number):
                yield {"prompt": f"{base + i}?", "answer": base + i} if i % 2 else Task(f"t{i}", [{"role": "user", "content": "hi"}], i)
        def broken():
            prompt = [{"role": "user", "content": "x"}]
            return [Task("", prompt), Task("b", "text"), Task("c", None), Task("d", prompt), 3]
        def nothing():
            return None
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield module
    sys.modules.pop(module, None)


def test_a_function_gives_tasks_or_rows(functions):
    tasks, _ = load_tasks(DataConfig(source=f"{functions}:make", options={"number": 4, "base": 10}, system="s"))
    assert [(t.id, t.answer) for t in tasks] == [("t0", 0), ("2", 11), ("t2", 2), ("4", 13)]
    assert all(t.messages[0] == {"role": "system", "content": "s"} for t in tasks)


def test_an_endless_function_is_read_up_to_the_limit(functions):
    assert len(load_tasks(DataConfig(source=f"{functions}:make", options={"number": 10**12}, limit=3)).tasks) == 3


def test_a_wrong_task_from_a_function_is_a_bad_row(functions):
    tasks, bad = load_tasks(DataConfig(source=f"{functions}:broken"))
    assert [t.id for t in tasks] == ["d"] and [b.row for b in bad] == [1, 2, 3, 5]


OPTIONS = [
    ("make", {"number": 1, "bse": 2}, "unknown option 'bse'; did you mean 'base'"),
    ("make", {}, "missing a required argument: 'number'; give it in data.options"),
    ("make", {"number": 1, "name": "x"}, "rename the parameter"),
    ("mke", {}, "cannot import"),
]


@pytest.mark.parametrize(("name", "options", "message"), OPTIONS)
def test_wrong_options_of_a_function_are_named(functions, name, options, message):
    with pytest.raises(ConfigError, match=message):
        load_tasks(DataConfig(source=f"{functions}:{name}", options=options))


def test_a_function_that_gives_nothing_to_iterate_is_an_error(functions):
    with pytest.raises(DataError, match="expected an iterable"):
        load_tasks(DataConfig(source=f"{functions}:nothing"))


def test_importing_data_loads_neither_torch_nor_datasets():
    code = "import rlft.data.sources, sys; assert not {'torch', 'ray', 'datasets'} & set(sys.modules), 'loaded'"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
