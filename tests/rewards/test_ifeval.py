"""Our checks of IFEval's instructions beside the published ones, over generated answers: where they differ it is said why."""

import importlib.util
import random
from collections import Counter

import pytest

from rlft.rewards.instructions import CHECKS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("if_verifiable") is None, reason="if-verifiable is not installed")
ARGUMENTS = {
    "keywords:existence": [{"keywords": ["sea", "sky"]}, {"keywords": ["sun."]}],
    "keywords:frequency": [{"keyword": "sea", "frequency": 2, "relation": relation} for relation in ("at least", "less than")],
    "keywords:forbidden_words": [{"forbidden_words": ["sea", "sky"]}],
    "keywords:letter_frequency": [{"letter": "e", "let_frequency": 9, "let_relation": relation} for relation in ("at least", "less than")],
    "language:response_language": [{"language": "en"}, {"language": "de"}],
    "length_constraints:number_sentences": [{"num_sentences": 3, "relation": relation} for relation in ("at least", "less than")],
    "length_constraints:number_paragraphs": [{"num_paragraphs": n} for n in (1, 2, 3)],
    "length_constraints:number_words": [{"num_words": 20, "relation": relation} for relation in ("at least", "less than")],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": n, "nth_paragraph": nth, "first_word": word} for n, nth, word in ((2, 1, "the"), (2, 2, "ships"), (3, 2, "the"))
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": n} for n in (1, 2, 3)],
    "detectable_content:postscript": [{"postscript_marker": "P.S."}, {"postscript_marker": "P.P.S"}],
    "detectable_format:number_bullet_lists": [{"num_bullets": n} for n in (1, 2, 3)],
    "detectable_format:constrained_response": [{}],
    "detectable_format:number_highlighted_sections": [{"num_highlights": n} for n in (1, 2, 3)],
    "detectable_format:multiple_sections": [{"section_spliter": "SECTION", "num_sections": n} for n in (1, 2)],
    "detectable_format:json_format": [{}],
    "detectable_format:title": [{}],
    "combination:two_responses": [{}],
    "combination:repeat_prompt": [{"prompt_to_repeat": "The sea is deep."}],
    "startend:end_checker": [{"end_phrase": "Any other questions?"}],
    "startend:quotation": [{}],
    "change_case:capital_word_frequency": [
        {"capital_frequency": 2, "capital_relation": relation} for relation in ("at least", "less than")
    ],
    "change_case:english_capital": [{}],
    "change_case:english_lowercase": [{}],
    "punctuation:no_comma": [{}],
}
BY_MODELS_OF_NLTK = {"length_constraints:number_sentences": "punkt", "change_case:capital_word_frequency": "punkt_tab"}
PIECES = [
    "The sea is deep.",
    "Ships, old and new, sail on it!",
    "Is the sky blue?",
    "the sun. rises",
    "Das Meer ist tief und sehr kalt.",
    "NASA and ESA",
    "\n",
    "\n\n",
    "\n\n",
    "\n***\n",
    "***",
    "******",
    "\n******\n",
    "* one\n",
    "* \n",
    "*\n",
    "- two\n",
    "\n  - three\n",
    "** no\n",
    "*high*",
    "**bold**",
    "** **",
    "[name]",
    "[a [b]",
    "[\n]",
    "SECTION 1\n",
    "SECTION 2",
    "Section 3",
    "P.S. bye",
    "p. s. bye",
    "P.P.S bye",
    "<<The sea>>",
    "<<>>",
    '"',
    '"',
    "My answer is yes.",
    "My answer is no.",
    "Any other questions?",
    '{"a": 1}',
    '```json\n{"a": [1, 2]}\n```',
    "```\n[]\n```",
    "NaN",
    "'ships",
    "Mr. Smith",
    "e.g. this",
    "3.5",
    "Wait...",
    " ",
    " ",
    " ",
]


def answers(number, seed=0):
    rng = random.Random(seed)
    for _ in range(number):
        joint = rng.choice(("", "", "", "\n\n"))
        text = joint.join(rng.choices(PIECES[:6] if joint else PIECES, k=rng.choice((1, 1, 2, 3, 5, 8, 13))))
        yield rng.choice((text, text, text, text.upper(), text.lower(), f'"{text}"'))


def published(check_id, arguments, text):
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    checker = INSTRUCTION_DICT[check_id](check_id)
    checker.build_description(**arguments)
    return bool(checker.check_following(text))


def compared(check_id, number):
    """How often both say the same, and the texts where they do not."""
    pairs = [(text, arguments) for text in answers(number) if text.strip() for arguments in ARGUMENTS[check_id]]
    return len(pairs), [(t, arguments) for t, arguments in pairs if CHECKS[check_id](t, **arguments) != published(check_id, arguments, t)]


def test_the_table_covers_every_instruction():
    assert ARGUMENTS.keys() == CHECKS.keys()


@pytest.mark.parametrize("check_id", sorted(ARGUMENTS))
def test_of_a_sample_the_published_checker_says_the_same(check_id):
    agrees(check_id, 100 if check_id != "language:response_language" else 20)


@pytest.mark.nightly
@pytest.mark.parametrize("check_id", sorted(ARGUMENTS))
def test_of_many_answers_the_published_checker_says_the_same(check_id):
    agrees(check_id, 2000 if check_id != "language:response_language" else 400)


def agrees(check_id, number):
    try:
        total, different = compared(check_id, number)
    except LookupError:
        pytest.skip(f"nltk's model {BY_MODELS_OF_NLTK[check_id]!r} is not here")
    kept = Counter(CHECKS[check_id](text, **arguments) for text in answers(number) for arguments in ARGUMENTS[check_id])
    print(check_id, f"{total - len(different)} of {total} agree", dict(kept))
    allowed = check_id == "language:response_language"  # a text without a letter is in no language; there it is in any
    assert all(allowed and not any(char.isalpha() for char in text) for text, _ in different), different[:3]
    assert kept[True] and kept[False]  # the control: the answers tell the two apart


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"a": 1}', True),
        ('```json\n{"a": 1}\n```', True),
        ("NaN", True),
        ('Here:\n```json\n{"a": 1}\n```', False),
        ('```json\n{"a": 1}\n```\nThat is it.', False),
        ("[" * 9000, False),
    ],
)
def test_text_around_a_block_is_not_json(text, kept):
    assert CHECKS["detectable_format:json_format"](text) == kept


@pytest.mark.parametrize(
    ("text", "number"), [("* \n* b", 2), ("*\n* b", 1), ("*", 0), ("* ", 1), ("** b", 0), ("-\n- b", 2), (" \n\n  * b", 1)]
)
def test_a_bullet_may_have_nothing_behind_it(text, number):
    check = CHECKS["detectable_format:number_bullet_lists"]
    assert [n for n in range(4) if check(text, num_bullets=n)] == [number]
