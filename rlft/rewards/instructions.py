"""Instruction following: the verifiable constraints of IFEval, by the ids and arguments of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rlft.errors import RewardError, TaskError
from rlft.rewards import constraints
from rlft.rewards.extract import given_json, said, short
from rlft.types import Task, Trajectory

CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": constraints.keywords_exist,
    "keywords:frequency": constraints.keyword_frequency,
    "keywords:forbidden_words": constraints.no_forbidden_words,
    "keywords:letter_frequency": constraints.letter_frequency,
    "language:response_language": constraints.response_language,
    "length_constraints:number_sentences": constraints.number_sentences,
    "length_constraints:number_paragraphs": constraints.number_paragraphs,
    "length_constraints:number_words": constraints.number_words,
    "length_constraints:nth_paragraph_first_word": constraints.nth_paragraph_first_word,
    "detectable_content:number_placeholders": constraints.number_placeholders,
    "detectable_content:postscript": constraints.postscript,
    "detectable_format:number_bullet_lists": constraints.number_bullets,
    "detectable_format:constrained_response": constraints.constrained_response,
    "detectable_format:number_highlighted_sections": constraints.number_highlights,
    "detectable_format:multiple_sections": constraints.number_sections,
    "detectable_format:json_format": constraints.json_format,
    "detectable_format:title": constraints.title,
    "combination:two_responses": constraints.two_responses,
    "combination:repeat_prompt": constraints.repeat_prompt,
    "startend:end_checker": constraints.ends_with,
    "startend:quotation": constraints.quotation,
    "change_case:capital_word_frequency": constraints.capital_words,
    "change_case:english_capital": constraints.english_capital,
    "change_case:english_lowercase": constraints.english_lowercase,
    "punctuation:no_comma": constraints.no_comma,
}


def instructions(
    task: Task, trajectory: Trajectory, *, mode: Literal["all", "share"] = "all", loose: bool = False
) -> tuple[float, str]:
    """Whether the last message keeps the constraints of `task.meta`, as IFEval checks them (arXiv:2311.07911).

    `task.meta` holds "instruction_id_list", such as ["keywords:existence"], and "kwargs", the arguments of each, such as
    [{"keywords": ["sea"]}]; arguments that are None are absent, as in IFEval's data. An empty message keeps none.

    Args:
        mode: "all" is 1 if every constraint is kept, else 0; "share" is the share of kept ones.
        loose: whether a constraint also counts as kept where it is after asterisks, the first line, the last line, or
            several of these are removed (IFEval's loose accuracy).

    Raises:
        TaskError: an unknown instruction id, wrong arguments, or no instructions.
        RewardError: the mode is unknown.
    """
    if mode not in ("all", "share"):
        raise RewardError(f"instructions: mode {mode!r}; expected 'all' or 'share'")
    text = said(trajectory)
    texts = _variants(text) if loose else [text]
    kept = {}
    for number, (check_id, arguments) in enumerate(_instructions(task)):
        check = CHECKS[check_id]
        try:
            kept[number, check_id] = any(variant.strip() and check(variant, **arguments) for variant in texts)
        except TypeError as error:
            raise TaskError(f"instructions: {check_id} of task {task.id!r}: wrong arguments {short(arguments)}: {error}") from None
    violated = [check_id for (_, check_id), follows in kept.items() if not follows]
    share = 1 - len(violated) / len(kept)
    return float(share == 1) if mode == "all" else share, f"violated: {', '.join(violated)}" if violated else ""


def _instructions(task: Task) -> list[tuple[str, dict[str, Any]]]:
    ids, listed = given_json(task.meta.get("instruction_id_list")), given_json(task.meta.get("kwargs"))
    if not isinstance(ids, Sequence) or isinstance(ids, str) or not ids:
        raise TaskError(f"instructions: task {task.id!r} has no meta['instruction_id_list']; expected ids such as 'keywords:existence'")
    if not isinstance(listed, Sequence) or len(listed) != len(ids):
        raise TaskError(f"instructions: meta['kwargs'] of task {task.id!r} must list the arguments of its {len(ids)} instructions")
    for check_id in ids:
        if check_id not in CHECKS:
            raise TaskError(f"instructions: unknown instruction {check_id!r} in task {task.id!r}; known: {', '.join(CHECKS)}")
    pairs = zip(ids, listed, strict=True)
    return [(i, {key: value for key, value in dict(a).items() if value is not None} if isinstance(a, Mapping) else {}) for i, a in pairs]


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    plain = [text, *cut]
    return [*plain, *(variant.replace("*", "") for variant in plain)]
