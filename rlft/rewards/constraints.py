"""Each constraint of IFEval as a function of a text and its arguments; time is linear in the text.

They follow the published checker (arXiv:2311.07911), but: keywords are literal, not regular expressions; a text whose language
cannot be told has no language (there it counts as right); sentences and capital words are told apart by rules of our
own instead of nltk's models.
"""

from __future__ import annotations

import contextlib
import json
import re

from langdetect import DetectorFactory, LangDetectException, detect
from langdetect.detector_factory import init_factory

from rlft.errors import TaskError
from rlft.rewards.extract import short

DetectorFactory.seed = 0
init_factory()  # here, not at the first text: forked processes share what was loaded

MAX_LANGUAGE = 20_000  # characters by which a language is told
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+[\"'\u201d\u2019)\]*_]{0,4}(?=\s|$)|[\u3002\uff01\uff1f]+")
_ABBREVIATION = re.compile(
    r"(?:mrs?|ms|dr|prof|[sj]r|st|vs|etc|e\.g|i\.e|cf|al|inc|ltd|corp?|co|no|vol|fig|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)"
)
_BULLETS = (re.compile(r"^[^\S\n]*+\*[^*].*$", re.MULTILINE), re.compile(r"^[^\S\n]*+-.*$", re.MULTILINE))
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"[^\W\d_](?:[\w'\u2019.-]*\w)?")


def keywords_exist(text: str, *, keywords: list[str]) -> bool:
    return all(_count(text, keyword) > 0 for keyword in _words(keywords))


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(_count(text, keyword.strip()), frequency, relation)


def no_forbidden_words(text: str, *, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in _words(forbidden_words))


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(text.lower().count(letter.strip().lower()), let_frequency, let_relation)


def response_language(text: str, *, language: str) -> bool:
    return language_of(text) == language


def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    return _compare(count_sentences(text), num_sentences, relation)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Paragraphs between ***; none but the first and the last may be empty, and these do not count."""
    parts = [part.strip() for part in re.split(r"\*\*\*", text)]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def number_words(text: str, *, num_words: int, relation: str) -> bool:
    return _compare(sum(1 for _ in _WORD.finditer(text)), num_words, relation)


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs between blank lines, empty ones not counted, but in their place when the nth is looked up."""
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if not 1 <= nth_paragraph <= count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return count == num_paragraphs and re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    return sum(1 for _ in re.finditer(r"\[[^\[\]\n]*+\]", text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), text.lower()) is not None


def number_bullets(text: str, *, num_bullets: int) -> bool:
    """Lines that begin with - or *, but not with **. A * behind which its line ends takes the next line into its bullet."""
    return sum(1 for bullet in _BULLETS for _ in bullet.finditer(text)) == num_bullets


def constrained_response(text: str) -> bool:
    return any(answer in text for answer in ANSWERS)


def number_highlights(text: str, *, num_highlights: int) -> bool:
    """*this* counts, and **this** twice over both patterns as in the published checker: once as *, once as **."""
    single = [match for match in re.findall(r"\*[^\n*]*+\*", text) if match.strip("*").strip()]
    double = [match for match in re.findall(r"\*\*[^\n*]*+\*\*", text) if match.strip("*").strip()]
    return len(single) + len(double) >= num_highlights


def number_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return sum(1 for _ in re.finditer(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """Nothing but JSON, or one block with it. As the published checker reads it: NaN is JSON, and text around a block is not."""
    bare = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        bare = bare.removeprefix(fence)
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(bare.removesuffix("```").strip())
        return True
    return False


def title(text: str) -> bool:
    """A line with <<something>>, from its first << to its last >>."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    there = [part for part in parts if part]
    return all(parts[1:-1]) and len(there) == 2 and there[0] != there[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def capital_words(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(sum(match[0].isupper() for match in _TOKEN.finditer(text)), capital_frequency, capital_relation)


def english_capital(text: str) -> bool:
    return text.isupper() and language_of(text) == "en"


def english_lowercase(text: str) -> bool:
    return text.islower() and language_of(text) == "en"


def no_comma(text: str) -> bool:
    return "," not in text


def language_of(text: str) -> str:
    """ISO 639-1 code by langdetect (seeded: the same text has always the same language), "" where there is nothing to tell it by."""
    with contextlib.suppress(LangDetectException):  # no letters in it
        return detect(text[:MAX_LANGUAGE])
    return ""


def count_sentences(text: str) -> int:
    """Runs of text that end in . ! or ? before white space, abbreviations, initials and numbers of a list aside, or at the text's end."""
    count, start = 0, 0
    for match in _SENTENCE_END.finditer(text):
        before = text[max(start, match.start() - 20) : match.start()].split()
        word = before[-1].lstrip("([\"'*_") if before else ""
        listed = word.isdigit() and not text[max(start, match.start() - 20) : match.start() - len(word)].strip()
        initial = len(word) == 1 and word.isupper() and word != "I"
        if match[0] == "." and (_ABBREVIATION.fullmatch(word.lower()) or initial or listed):
            continue
        count += bool(_WORD.search(text, start, match.start()))
        start = match.end()
    return count + bool(_WORD.search(text, start))


def _words(given: list[str]) -> list[str]:
    if isinstance(given, str) or not all(isinstance(word, str) and word for word in given):
        raise TaskError(f"instructions: keywords {short(given)}; expected a list of texts")
    return given


def _count(text: str, keyword: str) -> int:
    return sum(1 for _ in re.finditer(re.escape(keyword), text, re.IGNORECASE))


def _compare(count: int, threshold: int, relation: str) -> bool:
    if relation not in ("less than", "at least"):
        raise TaskError(f"instructions: relation {short(relation)}; expected 'less than' or 'at least'")
    return count < threshold if relation == "less than" else count >= threshold
