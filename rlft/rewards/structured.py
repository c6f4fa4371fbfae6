"""Rewards for structured answers: JSON that keeps a schema, key-value pairs, graphs."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import jsonschema
from jsonschema import validators
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from rlft.errors import RewardError, TaskError
from rlft.rewards.extract import canonical, final, given_json, gold, read_json, short
from rlft.types import Task, Trajectory

_ARROW = re.compile(r"(?:<?[-=\u2013]{1,3}>|\u2192|--+)")
_BULLET = re.compile(r"(?:[-*\u2022]|\d{1,4}[.)])\s+")


def json_schema(
    task: Task, trajectory: Trajectory, *, schema: Mapping[str, Any] | None = None, compare: bool = False
) -> tuple[float, str]:
    """1 if the answer is JSON that keeps the schema (and is the task's answer, if `compare`); else 0.

    Reads the last ```json block of the final answer, or all of it. Formats ("date", ...) are not checked, and
    references lead nowhere but into the schema itself.

    Args:
        schema: a JSON schema; None takes `task.meta["schema"]`.
        compare: whether the value must also equal `task.answer` (key order aside, 1 is 1.0, true is not 1).

    Raises:
        TaskError: no schema, or one that is not valid.
    """
    validator = _validator(json.dumps(schema if schema is not None else given_json(task.meta.get("schema"))), task.id)
    expected = canonical(given_json(gold(task, "json_schema"))) if compare else None
    try:
        value = read_json(final(trajectory))
    except ValueError as error:
        return 0.0, f"not JSON: {error}"
    try:
        broken = next(validator.iter_errors(value), None)
    except (Unresolvable, RecursionError) as error:
        raise TaskError(f"json_schema: the schema of task {task.id!r} cannot be applied: {error}") from None
    if broken is not None:
        return 0.0, f"against the schema at {short(broken.json_path)}: {short(broken.message, 200)}"
    if compare and canonical(value) != expected:
        return 0.0, "keeps the schema, but is not the expected value"
    return 1.0, ""


def key_value_f1(task: Task, trajectory: Trajectory, *, ordered: bool = True) -> tuple[float, str]:
    """F1 of the answer's leaves against the gold object's, a leaf being its path together with its value.

    An empty object or list is a leaf. White space around texts does not count. What is no JSON object or list earns 0.

    Args:
        ordered: whether the place in a list is part of a path; otherwise lists are compared as multisets of leaves.

    Raises:
        TaskError: the answer of the task is no object or list.
    """
    expected = given_json(gold(task, "key_value_f1"))
    if not isinstance(expected, (dict, list)):
        raise TaskError(f"key_value_f1: the answer {short(expected)} of task {task.id!r} is no JSON object or list")
    try:
        value = read_json(final(trajectory))
    except ValueError as error:
        return 0.0, f"not JSON: {error}"
    if not isinstance(value, (dict, list)):
        return 0.0, f"{short(value)} is no JSON object"
    found, wanted = Counter(_leaves(value, ordered)), Counter(_leaves(expected, ordered))
    return f1(found, wanted), f"{(found & wanted).total()} of {wanted.total()} leaves right, {found.total()} given"


def graph_f1(task: Task, trajectory: Trajectory, *, directed: bool = True, node_share: float = 0.5) -> tuple[float, str]:
    """`node_share` times the F1 of the nodes and the rest times the F1 of the edges, as sets.

    A graph is written as JSON, [["a", "b"], ...] or {"nodes": [...], "edges": [["a", "b"] or {"source": "a", "target": "b"}, ...]},
    or as lines "a -> b -> c" ("a -- b" too). Ends of edges are nodes. What is neither earns 0.

    Args:
        directed: whether a -> b differs from b -> a.
        node_share: 0 counts edges alone, 1 nodes alone.

    Raises:
        TaskError: the answer of the task is no graph.
        RewardError: `node_share` is not in [0, 1].
    """
    if not 0 <= node_share <= 1:
        raise RewardError(f"graph_f1: node_share {node_share}; expected 0 to 1")
    try:
        nodes, edges = _graph(given_json(gold(task, "graph_f1")), directed)
    except ValueError as error:
        raise TaskError(f"graph_f1: the answer of task {task.id!r} is no graph: {error}") from None
    try:
        found_nodes, found_edges = _graph(_json_or_text(final(trajectory)), directed)
    except ValueError as error:
        return 0.0, f"no graph: {error}"
    of_nodes, of_edges = f1(Counter(found_nodes), Counter(nodes)), f1(Counter(found_edges), Counter(edges))
    return node_share * of_nodes + (1 - node_share) * of_edges, f"nodes F1 {of_nodes:.3f}, edges F1 {of_edges:.3f}"


def f1(found: Counter[Any], wanted: Counter[Any]) -> float:
    """2 |found & wanted| / (|found| + |wanted|) of two multisets; 1 where both are empty."""
    total = found.total() + wanted.total()
    return 2 * (found & wanted).total() / total if total else 1.0


@functools.lru_cache(maxsize=256)
def _validator(schema: str, task_id: str) -> Validator:
    loaded = json.loads(schema)
    if not isinstance(loaded, dict):
        raise TaskError(f"json_schema: task {task_id!r} has no schema; give the option `schema` or task.meta['schema']")
    kind = validators.validator_for(loaded, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(loaded)
    except jsonschema.SchemaError as error:
        raise TaskError(f"json_schema: the schema of task {task_id!r} is not valid: {error.message}") from None
    return validators.extend(kind, {"uniqueItems": _unique_items})(loaded, registry=Registry())


def _unique_items(validator: Validator, unique: bool, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    """The library's own takes time quadratic in the items, which a policy can write by the thousand."""
    if unique and isinstance(instance, list) and len({canonical(item) for item in instance}) < len(instance):
        yield jsonschema.ValidationError("its items are not unique")


def _leaves(value: Any, ordered: bool, path: tuple[str | int, ...] = ()) -> Iterator[Hashable]:
    """(path, value) of every leaf; recursion ends at the depth that `read_json` allows."""
    children: list[tuple[str | int, Any]]
    if isinstance(value, dict) and value:
        children = list(value.items())
    elif isinstance(value, (list, tuple)) and value:
        children = [(i if ordered else -1, item) for i, item in enumerate(value)]
    else:
        yield path, canonical(value.strip() if isinstance(value, str) else value)
        return
    for key, item in children:
        yield from _leaves(item, ordered, (*path, key))


def _json_or_text(text: str) -> Any:
    with contextlib.suppress(ValueError):  # then it may be lines
        return read_json(text)
    return text


def _graph(value: Any, directed: bool) -> tuple[set[str], set[Hashable]]:
    """Nodes and edges. Raises ValueError with what is wrong."""
    if isinstance(value, str):
        pairs, nodes = _edges_of_lines(value), []
    elif isinstance(value, Mapping):
        pairs, nodes = value.get("edges", []), value.get("nodes", [])
    else:
        pairs, nodes = value, []
    if not isinstance(pairs, (list, tuple)) or not isinstance(nodes, (list, tuple)) or not (pairs or nodes):
        raise ValueError("expected a list of edges, or nodes and edges")
    ends = [_ends(pair) for pair in pairs]
    edges: set[Hashable] = {end if directed else frozenset(end) for end in ends}
    return {_label(node) for node in nodes} | {label for end in ends for label in end}, edges


def _ends(pair: Any) -> tuple[str, str]:
    if isinstance(pair, Mapping):
        pair = [pair.get("source"), pair.get("target")]
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise ValueError(f"{short(pair)} is no edge")
    return _label(pair[0]), _label(pair[1])


def _label(node: Any) -> str:
    if isinstance(node, Mapping):
        node = node.get("id")
    if isinstance(node, bool) or not isinstance(node, (str, int)):
        raise ValueError(f"{short(node)} is no node")
    return str(node).strip()


def _edges_of_lines(text: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for line in text.splitlines():
        bare = _BULLET.sub("", line.strip(), count=1) if _BULLET.match(line.strip()) else line.strip()
        labels = [label.strip(" \t;\"'`") for label in _ARROW.split(bare)]
        if len(labels) > 1 and all(labels):
            pairs += zip(labels, labels[1:], strict=False)
    return pairs
