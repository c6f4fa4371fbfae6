"""Calls as each family of models writes them, by hand: what the reward reads, and what vLLM's parsers are compared with."""

from __future__ import annotations

from typing import NamedTuple

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "exact": {"type": "boolean"},
                    "at": {"type": "array", "items": {"type": "number"}},
                    "more": {"type": "object"},
                    "note": {"type": ["string", "null"]},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
OSLO = ("weather", {"city": "Oslo", "days": 3, "exact": True, "at": [1, -2.5], "more": {"k": [None]}, "note": None})
ROME = ("weather", {"city": "12"})
NOW = ("now", {})
JSON = '{"city": "Oslo", "days": 3, "exact": true, "at": [1, -2.5], "more": {"k": [null]}, "note": null}'
SHORT = '{"city": "12"}'
PYTHON = "weather(city='Oslo', days=3, exact=True, at=[1, -2.5], more={'k': [None]}, note=None)"


class Example(NamedTuple):
    form: str  # key of FORMATS, or "bare"
    parser: str  # vLLM's, "" where it has none that can be asked
    text: str
    calls: list[tuple[str, dict]]


def _parameters(opening: str, middle: str, closing: str) -> str:
    values = {"city": "Oslo", "days": "3", "exact": "true", "at": "[1, -2.5]", "more": '{"k": [null]}', "note": "null"}
    return "".join(f"{opening}{key}{middle}{value}{closing}\n" for key, value in values.items())


def _dsml() -> str:
    values = {"days": "3", "exact": "true", "at": "[1, -2.5]", "more": '{"k": [null]}', "note": "null"}
    return '<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n' + "".join(
        f'<｜DSML｜parameter name="{key}" string="false">{value}</｜DSML｜parameter>\n' for key, value in values.items()
    )


