"""SQL by what it returns: equivalence, order, and queries that would do more than read."""

import itertools
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.errors import TaskError
from rlft.rewards.grader import spoken
from rlft.rewards.sql import has_order, sql_equal
from rlft.types import Task

SCHEMA = """
CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, age INTEGER, height REAL);
INSERT INTO people VALUES (1, 'Ada', 36, 1.65), (2, 'Alan', 41, 1.78), (3, 'Grace', 41, NULL), (4, 'Ada', 36, 1.65);
CREATE TABLE empty (x INTEGER);
"""


def graded(query, answer="SELECT name, age FROM people", meta=None, **options):
    task = Task("t", ({"role": "user", "content": "?"},), answer, {"schema": SCHEMA} if meta is None else meta)
    return sql_equal(task, spoken(task, query), **options)[0]


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("SELECT name, age FROM people", 1.0),
        ("select name, age from people order by id desc;", 1.0),
        ("SELECT name AS n, age + 0.0 FROM people", 1.0),
        ("```sql\nSELECT name, age FROM people\n```", 1.0),
        ("<think>DROP</think>Here:\n```\nSELECT name, age FROM people\n```", 1.0),
        ("```sql\nSELECT name, age FROM people\n```\nwhich returns\n```\nAda|36\n```", 1.0),
        ("```\nSELECT name, age FROM people\n```\nor\n```sql\nSELECT 1\n```", 0.0),
        ("WITH p AS (SELECT * FROM people) SELECT name, age FROM p", 1.0),
        ("SELECT DISTINCT name, age FROM people", 0.0),
        ("SELECT name, age FROM people UNION ALL SELECT 'x', 1", 0.0),
        ("SELECT age, name FROM people", 0.0),
        ("SELECT name FROM people", 0.0),
        ("SELECT name, CAST(age AS TEXT) FROM people", 0.0),
        ("SELECT name, age FROM nobody", 0.0),
        ("I would select names", 0.0),
        ("", 0.0),
        ("-- nothing", 0.0),
    ],
)
def test_sql_equal_table(query, value):
    assert graded(query) == value


def test_order_counts_where_the_gold_query_has_it():
    gold = "SELECT name FROM people ORDER BY age, id"
    assert graded("SELECT name FROM people ORDER BY age, id", gold) == 1.0
    assert graded("SELECT name FROM people ORDER BY age, id DESC", gold) == 0.0
    assert graded("SELECT name FROM people ORDER BY age, id DESC", "SELECT name FROM people") == 1.0


TIED = [  # a gold query, queries whose rows may come as well, queries whose rows may not
    ("SELECT name FROM people ORDER BY age", ["ORDER BY age, id", "ORDER BY age, id DESC"], ["ORDER BY age DESC"]),
    ("SELECT name FROM people ORDER BY age;  -- youngest first", ["ORDER BY age, id DESC"], ["ORDER BY id DESC", "ORDER BY name DESC"]),
    ("SELECT name FROM people ORDER BY age DESC -- old", ["ORDER BY age DESC, name", "ORDER BY age DESC, name DESC"], ["ORDER BY age"]),
    ("SELECT name FROM people ORDER BY age LIMIT 3", ["ORDER BY age, name DESC LIMIT 3", "ORDER BY age, name LIMIT 3"],
        ["ORDER BY age DESC LIMIT 3", "ORDER BY age, name LIMIT 2", "ORDER BY age LIMIT 4", "WHERE age > 40"]),
    ("SELECT name FROM people ORDER BY age LIMIT 1 OFFSET 3", ["WHERE id = 2", "WHERE id = 3"], ["WHERE id = 1", "WHERE 0"]),
    ("SELECT name FROM people ORDER BY age LIMIT 3, 1", ["WHERE id = 2", "WHERE id = 3"], ["WHERE id = 1", "WHERE 0"]),
    ("SELECT name FROM people ORDER BY age LIMIT 1 + 0", ["WHERE id = 1"], ["WHERE id = 2"]),
    ("SELECT name FROM people ORDER BY age LIMIT 9 OFFSET 9", ["WHERE 0"], ["WHERE id = 1"]),
    ("SELECT DISTINCT name FROM people ORDER BY length(name) > 3", ["WHERE id < 4 ORDER BY id", "WHERE id < 4 ORDER BY age, id DESC"],
        ["WHERE id < 4 ORDER BY id DESC"]),
    ("SELECT name FROM people WHERE id = 1 UNION ALL SELECT name FROM people WHERE id > 1 ORDER BY 1 COLLATE NOCASE",
        ["ORDER BY name"], ["ORDER BY id", "ORDER BY name DESC"]),
    ("SELECT name AS n FROM people ORDER BY upper(substr(n, 1, 1))", ["ORDER BY name", "ORDER BY id = 3, id = 2"],
        ["ORDER BY name DESC"]),
]


