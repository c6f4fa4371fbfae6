"""Calls in the formats of the families of models: read as they are meant, as vLLM reads them, and nothing else."""

import json
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from call_examples import EXAMPLES, NOW, OSLO, SPECIAL, TOOLS  # noqa: E402

from rlft.errors import RewardError  # noqa: E402
from rlft.rewards.call_formats import FORMATS, MAX_PYTHON, read_calls, typed  # noqa: E402
from rlft.rewards.function_call import function_call  # noqa: E402
from rlft.rewards.grader import spoken  # noqa: E402
from rlft.types import Completion, Task, Trajectory, Turn  # noqa: E402

PARAMETERS = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in TOOLS}
NAMES = [f"{number} {example.form}" for number, example in enumerate(EXAMPLES)]


def read(text, form=""):
    return [(call.tool, dict(call.arguments)) for call in read_calls(text, PARAMETERS, form)]


def task(*calls):
    return Task("t", ({"role": "user", "content": "?"},), [{"name": name, "arguments": arguments} for name, arguments in calls],
        {"tools": TOOLS})


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_every_family_is_read(example):
    assert read(example.text) == example.calls


def test_every_format_has_an_example():
    assert {example.form for example in EXAMPLES} == {*FORMATS, "bare"}


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.calls[0][0] in PARAMETERS], ids=str)
def test_the_right_call_earns_1_in_every_format_and_a_wrong_value_does_not(example):
    right, wrong = task(*example.calls), task(("weather", {"city": "Bergen"}), *example.calls[1:])
    assert function_call(right, spoken(right, f"<think>now()</think>{example.text}"))[0] == 1.0
    assert function_call(wrong, spoken(wrong, example.text))[0] < 1.0


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_of_formats_the_one_that_is_named_counts_alone(example):
    assert read(example.text, example.form) == example.calls
    others = ["mistral", "bare"] if example.form != "mistral" else ["hermes", "bare"]
    for other in [name for name in others if name != example.form]:
        assert function_call(task(NOW), spoken(task(NOW), example.text), format=other)[0] == -2.0


def test_an_unknown_format_is_named():
    with pytest.raises(RewardError, match="format 'mistal'; expected 'bare', 'hermes'"):
        function_call(task(NOW), spoken(task(NOW), ""), format="mistal")


def test_calls_that_a_parser_of_the_engine_found_count_before_the_text():
    made = [{"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}} for name, arguments in (OSLO, NOW)]
    action = {"role": "assistant", "content": "<tool_call>{}</tool_call>", "tool_calls": made}
    said = Trajectory(task(OSLO, NOW), 0, (Turn([], Completion([], [], "stop", 0), action, []),), "completed")
    assert function_call(task(OSLO, NOW), said)[0] == 1.0
    assert function_call(task(NOW, OSLO), said)[0] < 1.0


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "now"}',
        '<tool_call>{"name": "now"} and</tool_call>',
        "<tool_call></tool_call>",
        "<tool_call>[</tool_call>",
        "<function=weather><parameter=city>Oslo</function>",
        "<function=weather",
        "<tool_call>weather<arg_key>city</arg_key></tool_call>",
        "<tool_call>weather<arg_key>city</arg_key>x<arg_value>Oslo</arg_value></tool_call>",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]weather",
        '[TOOL_CALLS]weather{"city"',
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather{}<｜tool▁call▁end｜>",
        '<｜DSML｜invoke name="weather"></｜DSML｜invoke',
        "<|tool_call_begin|>functions.now:0{}<|tool_call_end|>",
        "<|channel|>commentary to=functions.now <|message|>{",
        "<|python_tag|>now(1)",
        "<|python_tag|>now(**{})",
        "<|python_tag|>x = now()",
        "<|python_tag|>now(city=f())",
        "<|python_tag|>now(city=1, city=2)",
        "<|python_tag|>now(city=1e999)",
        "<|python_tag|>now(city=0x" + "f" * 400 + ")",
        "<|python_tag|>" + "[" * 300,
        "<|python_tag|>now(city=" + "-" * 9000 + "1)",
        "<|python_tag|>now(city='" + "x" * MAX_PYTHON + "')",
        "[now(), 3]",
    ],
)
def test_what_begins_like_a_call_and_is_none_cannot_be_read(text):
    with pytest.raises(ValueError):
        read(text)
    assert function_call(task(NOW), spoken(task(NOW), text))[0] == -2.0


