"""Function calls graded by how wrong they are: the taxonomy of TL-Training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlft.errors import TaskError
from rlft.rewards.extract import UNFINISHED, canonical, given_json, gold, last_fence, read_json, said, short, thinking
from rlft.types import Task, Trajectory

# (hallucinated, redundant, missing) -> value: TL-Training (arXiv:2412.15495), as its code orders the cases.
_PARAMETERS = {
    (True, True, True): -1.8,
    (True, True, False): -1.3,
    (True, False, True): -1.3,
    (False, True, True): -1.0,
    (True, False, False): -0.8,
    (False, True, False): -0.5,
    (False, False, True): -0.5,
}
UNPARSABLE = UNKNOWN_TOOL = -2.0
WRONG_TOOL = -1.5
WRONG_VALUES = -0.25
CORRECT = 1.0


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    tool: str
    arguments: Mapping[str, Any]


def function_call(task: Task, trajectory: Trajectory, *, ordered: bool = True) -> tuple[float, str]:
    """How right the calls of the last message are, from -2 (no call that can be read) to 1 (the gold calls).

    TL-Training (arXiv:2412.15495): -2 unparsable or unknown tool; -1.5 another tool than the gold one; parameters
    hallucinated (not in the tool's schema), redundant (in it, but not in the gold call) and missing: -1.8 all three, -1.3
    hallucinated with one of the others, -1.0 redundant and missing, -0.8 hallucinated, -0.5 redundant or missing; -0.25
    right parameters with wrong values; 1 correct. Ours for several calls: the mean over the pairs of gold and said
    calls, each call that is too many or too few counting as another tool; one that cannot be read is -2 for all.

    Calls are `tool_calls` of the message, else JSON {"name", "arguments"} inside <tool_call> tags, else the last ```json block or
    the whole text (a list for several calls). Values compare as JSON. The answer is a call or a list of them, [] for none.

    Args:
        ordered: whether calls pair by place; otherwise each gold call takes the best of those left.

    Raises:
        TaskError: `task.meta["tools"]` (in the OpenAI format) or the answer is missing or malformed.
    """
    tools = _tools(task)
    wanted = _gold_calls(task, tools)
    try:
        found = _said_calls(trajectory)
    except ValueError as error:
        return UNPARSABLE, f"unparsable: {error}"
    if unknown := [call.tool for call in found if call.tool not in tools]:
        return UNKNOWN_TOOL, f"unknown tool: {short(unknown[0])}"
    if not found:
        return (UNPARSABLE, "unparsable: no call") if wanted else (CORRECT, "correct: no call")
    if ordered:
        pairs = list(zip(wanted, found, strict=False))
    else:
        pairs, left = [], list(found)
        for call in wanted[: len(found)]:
            best = max(range(len(left)), key=lambda i: grade_call(left[i], call, tools)[0])
            pairs.append((call, left.pop(best)))
    grades = [grade_call(said_call, call, tools) for call, said_call in pairs]
    grades += [(WRONG_TOOL, "a call too few")] * (len(wanted) - len(pairs)) + [(WRONG_TOOL, "a call too many")] * (len(found) - len(pairs))
    return sum(value for value, _ in grades) / len(grades), "; ".join(dict.fromkeys(why for _, why in grades))


def grade_call(call: Call, right: Call, tools: Mapping[str, frozenset[str]]) -> tuple[float, str]:
    """The value of one call and its category. `tools` holds the parameters of each tool."""
    if call.tool not in tools:
        return UNKNOWN_TOOL, f"unknown tool: {short(call.tool)}"
    if call.tool != right.tool:
        return WRONG_TOOL, f"wrong tool: {short(call.tool)}"
    given, needed, known = set(call.arguments), set(right.arguments), tools[right.tool]
    faults = {"hallucinated": given - known, "redundant": (given & known) - needed, "missing": needed - given}
    if any(faults.values()):
        value = _PARAMETERS[bool(faults["hallucinated"]), bool(faults["redundant"]), bool(faults["missing"])]
        return value, ", ".join(f"{kind} parameters: {short(sorted(which))}" for kind, which in faults.items() if which)
    if canonical(dict(call.arguments)) != canonical(dict(right.arguments)):
        wrong = [key for key in sorted(needed) if canonical(call.arguments[key]) != canonical(right.arguments[key])]
        return WRONG_VALUES, f"wrong values: {short(wrong)}"
    return CORRECT, "correct"


def _said_calls(trajectory: Trajectory) -> list[Call]:
    """Raises ValueError where something is not a call."""
    message = trajectory.turns[-1].action if trajectory.turns else {}
    if message.get("tool_calls"):
        listed = message["tool_calls"] if isinstance(message["tool_calls"], (list, tuple)) else [message["tool_calls"]]
        return [_call(item) for item in listed]
    if thinking(trajectory):
        raise ValueError(UNFINISHED)
    text = said(trajectory)
    if "<tool_call>" in text:
        inside = [part.partition("</tool_call>") for part in text.split("<tool_call>")[1:]]
        if not all(closed for _, closed, _ in inside):
            raise ValueError("a <tool_call> is not closed")
        return [_call(value) for body, _, _ in inside for value in _listed(read_json(body))]
    fenced = last_fence(text, "json", "")
    body = (text if fenced is None else fenced).strip()
    return [_call(value) for value in _listed(read_json(body))] if body.startswith(("{", "[")) else []


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _call(value: Any) -> Call:
    """Raises ValueError."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):  # as in a message's tool_calls
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError(f"{short(value)} is no call; expected an object with name and arguments")
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of {short(value['name'])} are no object")
    return Call(value["name"], arguments)


def _tools(task: Task) -> dict[str, frozenset[str]]:
    listed = given_json(task.meta.get("tools"))
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise TaskError(f"function_call: task {task.id!r} has no meta['tools']; expected a list of tools in the OpenAI format")
    tools = {}
    for tool in listed:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise TaskError(f"function_call: tool {short(tool)} of task {task.id!r} is not in the OpenAI format")
        tools[function["name"]] = _parameters(given_json(function.get("parameters")))
    return tools


def _parameters(given: Any) -> frozenset[str]:
    """Names of a tool's parameters: of a JSON schema's properties, or the keys of a table of descriptions, as in xLAM's data."""
    if not isinstance(given, Mapping):
        return frozenset()
    is_schema = "properties" in given or not all(isinstance(about, Mapping) for about in given.values())
    return frozenset((given.get("properties") or {}) if is_schema else given)


def _gold_calls(task: Task, tools: Mapping[str, frozenset[str]]) -> list[Call]:
    try:
        calls = [_call(value) for value in _listed(given_json(gold(task, "function_call")))]
    except ValueError as error:
        raise TaskError(f"function_call: the answer of task {task.id!r} is no call: {error}") from None
    for call in calls:
        if call.tool not in tools or not set(call.arguments) <= tools[call.tool]:
            raise TaskError(f"function_call: the answer of task {task.id!r} calls {call.tool!r} as its tools do not allow")
    return calls
