"""Preference pairs: every format of Hugging Face becomes the same pair; what is no pair is named and left out."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from rlft.config import DataConfig, PreferencesConfig, RunConfig, validate
from rlft.data.preferences import PairStream, Preference, encode_pairs, load_preferences, tokenize_pairs
from rlft.errors import ConfigError, DataError
from rlft.recipes.addition import splits
from rlft.recipes.preferences import pairs
from rlft.rewards.learned.models import Encoder
from rlft.rollout.renderer import Renderer
from rlft.runs.reward_model import train_rm

USER = {"role": "user", "content": "Sky? "}
BLUE, GREEN = {"role": "assistant", "content": "Blue."}, {"role": "assistant", "content": "Green."}
SAME = [
    ("prompt", {"prompt": "Sky? ", "chosen": "Blue.", "rejected": "Green."}),
    ("prompt", {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}),
    ("prompt", {"prompt": "Sky? ", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}),
    ("", {"chosen": [USER, BLUE], "rejected": [USER, GREEN]}),
]


def load(tmp_path, *rows, prompt="prompt", **fields):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return load_preferences(DataConfig(source=str(file), prompt=prompt), PreferencesConfig(**fields))


@pytest.mark.parametrize(("prompt", "row"), SAME)
def test_every_preference_format_gives_the_same_pair(tmp_path, prompt, row):
    [pair] = load(tmp_path, row, prompt=prompt).pairs
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == ((USER,), (BLUE,), (GREEN,), 0.0)


def test_whole_texts_share_the_turns_of_their_prompt(tmp_path):
    said = "\n\nHuman: Sky?\n\nAssistant: Blue.\n\nHuman: A pet?\n\nAssistant: I would take a ca"
    [pair] = load(tmp_path, {"chosen": said + "t.", "rejected": said + "r."}, prompt="").pairs
    assert [(m["role"], m["content"]) for m in pair.prompt] == [("user", "Sky?"), ("assistant", "Blue."), ("user", "A pet?")]
    answers = [[(m["role"], m["content"]) for m in side] for side in (pair.chosen, pair.rejected)]
    assert answers == [[("assistant", "I would take a cat.")], [("assistant", "I would take a car.")]]


def test_texts_without_turns_are_left_out_for_nobody_knows_where_the_answer_begins(tmp_path):
    ours = ["Human: Sky?\n\nAssistant: Blue.", "Human: Sky?\n\nAssistant: Grey."]  # the control
    texts = ["A pet? I would take a cat.", "A pet? I would take a car."]
    loaded = load(tmp_path, *({"chosen": a, "rejected": b} for a, b in (ours, texts)), prompt="")
    assert len(loaded.pairs) == 1 and [row.field for row in loaded.bad_rows] == ["chosen"]
    assert "name the prompt's field in data.prompt" in loaded.bad_rows[0].reason


def test_a_margin_is_read_where_one_is_named(tmp_path):
    row = {"prompt": "Sky?", "good": "Blue.", "bad": "Green.", "stars": 2}
    [pair] = load(tmp_path, row, chosen="good", rejected="bad", margin="stars").pairs
    assert pair.margin == 2.0


BROKEN = [
    ({"prompt": "Sky?", "chosen": "Blue."}, "rejected", "missing"),
    ({"chosen": "Blue.", "rejected": "Green."}, "prompt", 'data.prompt = ""'),
    ({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Blue."}, "rejected", "the same"),
    ({"prompt": "Sky?", "chosen": "Blue.", "rejected": [GREEN]}, "rejected", "expected text"),
    ({"prompt": "Sky?", "chosen": [{"role": "assistant"}], "rejected": [GREEN]}, "chosen", "'role' and 'content'"),
    ({"prompt": [USER], "chosen": [USER], "rejected": [GREEN]}, "chosen", "nothing after the prompt"),
    ({"prompt": "Sky?", "chosen": "Blue.", "rejected": 7}, "rejected", "expected text"),
    ("Blue.", "", "expected an object"),
]


@pytest.mark.parametrize(("row", "field", "reason"), BROKEN)
def test_what_is_no_pair_is_named_and_left_out(tmp_path, row, field, reason):
    good = SAME[0][1]
    loaded = load(tmp_path, good, row)
    assert len(loaded.pairs) == 1
    [bad] = loaded.bad_rows
    assert (bad.row, bad.field) == (2, field) and reason in bad.reason
    with pytest.raises(DataError, match="no usable preference pair"):
        load(tmp_path, row)


def test_a_pair_longer_than_the_model_takes_is_set_aside(tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    loaded = load(tmp_path, SAME[0][1], {"prompt": "Sky? ", "chosen": "Blue." * 10, "rejected": "Green."})
    encoded, bad = encode_pairs(loaded.pairs, Encoder(tokenizer, "", max_length=20))
    assert len(encoded) == len(bad) == 1 and bad[0].source == "pair 2"
    assert tokenizer.decode(encoded[0].chosen) == "Sky? Blue.<|im_end|>"
    assert encoded[0].answer_tokens == (5, 6)
    with pytest.raises(DataError, match="no preference pair is left"):
        encode_pairs(loaded.pairs, Encoder(tokenizer, "", max_length=3))


def policy_tokens(*pairs, tokenizer, margins=False, max_length=100):
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    fitting, bad = tokenize_pairs(pairs, renderer, max_length, margins)
    texts = [tuple(map(tokenizer.decode, (p.prompt_ids, p.chosen_ids, p.rejected_ids))) for p in fitting]
    return texts, [p.gap for p in fitting], [row.reason for row in bad]


def test_a_pair_of_which_the_template_loses_a_part_is_set_aside_by_name(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'human' %}{{ m['content'].split('#')[-1] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    human, hidden = {"role": "human", "content": "Sky?"}, {"role": "assistant", "content": "thought # Blue."}
    asked = ((USER, BLUE), (human, BLUE), (USER, hidden))
    pairs = [Preference(str(n), (prompt,), (chosen,), (GREEN,)) for n, (prompt, chosen) in enumerate(asked, start=1)]
    texts, _, bad = policy_tokens(*pairs, tokenizer=tokenizer)
    assert len(texts) == 1 and "does not render role 'human'" in bad[0] and "leaves out a part of the answer" in bad[1]
    encoded, bad = encode_pairs(pairs, Encoder(tokenizer, "", 100))
    assert len(encoded) == 2 and [row.source for row in bad] == ["pair 2"]


def test_a_policy_is_trained_on_two_answers_up_to_their_eos(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    plain, better = Preference("1", (USER,), (BLUE,), (GREEN,)), Preference("2", (USER,), (BLUE,), (GREEN,), 0.5)
    texts, gaps, bad = policy_tokens(plain, better, tokenizer=tokenizer)
    assert texts == [("Sky? ", "Blue.<|im_end|>", "Green.<|im_end|>")] * 2 and gaps == [1.0, 1.0] and not bad
    texts, gaps, bad = policy_tokens(plain, better, tokenizer=tokenizer, margins=True)
    assert gaps == [0.5] and bad == ["expected more than 0, got 0; put the better answer first"]


def test_what_a_policy_cannot_learn_from_is_set_aside(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    call = {**BLUE, "tool_calls": [{"name": "look"}]}
    good, long = Preference("1", (USER,), (BLUE,), (GREEN,)), Preference("2", (USER,), (BLUE,), ({**GREEN, "content": "Green." * 3},))
    pairs = [good, long, Preference("3", (USER,), (BLUE, USER, BLUE), (GREEN,)), Preference("4", (USER,), (call,), (GREEN,))]
    texts, _, bad = policy_tokens(*pairs, tokenizer=tokenizer, max_length=5 + 7)
    assert len(texts) == 1 and bad[0] == "an answer of 19 tokens, where the model has room for 7 after the prompt"
    assert [reason.partition(";")[0] for reason in bad[1:]] == ["expected an answer of one assistant message without tool calls"] * 2
    with pytest.raises(DataError, match="no preference pair is left for the policy"):
        policy_tokens(good, tokenizer=tokenizer, max_length=11)


def test_a_stream_shows_every_pair_once_an_epoch():
    stream = PairStream(list(range(10)), seed=1)
    first, second = [[next(stream) for _ in range(10)] for _ in range(2)]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert [next(PairStream(list(range(10)), seed=1, shuffle=False))] == [0]


def test_the_recipe_prefers_sums_as_careful_as_its_annotator():
    def right(row):
        left, other = (int(number[::-1]) for number in row["prompt"].rstrip("=").split("+"))
        return int(row["chosen"][::-1]) == left + other

    assert all(right(row) for row in pairs(count=300))
    assert 0.45 < np.mean([right(row) for row in pairs(count=300, careless=0.7)]) < 0.65
    shown, held = ({row["prompt"] for row in pairs(split, count=2000)} for split in ("demonstrated", "held_out"))
    assert not shown & held and len(held) > 0.9 * len(splits(0)["held_out"])


REFUSED = [
    ({"reward": {"exact_match": 1.0}}, r"\[reward\] does not apply"),
    ({"algorithm": {"name": "dr_grpo"}}, r"\[algorithm\] does not apply"),
    ({"learner": {"num_epochs": 2}}, "learner.num_epochs does not apply"),
    ({"eval": {"samples": 2, "data": {"source": "x.jsonl"}}}, "eval.samples does not apply"),
    ({"data": {"answer": "gold"}}, "data.answer does not apply"),
]


@pytest.mark.parametrize(("table", "message"), REFUSED)
def test_what_does_not_apply_is_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        train_rm(validate({"model": "m", **table}))


def test_preferences_do_not_apply_to_other_runs(tiny_model):
    import rlft

    config = RunConfig(model=tiny_model, preferences=PreferencesConfig(margin="m"))
    for run in (rlft.train, rlft.sft):
        with pytest.raises(ConfigError, match=r"\[preferences\]"):
            run(config)
