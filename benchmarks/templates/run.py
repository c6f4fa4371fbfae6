"""The renderer against `apply_chat_template`, token for token, on chat templates of many model families.

    pip download --no-deps trl==1.16.0 && unzip trl-*.whl -d trl
    .venv/bin/python benchmarks/templates/run.py trl/trl/chat_templates MODEL    # writes results.md beside this file

MODEL is a folder with SmolLM2-135M-Instruct, whose tokenizer serves every template, with the special tokens that the template
writes added; the same is done with two SentencePiece-like tokenizers made here. TRL (Apache-2.0) also ships each template as changed
for its own training; those are left out.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlft.chat.template import ChatTemplate
from rlft.errors import ConfigError
from rlft.rollout.renderer import Renderer

HERE = Path(__file__).parent
TOKEN = re.compile(r"<\|?[A-Za-z_/|▁｜ ]{1,40}\|?>|<｜[^｜<>]{1,40}｜>|\[/?[A-Z_]{3,}\]|\[gMASK\]")
KEPT = re.compile(r"</?(think|tool_call|tool_response|tools|arg_key|arg_value)>")  # added, and no special tokens, as Qwen has them
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number", "description": "first"}, "b": {"type": "number", "description": "second"}},
            "required": ["a", "b"],
        },
    },
}
CALL = {"type": "function", "id": "call00001", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
LINES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # of Qwen's tokenizer
)
TEXTS = ("What is 1+1?", "  spaces around, a line\n\n", "\n- é, 漢字 and 🙂", "x = [1, 2]\n<b>bold</b> <", "a  b")
ANSWERS = ("A short answer.", " 4", "Two lines.\n\nThe second.", "<think>\nIt is easy.\n</think>\n\n4")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
PROMPTS = [[user(text)] for text in TEXTS] + [[SYSTEM, user(text)] for text in TEXTS]
TURNS = [[user(a), said(b), user(a)] for a, b in zip(TEXTS, ANSWERS, strict=False)]
TURNS += [[SYSTEM, user("1"), said("2"), user("3"), said("4"), user("5")]]
TOOLS = [[user("Add.")], [SYSTEM, user("Add.")]]
RESULT = {"role": "tool", "name": "add", "content": "3", "tool_call_id": "call00001"}
RESULTS = [[user("Add."), {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT]]


@dataclass
class Row:
    """What came of a template in each column, and the words of its refusals."""

    name: str
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def count(self, column: str, outcome: str, words: str = "") -> None:
        self.outcomes.setdefault(column, Counter())[outcome] += 1
        if words:
            self.words.setdefault(column, words)


def made(kind: str, texts: list[str]) -> Tokenizer:
    """A small Unigram tokenizer with SentencePiece's Metaspace, "first" or "always"."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=kind)
    trainer = trainers.UnigramTrainer(vocab_size=2000, unk_token="<unk>", special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_for(base: Callable[[], Any], template: str) -> Any:
    """A tokenizer with the tokens that a template writes."""
    tokenizer = base()
    found = sorted({*TOKEN.findall(template), *re.findall(r"<\|[^|<>]{1,40}\|>|<\|[a-z_]+>|<[a-z_]+\|>", template), "<s>", "</s>"})
    found = [t for t in re.findall("|".join(map(re.escape, sorted(found, key=len, reverse=True))), template)] + ["<s>", "</s>"]
    for token in dict.fromkeys(found):
        tokenizer.add_tokens([AddedToken(token, special=not KEPT.fullmatch(token), normalized=False)])
    tokenizer.chat_template = template
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    return tokenizer


def closing(tokenizer: Any, template: str) -> list[int]:
    """The special tokens that the template writes behind a last answer: a model of the family ends by them."""
    reader = ChatTemplate(tokenizer, template)
    try:
        text = reader.text([user("?"), said("XYZ")], open_answer=False).rpartition("XYZ")[2]
    except ConfigError:
        text = ""
    ids = list(takewhile(tokenizer.added_tokens_decoder.__contains__, tokenizer(text, add_special_tokens=False)["input_ids"]))
    return [*ids[-1:], tokenizer.eos_token_id]


def oracle(renderer: Renderer, messages: list[dict[str, Any]], tools: list[Any] | None = None, **options: Any) -> list[int]:
    """What `apply_chat_template` gives; for a template that reads contents as parts, parts."""
    parts = renderer.chat.template.parts
    shaped = [{**m, "content": [{"type": "text", "text": m["content"]}]} if parts else m for m in messages]
    return renderer.tokenizer.apply_chat_template(shaped, tools=tools, tokenize=True, return_dict=False, **options)


def compare(row: Row, column: str, ours: Callable[[], list[int]], theirs: Callable[[], list[int]]) -> None:
    try:
        expected = theirs()
    except Exception as error:
        expected = f"{type(error).__name__}: {error}"
    try:
        got = ours()
    except ConfigError as error:
        row.count(column, "refused" if not isinstance(expected, str) else "both refuse", str(error))
        return
    row.count(column, "equal" if got == expected else "DIFFERENT", "" if got == expected else f"DIFFERENT {got} {expected}")


def demonstrated(row: Row, renderer: Renderer, answer: str) -> None:
    ask = [user("What is 2+2?")]
    try:
        ids = [*renderer.render(ask), *renderer.target(answer, ask)]
    except ConfigError as error:
        row.count("demonstration", "refused", str(error))
        return
    whole = oracle(renderer, [*ask, said(answer)], add_generation_prompt=False)
    rest = renderer.text(whole[len(ids) :]).strip()
    equal = whole[: len(ids)] == ids and (not rest or rest == renderer.tokenizer.eos_token)
    row.count("demonstration", "equal" if equal else "DIFFERENT", "" if equal else repr(rest))


def split(row: Row, renderer: Renderer, lossless: bool) -> None:
    """Every control token of the template inside a user's text: none of their ids may come of it, and the text must be itself."""
    text = "".join(f"a{token}\n" for token in sorted(renderer.chat.control.tokens))
    control = renderer.chat.control_ids
    forged = [i for i in renderer.render([user(text)]) if i in control]
    plain = [i for i in renderer.render([user("a")]) if i in control]
    shaped = [{"role": "user", "content": [{"type": "text", "text": text}]}] if renderer.chat.template.parts else [user(text)]
    whole = renderer.tokenizer.apply_chat_template(shaped, tokenize=False, add_generation_prompt=True)
    same = not lossless or renderer.text(renderer.render([user(text)])) == whole
    good = forged == plain and same
    row.count("foreign text", "split" if good else "FORGED", "" if good else f"{forged} {plain} {same}")


def look(name: str, tokenizer: Any, lossless: bool) -> Row:
    row, template = Row(name), tokenizer.chat_template
    renderer = Renderer(tokenizer, closing(tokenizer, template))
    columns = (("prompt", PROMPTS, []), ("several turns", TURNS, []), ("tools", TOOLS, [TOOL]), ("tool results", RESULTS, [TOOL]))
    for column, conversations, tools in columns:
        for messages in conversations:
            compare(
                row,
                column,
                lambda m=messages, t=tools: renderer.render(m, t),
                lambda m=messages, t=tools: oracle(renderer, m, t or None, add_generation_prompt=True),
            )
    try:
        renderer.extend([], [RESULT], [TOOL])
        row.count("a tool answers a text", "shown")
    except ConfigError as error:
        row.count("a tool answers a text", "refused", str(error))
    for answer in ANSWERS:
        demonstrated(row, renderer, answer)
    split(row, renderer, lossless)
    return row


def bases(model: str, texts: list[str]) -> Iterator[tuple[str, Callable[[], Any], bool]]:
    def smollm2() -> Any:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)

    def splits_lines() -> Any:
        tokenizer = smollm2()
        split = pre_tokenizers.Split(Regex(LINES), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        return tokenizer

    yield "byte-level BPE (SmolLM2)", smollm2, True
    yield "byte-level BPE, words and lines as Llama 3 and Qwen part them", splits_lines, True
    for kind in ("first", "always"):
        tables = made(kind, texts).to_str()
        yield f"Unigram, Metaspace {kind}", lambda tables=tables: PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(tables), unk_token="<unk>"
        ), False