EXAMPLES = [
    Example("hermes", "hermes", f'<tool_call>\n{{"name": "weather", "arguments": {JSON}}}\n</tool_call>', [OSLO]),
    Example(
        "hermes",
        "hermes",
        f'I look.\n<tool_call>\n{{"name": "weather", "arguments": {SHORT}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        [ROME, NOW],
    ),
    Example(
        "qwen3_coder",
        "qwen3_coder",
        "I look.\n<tool_call>\n<function=weather>\n"
        + _parameters("<parameter=", ">\n", "\n</parameter>")
        + "</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        [OSLO, NOW],
    ),
    Example(
        "qwen3_coder",
        "qwen3_coder",
        "<function=weather>\n<parameter=city>\n12\n</parameter>\n</function>",
        [ROME],
    ),
    Example(
        "glm45",
        "glm45",
        "<tool_call>weather\n"
        + _parameters("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>")
        + "</tool_call>\n<tool_call>now\n</tool_call>",
        [OSLO, NOW],
    ),
    Example("glm45", "glm47", "<tool_call>weather<arg_key>city</arg_key><arg_value>12</arg_value></tool_call>", [ROME]),
    Example(
        "mistral",
        "mistral",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {JSON}}}, {{"name": "now", "arguments": {{}}}}]',
        [OSLO, NOW],
    ),
    Example("mistral", "mistral v11", f"[TOOL_CALLS]weather[ARGS]{JSON}[TOOL_CALLS]now[ARGS]{{}}", [OSLO, NOW]),
    Example("mistral", "mistral v11", f"[TOOL_CALLS]weather{SHORT}", [ROME]),
    Example("mistral", "", f"[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{SHORT}", [ROME]),
    Example(
        "deepseek_v3",
        "deepseek_v3",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{JSON}\n```<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [OSLO, NOW],
    ),
    Example(
        "deepseek_v3",
        "deepseek_v31",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [OSLO, NOW],
    ),
    Example(
        "deepseek_v32",
        "deepseek_v32",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
        + _dsml()
        + '</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        [OSLO, NOW],
    ),
    Example(
        "kimi_k2",
        "kimi_k2",
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{JSON}<|tool_call_end|>"
        "<|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        [OSLO, NOW],
    ),
    Example(
        "minimax_m2",
        "minimax_m2",
        '<minimax:tool_call>\n<invoke name="weather">\n'
        + _parameters('<parameter name="', '">', "</parameter>")
        + '</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
        [OSLO, NOW],
    ),
    Example(
        "openai",
        "harmony",
        f"<|channel|>analysis<|message|>They ask to=functions.now.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        f"<|constrain|>json<|message|>{JSON}<|call|>",
        [OSLO],
    ),
    Example("openai", "harmony", f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{SHORT}", [ROME]),
    Example("openai", "", f" to=functions.weather<|channel|>commentary json<|message|>{SHORT}<|call|>", [ROME]),
    Example("llama3_json", "llama3_json", f'<|python_tag|>{{"name": "weather", "parameters": {JSON}}}', [OSLO]),
    Example(
        "llama3_json",
        "llama3_json",
        f'<|python_tag|>{{"name": "weather", "parameters": {SHORT}}}; {{"name": "now", "parameters": {{}}}}',
        [ROME, NOW],
    ),
    Example("llama3_json", "", "<|python_tag|>now.call()", [("now.call", {})]),
    Example("llama4_pythonic", "llama4_pythonic", f"<|python_start|>[{PYTHON}, now()]<|python_end|>", [OSLO, NOW]),
    Example("lfm2", "lfm2", f"<|tool_call_start|>[{PYTHON}, now()]<|tool_call_end|>Wait.", [OSLO, NOW]),
    Example("olmo3", "olmo3", f"<function_calls>\n{PYTHON}\nnow()\n</function_calls>", [OSLO, NOW]),
    Example("granite", "granite", f'<|tool_call|>[{{"name": "weather", "arguments": {JSON}}}, {{"name": "now"}}]', [OSLO, NOW]),
    Example("jamba", "jamba", f'<tool_calls>[\n{{"name": "weather", "arguments": {JSON}}}\n]</tool_calls>', [OSLO]),
    Example("internlm", "internlm", f'<|action_start|><|plugin|>\n{{"name": "weather", "parameters": {JSON}}}<|action_end|>', [OSLO]),
    Example("phi4_mini_json", "phi4_mini_json", f'functools[{{"name": "weather", "arguments": {SHORT}}}]', [ROME]),
    Example("bare", "pythonic", f"[{PYTHON}, now()]", [OSLO, NOW]),
    Example("bare", "llama3_json", f'{{"name": "weather", "parameters": {JSON}}}', [OSLO]),
    Example("bare", "llama3_json", f'{{"name": "weather", "parameters": {SHORT}}}; {{"name": "now", "parameters": {{}}}}', [ROME, NOW]),
    Example("bare", "xlam", f'```json\n[{{"name": "weather", "arguments": {JSON}}}]\n```', [OSLO]),
    Example("bare", "", f"```tool_code\n{PYTHON}\n```", [OSLO]),
]
# What these families' tokenizers have as tokens of their own; vLLM's parsers ask for them.
TOKENS = """
<tool_call> </tool_call> [TOOL_CALLS] [ARGS] [CALL_ID] <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜>
<｜tool▁call▁end｜> <｜tool▁sep｜> <｜DSML｜function_calls> </｜DSML｜function_calls> <|tool_calls_section_begin|>
<|tool_calls_section_end|> <|tool_call_begin|> <|tool_call_end|> <|tool_call_argument_begin|> <minimax:tool_call>
</minimax:tool_call> <|python_tag|> <|python_start|> <|python_end|> <|tool_call_start|> <tool_calls> </tool_calls>
<|tool_call|> <|action_start|> <|action_end|> <|plugin|> <think> </think> <arg_key> </arg_key> <arg_value> </arg_value>
"""
SPECIAL = TOKENS.split()
