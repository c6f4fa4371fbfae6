"""Single-turn items of BFCL as tasks: right calls of each, and wrong ones that differ from them in one thing."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlft.types import Task

SINGLE = ("simple_python", "multiple", "live_simple", "live_multiple")
CATEGORIES = (*SINGLE, "parallel", "parallel_multiple", "live_parallel", "live_parallel_multiple")
WITHOUT_CALL = ("irrelevance", "live_irrelevance")


def items(data: Path, category: str, every: int = 1) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(item, possible answer) of each; every so many."""
    lines = (data / f"BFCL_v4_{category}.json").read_text().split("\n")[::every]
    answers = data / "possible_answer" / f"BFCL_v4_{category}.json"
    known = {row["id"]: row["ground_truth"] for row in map(json.loads, answers.read_text().splitlines())} if answers.exists() else {}
    for item in (json.loads(line) for line in lines if line.strip()):
        yield item, known.get(item["id"], [])


def task_of(item: dict[str, Any], answer: list[dict[str, Any]]) -> Task:
    return Task(item["id"], tuple(item["question"][0]), answer, {"tools": item["function"]})


def plain(value: Any) -> Any:
    """One of the values that are meant by an object of accepted values."""
    if isinstance(value, dict) and all(isinstance(values, list) for values in value.values()):
        return {key: plain(chosen(values)) for key, values in value.items() if "" not in values}
    return [plain(item) for item in value] if isinstance(value, list) else value


def chosen(values: list[Any], last: bool = False) -> Any:
    stated = [value for value in values if value != ""]
    return stated[-1 if last else 0] if stated else ""


def right_calls(item: dict[str, Any], answer: list[dict[str, Any]], last: bool = False, optional: bool = False) -> list[dict[str, Any]]:
    """The calls of an answer with the first or the last of their accepted values, without or with optional arguments.

    Two answers have an optional argument that their tool does not have; it is left out.
    """
    known = {tool["name"]: tool["parameters"]["properties"] for tool in item["function"]}
    made = []
    for call in answer:
        ((name, accepted),) = call.items()
        given = {key for key, values in accepted.items() if "" not in values or (optional and chosen(values) != "" and key in known[name])}
        made.append({"name": name, "arguments": {key: plain(chosen(values, last)) for key, values in accepted.items() if key in given}})
    return made


def wrong_calls(item: dict[str, Any], answer: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(what is wrong, calls), each with one thing wrong."""
    calls = right_calls(item, answer)
    for place, call in enumerate(calls):
        for key, value in call["arguments"].items():
            for kind, other in (("another value", _other(value)), ("another type", _retyped(value))):
                yield kind, _with(calls, place, {**call["arguments"], key: other})
            if "" not in answer[place][call["name"]][key]:
                yield "an argument too few", _with(calls, place, {k: v for k, v in call["arguments"].items() if k != key})
        yield "an argument that is not there", _with(calls, place, {**call["arguments"], "made_up": 1})
        yield "a call too few", calls[:place] + calls[place + 1 :]
        for tool in [tool["name"] for tool in item["function"] if tool["name"] != call["name"]][:1]:
            yield "another tool", [{**made, "name": tool} if made is call else made for made in calls]
    yield "a call too many", [*calls, calls[0]]
    yield "a tool that is not there", [{**calls[0], "name": "made_up"}, *calls[1:]]


def written_otherwise(calls: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(what is different, calls), the same calls in other letters or kinds of numbers."""
    for kind, change in (("upper case", str.upper), ("without commas", lambda text: text.replace(",", "")), ("other blanks", _blanks)):
        yield kind, _mapped(calls, change, str)
    yield "an integer as a float", _mapped(calls, float, int)
    yield "a whole float as an integer", _mapped(calls, lambda number: int(number) if number == int(number) else number, float)


def _blanks(text: str) -> str:
    return text.replace(" ", "  ")


def _mapped(calls: list[dict[str, Any]], change: Any, kind: type) -> list[dict[str, Any]]:
    def mapped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: mapped(item) for key, item in value.items()}
        if isinstance(value, list):
            return [mapped(item) for item in value]
        return change(value) if type(value) is kind else value

    return [{**call, "arguments": mapped(call["arguments"])} for call in calls]


def _with(calls: list[dict[str, Any]], place: int, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    changed = copy.deepcopy(calls)
    changed[place]["arguments"] = arguments
    return changed


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 7919
    if isinstance(value, str):
        return f"{value} made up"
    return [*value, "made up"] if isinstance(value, list) else {**(value or {}), "made_up": 1}


def _retyped(value: Any) -> Any:
    return 7919 if isinstance(value, (str, list, dict)) else f"a {value}"