@pytest.mark.parametrize("text", ["", "It rains.", "See [now](http://x).", "a[now()]", "to=functions.now", "```python\nnow()\n```"])
def test_what_is_no_call_is_none(text):
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("12", {"type": "string"}, "12"),
        ("12", None, "12"),
        ("12", {"type": "integer"}, 12),
        ("12", {"type": "str, optional"}, "12"),
        ("12", {"type": ["string", "null"]}, "12"),
        ("12", {"anyOf": [{"type": "string"}, {"type": "number"}]}, 12),
        ("12", {}, 12),
        ("x", {}, "x"),
        ("null", {"type": ["string", "null"]}, None),
        ("None", {"type": ["string", "null"]}, None),
        ("null", {"type": "string"}, "null"),
        ("True", {"type": "boolean"}, True),
        ("true", {"type": "any"}, True),
        ("five", {"type": "integer"}, "five"),
        ("[1", {"type": "array"}, "[1"),
        ('{"a": NaN}', {"type": "dict"}, '{"a": NaN}'),
    ],
)
def test_bare_text_is_of_the_type_that_the_tool_says(text, schema, value):
    found = typed(text, schema)
    assert (found, type(found)) == (value, type(value))


PIECES = st.sampled_from(
    [*SPECIAL, "weather", "now()", *'[]{}()=,"', '{"name": "now"}', "'", "\n", "city", "<function=", ">", "<parameter=",
        "</parameter>", "</function>", '<invoke name="', "<|message|>", "to=functions.now", "<|", "\x00", "\ud800", "9" * 400]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_any_text_earns_a_number_of_the_scale(text):
    for wanted in (task(NOW), task(OSLO, NOW)):
        assert -2 <= function_call(wanted, spoken(wanted, text), ordered=False)[0] <= 1


@pytest.mark.parametrize("piece", [*SPECIAL, "<function=", '<invoke name="', "to=functions.now", "[now(", "(", "{", "now(a=", "```\n", "-"])
def test_long_texts_made_to_hurt_do_not(piece):
    started = time.perf_counter()
    for begin in ("", "<|python_tag|>", "[TOOL_CALLS]"):
        function_call(task(OSLO), spoken(task(OSLO), begin + piece * (200_000 // len(piece))))
    assert time.perf_counter() - started < 10


def byte_tokenizer(special):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


@pytest.mark.nightly
@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.parser], ids=lambda e: e.parser)
def test_vllm_reads_the_same(example):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "?"}], tools=TOOLS)
    if example.parser == "harmony":
        found = of_harmony(example.text, request)
    else:  # a tokenizer of Mistral's before v11 has no [ARGS]
        special = [token for token in SPECIAL if example.parser != "mistral" or token != "[ARGS]"]
        parser = ToolParserManager.get_tool_parser(example.parser.split()[0])(byte_tokenizer(special), request.tools)
        found = [call.function for call in parser.extract_tool_calls(example.text, request).tool_calls]
    assert [(call.name, json.loads(call.arguments)) for call in found] == example.calls


def of_harmony(text, request):
    import openai_harmony
    from vllm.parser.harmony import HarmonyParser

    try:
        encoding = openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    except openai_harmony.HarmonyError as error:
        pytest.skip(f"gpt-oss' vocabulary is not here: {error}")
    HarmonyParser.tool_parser_cls = __import__("vllm.tool_parsers.gptoss_tool_parser", fromlist=["x"]).GptOssToolParser
    parser = HarmonyParser(byte_tokenizer([]), request.tools)
    ids = encoding.encode(text, allowed_special="all")
    return parser.parse(text, request, True, ids)[2] or []