def table(rows: list[Row]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row.outcomes))
    lines = ["| template | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [", ".join(f"{n} {what}" for what, n in row.outcomes[column].items()) for column in columns]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return lines


def main(folder: Path, model: str) -> int:
    files = [file for file in sorted(folder.glob("*.jinja")) if not file.stem.endswith("_training")]
    templates = {"SmolLM2": Path(model, "chat_template.jinja").read_text()} | {file.stem: file.read_text() for file in files}
    lines, wrong = [], 0
    for title, base, lossless in bases(model, list(templates.values()) + list(TEXTS) + list(ANSWERS)):
        rows = [look(name, tokenizer_for(base, template), lossless) for name, template in templates.items()]
        counts = Counter(what for row in rows for outcomes in row.outcomes.values() for what in outcomes.elements())
        wrong += counts["DIFFERENT"] + counts["FORGED"]
        told = ", ".join(f"{what} {n}" for what, n in counts.most_common())
        lines += [f"## {title}: {len(rows)} templates", "", told, "", *table(rows), ""]
        words: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            for column, said_so in row.words.items():
                words.setdefault((column, said_so.partition(";")[0]), []).append(row.name)
        lines += ["The words of the first refusal of each, up to the way out:", ""]
        lines += [f"- {column}: {said_so} ({', '.join(names)})" for (column, said_so), names in words.items()] + [""]
    (HERE / "results.md").write_text("# Rendering against `apply_chat_template`\n\n" + "\n".join(lines))
    print("\n".join(line for line in lines if line.startswith(("## ", "equal")) or "DIFFERENT" in line or "FORGED" in line))
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]) > 0)