@pytest.mark.parametrize(("gold", "right", "wrong"), TIED)
def test_rows_that_are_equal_by_the_gold_order_may_come_in_any(gold, right, wrong):
    assert graded(gold, gold) == 1.0
    for rest in right:
        assert graded(f"SELECT name FROM people {rest}", gold) == 1.0, rest
    for rest in wrong:
        assert graded(f"SELECT name FROM people {rest}", gold) == 0.0, rest


def test_names_that_differ_in_case_alone_are_tied_under_a_collation_without_case():
    schema = "CREATE TABLE t (x TEXT COLLATE NOCASE); INSERT INTO t VALUES ('b'), ('A'), ('a');"
    for query, value in (("ORDER BY x, x COLLATE BINARY", 1.0), ("ORDER BY x, x COLLATE BINARY DESC", 1.0), ("ORDER BY x DESC", 0.0)):
        assert graded(f"SELECT x FROM t {query}", "SELECT x FROM t ORDER BY x", {"schema": schema}) == value


def test_any_order_of_tied_rows_is_right_and_no_other_is():
    schema = "CREATE TABLE t (k INTEGER, v TEXT); INSERT INTO t VALUES (1, 'a'), (1, 'b'), (2, 'b'), (2, 'c'), (2, 'c');"
    rows = ["a", "b", "b", "c", "c"]
    for order in set(itertools.permutations(rows)):
        query = " UNION ALL ".join(f"SELECT '{value}'" for value in order)
        allowed = sorted(order[:2]) == ["a", "b"]
        assert graded(query, "SELECT v FROM t ORDER BY k", {"schema": schema}) == float(allowed), order


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t -- ORDER BY a\n/* ORDER BY */", False),
        ("SELECT \"order by\", [order by], `order by`, '''' FROM t", False),
        ("SELECT '(' FROM t ORDER BY a", True),
    ],
)
def test_has_order_table(query, ordered):
    assert has_order(query) == ordered


def test_floats_are_equal_up_to_rounding():
    assert graded("SELECT 0.3", "SELECT 0.1 + 0.2") == 1.0
    assert graded("SELECT 0.3001", "SELECT 0.1 + 0.2") == 0.0
    assert graded("SELECT height FROM people WHERE id = 3", "SELECT NULL") == 1.0


def test_a_query_must_be_right_on_every_database():
    second = SCHEMA + "INSERT INTO empty VALUES (1);"
    gold = "SELECT x FROM empty"
    assert graded("SELECT id FROM people WHERE 0", gold) == 1.0  # the hazard of an empty result
    assert graded("SELECT id FROM people WHERE 0", gold, {"schema": [SCHEMA, second]}) == 0.0
    assert graded("SELECT x, x FROM empty", gold) == graded("", gold) == graded("CREATE TABLE u (x)", gold) == 0.0
    assert graded("SELECT x FROM empty", gold, {"schema": [SCHEMA, second]}) == 1.0


