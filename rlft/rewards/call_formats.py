"""Calls of tools as the families of models write them, read from text: JSON, XML and Python between each family's own marks.

Time is linear in the text, but for Python, which is read up to a length. Whatever begins like a call and is none raises ValueError.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlft.rewards.extract import MAX_INT_DIGITS, blocks, json_values, last_fence, read_json, short, strict_json

MAX_PYTHON = 50_000  # characters of calls written in Python
Tools = Mapping[str, Mapping[str, Any]]  # tool -> parameter -> its JSON schema
_NAMES = {"true": True, "false": False, "null": None, "none": None}
_END_OF_MESSAGE = re.compile(r"<\|(?:call|end|return|start)\|>")


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """How a family writes calls: a pattern of the mark they begin with, and what reads the text from there on."""

    mark: re.Pattern[str]
    read: Callable[[str, Tools], list[Call]]


def read_calls(text: str, tools: Tools, name: str = "") -> list[Call]:
    """The calls in a text, in order. Without a mark of a family they are what the last fenced block or the whole text is.

    Args:
        tools: say of what type an argument is that was written as bare text.
        name: of the only format that counts, a key of FORMATS or "bare"; "" takes the one whose mark comes first.

    Raises:
        ValueError: something that begins like a call is none; the message says why.
    """
    formats = FORMATS if not name else {name: FORMATS[name]} if name in FORMATS else {}
    found = [(match.start(), place, form) for place, form in enumerate(formats.values()) if (match := form.mark.search(text))]
    if found:
        start, _, form = min(found, key=lambda one: one[:2])
        return form.read(text[start:], tools)
    return _bare(text) if name in ("", "bare") else []


def call_of(value: Any) -> Call:
    """A call given as data: {"name", "arguments"}, or in the form of a message's `tool_calls`. Raises ValueError."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ValueError(f"{short(value)} is no call; expected an object with name and arguments")
    return _made(value["name"], value.get("arguments", value.get("parameters")))


