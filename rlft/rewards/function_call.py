"""Function calls graded by how wrong they are: the taxonomy of TL-Training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlft.errors import RewardError, TaskError
from rlft.rewards.call_formats import FORMATS, Call, Tools, call_of, read_calls
from rlft.rewards.extract import UNFINISHED, canonical, given_json, gold, said, short, thinking
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
_DROPPED = str.maketrans("", "", " ,./-_*^")


@dataclass(frozen=True)
class GoldCall:
    """A right call: of each argument the values that are right."""

    tool: str
    accepted: Mapping[str, Sequence[Any]]
    optional: frozenset[str] = frozenset()  # arguments that may be left out
    nested: bool = False  # an object among the values holds, in the same way, the values of each of its keys


def exactly(call: Call) -> GoldCall:
    """The gold call that is this one and no other."""
    return GoldCall(call.tool, {name: (value,) for name, value in call.arguments.items()})


def function_call(
    task: Task, trajectory: Trajectory, *, ordered: bool = True, loose: bool = False, format: str = ""
) -> tuple[float, str]:
    """How right the calls of the last message are, from -2 (no call that can be read) to 1 (the gold calls).

    TL-Training (arXiv:2412.15495): -2 unparsable or unknown tool; -1.5 another tool than the gold one; parameters
    hallucinated (not in the tool's schema), redundant (in it, but not in the gold call) and missing: -1.8 all three, -1.3
    hallucinated with one of the others, -1.0 redundant and missing, -0.8 hallucinated, -0.5 redundant or missing; -0.25
    right parameters with wrong values; 1 correct. Ours for several calls: the mean over the pairs of gold and said
    calls, each call that is too many or too few counting as another tool; one that cannot be read is -2 for all.

    Calls are `tool_calls` of the last message, where something (an engine's parser, an environment) has put them there; else what
    `call_formats` reads from its text: the formats of the families of models, or JSON {"name", "arguments"} as the last ```json
    block or the whole text (a list for several calls). Values compare as JSON.

    The answer is a call or a list of them, [] for none. A call {"name", "accepted"} holds for each argument a list of right values,
    with "" among them where it may be left out, as does one in the form of BFCL's possible answers, {name: {argument: [...]}}.

    Args:
        ordered: whether calls pair by place; otherwise as many as can be are paired with a gold call that they are, and then each
            gold call that is left takes the best of those left.
        loose: compare texts without case, blanks and , . / - _ * ^, and take both quotation marks for one, as BFCL does.
        format: the only format that counts, a key of `call_formats.FORMATS` or "bare" (JSON or Python without marks); "" for any.

    Raises:
        TaskError: `task.meta["tools"]` (in the OpenAI format) or the answer is missing or malformed.
        RewardError: there is no such format.
    """
    if format not in ("", "bare", *FORMATS):
        raise RewardError(f"function_call: format {format!r}; expected 'bare', {', '.join(map(repr, FORMATS))}")
    tools = _tools(task)
    wanted = _gold_calls(task, tools)
    try:
        found = _said_calls(trajectory, tools, format)
    except ValueError as error:
        return UNPARSABLE, f"unparsable: {error}"
    if unknown := [call.tool for call in found if call.tool not in tools]:
        return UNKNOWN_TOOL, f"unknown tool: {short(unknown[0])}"
    if not found:
        return (UNPARSABLE, "unparsable: no call") if wanted else (CORRECT, "correct: no call")
    places = list(range(min(len(wanted), len(found)))) if ordered else _paired(wanted, found, tools, loose)
    grades = [grade_call(found[place], call, tools, loose) for call, place in zip(wanted, places, strict=False)]
    grades += [(WRONG_TOOL, "a call too few")] * (len(wanted) - len(places))
    grades += [(WRONG_TOOL, "a call too many")] * (len(found) - len(places))
    return sum(value for value, _ in grades) / len(grades), "; ".join(dict.fromkeys(why for _, why in grades))


def grade_call(call: Call, right: GoldCall, tools: Mapping[str, Iterable[str]], loose: bool = False) -> tuple[float, str]:
    """The value of one call and its category. `tools` holds the parameters of each tool."""
    if call.tool not in tools:
        return UNKNOWN_TOOL, f"unknown tool: {short(call.tool)}"
    if call.tool != right.tool:
        return WRONG_TOOL, f"wrong tool: {short(call.tool)}"
    given, allowed, known = set(call.arguments), set(right.accepted), set(tools[right.tool])
    faults = {"hallucinated": given - known, "redundant": (given & known) - allowed, "missing": allowed - right.optional - given}
    if any(faults.values()):
        value = _PARAMETERS[bool(faults["hallucinated"]), bool(faults["redundant"]), bool(faults["missing"])]
        return value, ", ".join(f"{kind} parameters: {short(sorted(which))}" for kind, which in faults.items() if which)
    wrong = [key for key in sorted(given) if not _accepts(right.accepted[key], call.arguments[key], right.nested, loose)]
    return (WRONG_VALUES, f"wrong values: {short(wrong)}") if wrong else (CORRECT, "correct")


def _accepts(accepted: Sequence[Any], value: Any, nested: bool, loose: bool) -> bool:
    return any(_is(value, right, nested, loose) for right in accepted)


def _is(value: Any, right: Any, nested: bool, loose: bool) -> bool:
    if nested and isinstance(right, Mapping) and all(isinstance(values, list) for values in right.values()):
        if not isinstance(value, Mapping) or not value.keys() <= right.keys():
            return False
        return all(_accepts(values, value[key], nested, loose) if key in value else "" in values for key, values in right.items())
    if nested and isinstance(right, list):
        same = isinstance(value, (list, tuple)) and len(value) == len(right)
        return same and all(_is(one, other, nested, loose) for one, other in zip(value, right, strict=True))
    return canonical(_loosened(value)) == canonical(_loosened(right)) if loose else canonical(value) == canonical(right)


def _loosened(value: Any) -> Any:
    """A value with its texts as BFCL compares them."""
    if isinstance(value, str):
        return value.translate(_DROPPED).lower().replace("'", '"')
    if isinstance(value, Mapping):
        return {key: _loosened(item) for key, item in value.items()}
    return [_loosened(item) for item in value] if isinstance(value, (list, tuple)) else value


def _paired(wanted: Sequence[GoldCall], found: Sequence[Call], tools: Tools, loose: bool) -> list[int]:
    """The place of the call that each of the first gold calls is compared with."""
    values = [[grade_call(call, right, tools, loose)[0] for call in found] for right in wanted[: len(found)]]
    owner: dict[int, int] = {}  # place of a said call -> the gold call that it is

    def claim(gold_place: int, tried: set[int]) -> bool:
        """Give a gold call a said one that is right, by moving others to other right ones where need be."""
        for place in [i for i, value in enumerate(values[gold_place]) if value == CORRECT and i not in tried]:
            tried.add(place)
            if place not in owner or claim(owner[place], tried):
                owner[place] = gold_place
                return True
        return False

    for gold_place in range(len(values)):
        claim(gold_place, set())
    taken = {gold_place: place for place, gold_place in owner.items()}
    for gold_place in [i for i in range(len(values)) if i not in taken]:
        left = [place for place in range(len(found)) if place not in taken.values()]
        taken[gold_place] = max(left, key=values[gold_place].__getitem__)
    return [taken[gold_place] for gold_place in range(len(values))]


def _said_calls(trajectory: Trajectory, tools: Tools, format: str) -> list[Call]:
    """Raises ValueError where something is not a call."""
    message = trajectory.turns[-1].action if trajectory.turns else {}
    if message.get("tool_calls"):
        listed = message["tool_calls"] if isinstance(message["tool_calls"], (list, tuple)) else [message["tool_calls"]]
        return [call_of(item) for item in listed]
    if thinking(trajectory):
        raise ValueError(UNFINISHED)
    return read_calls(said(trajectory), tools, format)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _tools(task: Task) -> dict[str, Mapping[str, Any]]:
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


def _parameters(given: Any) -> Mapping[str, Any]:
    """A tool's parameters with their schemas: a JSON schema's properties, or a table of descriptions, as in xLAM's data."""
    if not isinstance(given, Mapping):
        return {}
    is_schema = "properties" in given or not all(isinstance(about, Mapping) for about in given.values())
    return (given.get("properties") or {}) if is_schema else given


def _gold_calls(task: Task, tools: Tools) -> list[GoldCall]:
    try:
        calls = [_gold_call(value) for value in _listed(given_json(gold(task, "function_call")))]
    except ValueError as error:
        raise TaskError(f"function_call: the answer of task {task.id!r} is no call: {error}") from None
    for call in calls:
        if call.tool not in tools or not set(call.accepted) - call.optional <= set(tools[call.tool]):
            raise TaskError(f"function_call: the answer of task {task.id!r} calls {call.tool!r} as its tools do not allow")
    return calls


def _gold_call(value: Any) -> GoldCall:
    """Raises ValueError."""
    if isinstance(value, Mapping) and isinstance(value.get("name"), str) and "accepted" in value:
        return _accepting(value["name"], value["accepted"])
    if isinstance(value, Mapping) and len(value) == 1 and not value.keys() & {"name", "function"}:
        return _accepting(*next(iter(value.items())))
    return exactly(call_of(value))


def _accepting(name: str, accepted: Any) -> GoldCall:
    if not isinstance(accepted, Mapping) or not all(isinstance(values, list) and values for values in accepted.values()):
        raise ValueError(f"expected of each argument of {name!r} a list of its right values, got {short(accepted)}")
    return GoldCall(name, accepted, frozenset(key for key, values in accepted.items() if "" in values), nested=True)