def test_a_database_file_is_read_and_left_as_it_is(tmp_path):
    path = tmp_path / "people.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA)
    connection.close()
    before = path.read_bytes()
    meta = {"database": str(path)}
    assert graded("SELECT name, age FROM people", "SELECT name, age FROM people", meta) == 1.0
    assert graded("DELETE FROM people", "SELECT name, age FROM people", meta) == 0.0
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["people.db"]


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE people",
        "DELETE FROM people",
        "INSERT INTO people VALUES (9, 'x', 1, 1)",
        "UPDATE people SET age = 1",
        "CREATE TABLE x (y)",
        "CREATE TEMP TABLE x (y)",
        "SELECT name, age FROM people; DROP TABLE people",
        "ATTACH DATABASE '{out}' AS other",
        "VACUUM INTO '{out}'",
        "PRAGMA query_only = OFF",
        "PRAGMA table_info(people)",
        "SELECT * FROM pragma_table_info('people')",
        "SELECT load_extension('{out}')",
        "SELECT writefile('{out}', 'x')",
        "BEGIN",
        "REINDEX",
        "ANALYZE",
        "SELECT '\x00'",
        "SELECT '\ud800'",
        "SELECT CAST(x'ff' AS TEXT)",
        "SELECT " + "(" * 5000,
        "SELECT " + "1+" * 4000 + "1",
        "SELECT '" + "x" * 20_000 + "'",
    ],
)
def test_what_is_not_one_select_is_wrong_and_leaves_nothing(query, tmp_path):
    out = tmp_path / "out.db"
    assert graded(query.replace("{out}", str(out))) == 0.0
    assert not out.exists() and graded("SELECT name, age FROM people") == 1.0


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
LONG = "printf('%.*c', 90000, 'a')"


def memory_mb(field):
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)).split()[1]) // 1024


@pytest.mark.parametrize(
    "query",
    [
        ENDLESS + "SELECT count(*) FROM c",
        ENDLESS + "SELECT x FROM c",
        "SELECT count(*) FROM " + ", ".join(f"people p{i}" for i in range(30)),
        "SELECT randomblob(1000000000)",
        f"SELECT group_concat({LONG}) FROM people a, people b, people c, people d, people e",
        f"SELECT {LONG} FROM people a, people b, people c, people d, people e, people f",
        f"WITH RECURSIVE c(x, s) AS (SELECT 1, {LONG} UNION ALL SELECT x + 1, s FROM c LIMIT 9000) SELECT s || x FROM c ORDER BY 1",
        f"{ENDLESS} SELECT sum(instr({LONG}, printf('%.*c', 45000, 'a') || 'b')) FROM c",
        "SELECT replace(replace(replace(hex(zeroblob(10000)), '0', '0000'), '0', '0000'), '0', '0000')",
    ],
)
def test_queries_that_would_take_all_time_or_memory_are_wrong_in_time(query):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before_mb, started = memory_mb("VmRSS"), time.perf_counter()
    assert graded(query, limit_s=1.0) == 0.0
    assert time.perf_counter() - started < 10
    assert memory_mb("VmHWM") - before_mb < 2000


@pytest.mark.parametrize(
    ("answer", "meta"),
    [
        (None, None),
        ("SELECT nothing FROM people", None),
        ("DROP TABLE people", None),
        ("PRAGMA table_info(people)", None),
        ("SELECT * FROM pragma_table_info('people')", None),
        ("SELECT load_extension('x')", None),
        (ENDLESS + "SELECT x FROM c", None),
        ("SELECT 1", {}),
        ("SELECT 1", {"schema": "CREATE TABL"}),
        ("SELECT 1", {"schema": 5}),
        ("SELECT 1", {"database": "/no/such/file.db"}),
    ],
)
def test_tasks_that_cannot_be_graded_raise(answer, meta):
    with pytest.raises(TaskError):
        graded("SELECT 1", answer, meta)


def test_a_file_that_is_no_database_raises(tmp_path):
    (tmp_path / "x.db").write_text("not a database, but long enough to be read as the header of one")
    with pytest.raises(TaskError):
        graded("SELECT 1", "SELECT 1", {"database": str(tmp_path / "x.db")})


PIECES = st.sampled_from(["SELECT ", "name", "age", ", ", " FROM people", " WHERE ", "1", "'", '"', "(", ")", ";", "--", "/*", "*/", "*",
    " ORDER BY ", "NULL", "\x00"])


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=12).map("".join)))
def test_any_text_earns_a_number(text):
    assert graded(text) in (0.0, 1.0)
    assert isinstance(has_order(text), bool)


@pytest.mark.parametrize("piece", ["'", '"', "(", "/*", "--", "[", "order ", "*/ "])
def test_reading_a_long_query_takes_no_time(piece):
    started = time.perf_counter()
    has_order(piece * 10_000)
    assert time.perf_counter() - started < 5
