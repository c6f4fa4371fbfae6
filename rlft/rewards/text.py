"""Likeness of texts, by the libraries that define the measures: BLEU, chrF, ROUGE."""

from __future__ import annotations

import functools
from typing import Literal

from rapidfuzz.distance import LCSseq
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize as rouge_tokens
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from rlft.errors import RewardError, TaskError
from rlft.rewards.extract import gold, last_tag, said, short
from rlft.types import Task, Trajectory

MAX_RATIO, MAX_SPARE = 20, 200  # a text of more words than MAX_RATIO times its longest reference + MAX_SPARE is worth 0
MAX_CELLS = 4_000_000  # pairs of words that rougeLsum compares: it takes time quadratic in the texts


def bleu(
    task: Task, trajectory: Trajectory, *, tokenizer: Literal["13a", "intl", "zh", "char", "none"] = "13a", tag: str = "answer"
) -> float:
    """Sentence BLEU of sacrebleu (exponential smoothing, effective order), in 0 to 1.

    Args:
        tokenizer: of sacrebleu; "zh" for Chinese, "char" for other languages without spaces.
        tag: reads the last <tag>...</tag> if there is one, else all that was said.

    Raises:
        TaskError: the answer is neither a text nor a list of texts.
        RewardError: the tokenizer is unknown.
    """
    if tokenizer not in ("13a", "intl", "zh", "char", "none"):
        raise RewardError(f"bleu: tokenizer {tokenizer!r}; expected '13a', 'intl', 'zh', 'char' or 'none'")
    references = _references(task, "bleu")
    text = _text(trajectory, tag, references)
    return min(1.0, _bleu(tokenizer).sentence_score(text, references).score / 100) if text else 0.0


def chrf(task: Task, trajectory: Trajectory, *, word_order: int = 0, tag: str = "answer") -> float:
    """Sentence chrF of sacrebleu (character 6-grams, beta 2), in 0 to 1.

    Args:
        word_order: longest word n-grams that count; 2 is chrF++.
        tag: reads the last <tag>...</tag> if there is one, else all that was said.

    Raises:
        TaskError: the answer is neither a text nor a list of texts.
        RewardError: `word_order` is negative.
    """
    if word_order < 0:
        raise RewardError(f"chrf: word_order {word_order}; expected 0 or more")
    references = _references(task, "chrf")
    text = _text(trajectory, tag, references)
    return min(1.0, _chrf(word_order).sentence_score(text, references).score / 100) if text else 0.0


def rouge(task: Task, trajectory: Trajectory, *, which: str = "rougeL", stem: bool = False, tag: str = "answer") -> float:
    """ROUGE F1 of rouge-score against the best reference. It knows words of a-z and 0-9 only; other scripts need chrF.

    Args:
        which: "rouge1" to "rouge9", "rougeL" or "rougeLsum" (sentences on lines).
        stem: whether words are stemmed (Porter).
        tag: reads the last <tag>...</tag> if there is one, else all that was said.

    Raises:
        TaskError: the answer is neither a text nor a list of texts, no reference has a word, or, with "rougeLsum", one has over 2000.
        RewardError: `which` is unknown.
    """
    if which not in ("rougeL", "rougeLsum") and not (len(which) == 6 and which.startswith("rouge") and which[5] in "123456789"):
        raise RewardError(f"rouge: which {which!r}; expected 'rouge1' to 'rouge9', 'rougeL' or 'rougeLsum'")
    references = [reference for reference in _references(task, "rouge") if rouge_tokens(reference, None)]
    if not references:
        raise TaskError(f"rouge: the answer {short(task.answer)} of task {task.id!r} has no word of a-z and 0-9; use chrf")
    text = _text(trajectory, tag, references)
    if which == "rougeL":
        return _longest_common(references, text, stem)
    if which == "rougeLsum":
        words = max(len(rouge_tokens(reference, None)) for reference in references)
        if words**2 > MAX_CELLS:
            raise TaskError(f"rouge: a reference of task {task.id!r} has {words} words, too many for rougeLsum; use rougeL")
        text = text if words * len(rouge_tokens(text, None)) <= MAX_CELLS else ""
    return float(_rouge(which, stem).score_multi(references, text)[which].fmeasure) if text else 0.0


def _longest_common(references: list[str], text: str, stem: bool) -> float:
    """F1 of the longest common subsequence of words, against the best reference. The library's own takes quadratic time in Python."""
    tokenizer = DefaultTokenizer(use_stemmer=stem)
    said, best = tokenizer.tokenize(text), 0.0
    for words in map(tokenizer.tokenize, references):
        common = LCSseq.similarity(words, said)
        best = max(best, 2 * common / (len(words) + len(said)))
    return best


@functools.lru_cache
def _bleu(tokenizer: str) -> BLEU:
    return BLEU(tokenize=tokenizer, effective_order=True)


@functools.lru_cache
def _chrf(word_order: int) -> CHRF:
    return CHRF(word_order=word_order)


@functools.lru_cache
def _rouge(which: str, stem: bool) -> RougeScorer:
    return RougeScorer([which], use_stemmer=stem)


def _references(task: Task, reward: str) -> list[str]:
    answer = gold(task, reward)
    references = [answer] if isinstance(answer, str) else list(answer) if isinstance(answer, (list, tuple)) else []
    if not references or not all(isinstance(item, str) and item.strip() for item in references):
        raise TaskError(f"{reward}: the answer {short(answer)} of task {task.id!r}; expected a text that is not empty, or a list of them")
    return references


def _text(trajectory: Trajectory, tag: str, references: list[str]) -> str:
    """The text to compare; "" where it is so much longer than every reference that its likeness is next to nothing."""
    text = said(trajectory)
    inside = last_tag(text, tag)
    text = (text if inside is None else inside).strip()
    longest = max(max(len(reference.split()) for reference in references), max(map(len, references)) // 5)
    words = max(len(text.split()), len(text) // 30)
    return text if words <= MAX_RATIO * longest + MAX_SPARE else ""