def _made(name: str, arguments: Any) -> Call:
    if isinstance(arguments, str):
        arguments = strict_json(arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of {short(name)} are no object")
    if not name:
        raise ValueError("a call names no tool")
    return Call(name, arguments)


def _bare(text: str) -> list[Call]:
    code = [block.text for block in blocks(text) if block.closed and block.language == "tool_code"]  # Gemma's
    if code:
        return _python(code[-1])
    fenced = last_fence(text, "json")
    body = (text if fenced is None else fenced).strip()
    if re.match(r"\[\s*[A-Za-z_][\w.]*\(", body):
        return _python(body)
    return _json(body) if body.startswith(("{", "[")) else []


def _json(body: str) -> list[Call]:
    """One object, a list of them, or several that stand one behind the other."""
    values = json_values(body)
    return [call_of(item) for value in values for item in (value if isinstance(value, list) else [value])]


def _between(text: str, opening: str, closing: str) -> list[str]:
    """Every stretch from an opening mark to its closing one. Raises ValueError where that is missing."""
    parts = [part.partition(closing) for part in text.split(opening)[1:]]
    if not all(closed for _, closed, _ in parts):
        raise ValueError(f"a {opening} is not closed")
    return [inside for inside, _, _ in parts]


def _within(opening: str, closing: str) -> Callable[[str, Tools], list[Call]]:
    """JSON or Python between two marks."""
    return lambda text, tools: [call for body in _between(text, opening, closing) for call in _json_or_python(body)]


def _behind(opening: str, closing: str = "") -> Callable[[str, Tools], list[Call]]:
    """JSON or Python up to a mark, if it is there, or to the end of the text."""
    return lambda text, tools: _json_or_python(text.removeprefix(opening).partition(closing or opening)[0])


def _json_or_python(body: str) -> list[Call]:
    return _json(body) if re.match(r"\s*(?:\{|\[\s*[{\]])", body) else _python(body)


def _mistral(text: str, tools: Tools) -> list[Call]:
    """[TOOL_CALLS][{...}, ...] up to v7, [TOOL_CALLS]name[ARGS]{...} and [TOOL_CALLS]name{...} from v11 on."""
    calls: list[Call] = []
    for part in text.split("[TOOL_CALLS]")[1:]:
        name, _, arguments = part.strip().partition("{")
        if name.strip() in ("", "["):
            calls += _json(part.strip())
        else:
            name = name.replace("[ARGS]", "").partition("[CALL_ID]")[0].strip()
            calls.append(_made(name, strict_json("{" + arguments)))
    return calls


def _deepseek(text: str, tools: Tools) -> list[Call]:
    """V3 and R1: function, the separator, name and a ```json block. V3.1: name, the separator, JSON."""
    calls: list[Call] = []
    for part in _between(text, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"):
        head, separated, rest = part.partition("<｜tool▁sep｜>")
        if not separated:
            raise ValueError("a call without <｜tool▁sep｜>")
        name, _, arguments = rest.strip().partition("\n")
        if rest.lstrip().startswith("{"):
            name, arguments = head, rest
        calls.append(_made(name.strip(), read_json(arguments)))
    return calls


def _kimi(text: str, tools: Tools) -> list[Call]:
    calls: list[Call] = []
    for part in _between(text, "<|tool_call_begin|>", "<|tool_call_end|>"):
        name, _, arguments = part.partition("<|tool_call_argument_begin|>")
        calls.append(_made(name.strip().rpartition(":")[0].removeprefix("functions."), strict_json(arguments)))
    return calls


def _harmony(text: str, tools: Tools) -> list[Call]:
    """gpt-oss: messages whose header names a function as their recipient."""
    calls: list[Call] = []
    pieces = text.split("<|message|>")
    for before, after in zip(pieces, pieces[1:], strict=False):
        header = re.split(r"<\|(?:call|end|return)\|>", before)[-1]
        if recipient := re.search(r"to=functions\.([\w.-]+)", header):
            calls.append(_made(recipient[1], strict_json(_END_OF_MESSAGE.split(after, maxsplit=1)[0])))
    return calls


@dataclass(frozen=True)
class _Xml:
    """Calls of which every argument stands in tags of its own, as text: a mark, what ends the name, what closes it."""

    call: tuple[str, str, str]
    argument: tuple[str, str, str]
    attributes: bool = False  # what ends an argument's name may have string="true" or "false" before it
    trimmed: bool = False  # the line breaks behind and before an argument's tags are not its own

    def __call__(self, text: str, tools: Tools) -> list[Call]:
        opening, named, closing = self.call
        calls: list[Call] = []
        for part in _between(text, opening, closing):
            name, ended, body = part.partition(named)
            if not ended:
                raise ValueError(f"the name behind a {opening} does not end")
            schemas = tools.get(name.strip(), {})
            calls.append(_made(name.strip(), dict(self._argument(one, schemas) for one in _between(body, *self.argument[::2]))))
        return calls

    def _argument(self, part: str, schemas: Mapping[str, Any]) -> tuple[str, Any]:
        key, ended, value = part.partition(self.argument[1])
        if not ended:
            raise ValueError(f"the name behind a {self.argument[0]} does not end")
        if self.attributes:
            key, _, told = key.partition('"')
            return key, value if 'string="true"' in told else typed(value, {})
        value = value.removeprefix("\n").removesuffix("\n") if self.trimmed else value
        return key.strip(), typed(value, schemas.get(key.strip()))


_functions = _Xml(call=("<function=", ">", "</function>"), argument=("<parameter=", ">", "</parameter>"), trimmed=True)
_minimax = _Xml(call=('<invoke name="', '">', "</invoke>"), argument=('<parameter name="', '">', "</parameter>"))
_dsml = _Xml(
    call=('<｜DSML｜invoke name="', '">', "</｜DSML｜invoke>"),
    argument=('<｜DSML｜parameter name="', ">", "</｜DSML｜parameter>"),
    attributes=True,
)


def _glm(text: str, tools: Tools) -> list[Call]:
    """The name, then pairs of <arg_key> and <arg_value>."""
    calls: list[Call] = []
    for part in _between(text, "<tool_call>", "</tool_call>"):
        name, key_mark, rest = part.partition("<arg_key>")
        schemas = tools.get(name.strip(), {})
        pairs: dict[str, Any] = {}
        for pair in _between(key_mark + rest, "<arg_key>", "</arg_value>"):
            key, found, value = pair.partition("</arg_key>")
            blank, opened, value = value.partition("<arg_value>")
            if not found or not opened or blank.strip():
                raise ValueError(f"an <arg_key> of {short(name.strip())} without its <arg_value>")
            pairs[key.strip()] = typed(value, schemas.get(key.strip()))
        calls.append(_made(name.strip(), pairs))
    return calls


def typed(text: str, schema: Any) -> Any:
    """An argument that was written as bare text: JSON where its schema wants no text or any type; else the text.

    Where the schema allows text among others, it is JSON if that is of one of the others.
    """
    kinds = _kinds(schema)
    if kinds == {"string"}:
        return text
    word = text.strip().casefold()
    if word in _NAMES and _KINDS[type(_NAMES[word]).__name__] in kinds:
        return _NAMES[word]
    try:
        value = strict_json(text)
    except ValueError:
        return text
    kind = _KINDS[type(value).__name__]
    return value if "string" not in kinds or kind in kinds or (kind == "integer" and "number" in kinds) else text


def _kinds(schema: Any) -> set[str]:
    """The types of a schema, by their names in JSON; empty where any is meant."""
    if not isinstance(schema, Mapping):  # nothing is known of the argument
        return {"string"}
    given = schema.get("type") or ()
    named = [given] if isinstance(given, str) else given
    kinds = {_KINDS.get(str(kind).partition(",")[0].strip().casefold(), "") for kind in named}
    for key in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(key) or ():
            kinds |= _kinds(one)
    return set() if "" in kinds else kinds


_SPELLINGS = {  # of the types in schemas that are not quite JSON's, and of Python's
    "string": "string str text varchar char enum",
    "integer": "integer int int32 int64 uint long short",
    "number": "number float double num float32 float64",
    "boolean": "boolean bool",
    "array": "array list tuple arr",
    "object": "object dict map mapping",
    "null": "null none nonetype",
}
_KINDS = {name: kind for kind, names in _SPELLINGS.items() for name in names.split()} | {"NoneType": "null"}


def _python(code: str) -> list[Call]:
    """A list of calls, or one call on each line, with arguments by name that are literals."""
    if len(code) > MAX_PYTHON:
        raise ValueError(f"calls of more than {MAX_PYTHON} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(code.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not Python: {error}") from None
    if not all(isinstance(line, ast.Expr) for line in body):
        raise ValueError("it is more than calls")
    nodes = [line.value for line in body if isinstance(line, ast.Expr)]
    return [_python_call(node) for line in nodes for node in (line.elts if isinstance(line, ast.List) else [line])]


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("it is no call with arguments by name")
    names, place = [], node.func
    while isinstance(place, ast.Attribute):
        names.append(place.attr)
        place = place.value
    if not isinstance(place, ast.Name):
        raise ValueError("a call without a name")
    arguments: dict[str, Any] = {}
    for given in node.keywords:
        if given.arg is None or given.arg in arguments:
            raise ValueError("an argument without a name of its own")
        arguments[given.arg] = _literal(given.value)
    return Call(".".join([place.id, *reversed(names)]), arguments)


def _literal(node: ast.expr) -> Any:
    """The JSON value of a literal. Raises ValueError."""
    match node:
        case ast.Constant(value=str() | bool() | None):
            return node.value
        case ast.Constant(value=int() | float() as number) if abs(number) < 10**MAX_INT_DIGITS:
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if abs(number) < 10**MAX_INT_DIGITS:
            return -number
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in keys):
            return {_literal(key): _literal(value) for key, value in zip(keys, values, strict=True) if key is not None}
    raise ValueError("an argument is no literal")


def _format(mark: str, read: Callable[[str, Tools], list[Call]]) -> Format:
    return Format(re.compile(mark), read)


# By the names of vLLM's parsers. Of marks at the same place the first counts.
FORMATS = {
    "hermes": _format(r"<tool_call>(?=\s*[{\[])", _within("<tool_call>", "</tool_call>")),  # Qwen2.5 and Qwen3 too
    "qwen3_coder": _format(r"(?:<tool_call>\s*)?<function=", _functions),
    "glm45": _format(r"<tool_call>", _glm),
    "mistral": _format(r"\[TOOL_CALLS\]", _mistral),
    "deepseek_v3": _format(r"<｜tool▁calls?▁begin｜>", _deepseek),  # R1 and V3.1 too
    "deepseek_v32": _format(r"<｜DSML｜invoke name=\"", _dsml),
    "kimi_k2": _format(r"<\|tool_call_begin\|>", _kimi),
    "minimax_m2": _format(r"<invoke name=\"", _minimax),
    "openai": _format(r"to=functions\.[\w.-]+[^<>]{0,99}<\|", _harmony),  # gpt-oss
    "llama3_json": _format(r"<\|python_tag\|>", _behind("<|python_tag|>")),
    "llama4_pythonic": _format(r"<\|python_start\|>", _behind("<|python_start|>", "<|python_end|>")),
    "lfm2": _format(r"<\|tool_call_start\|>", _within("<|tool_call_start|>", "<|tool_call_end|>")),
    "olmo3": _format(r"<function_calls>", _within("<function_calls>", "</function_calls>")),
    "granite": _format(r"<\|tool_call\|>", _behind("<|tool_call|>")),
    "jamba": _format(r"<tool_calls>", _within("<tool_calls>", "</tool_calls>")),
    "internlm": _format(r"<\|action_start\|><\|plugin\|>", _within("<|action_start|><|plugin|>", "<|action_end|>")),
    "phi4_mini_json": _format(r"functools(?=\[)", _behind("functools")),
}
