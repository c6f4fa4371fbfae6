"""Log-likelihood rewards against transformers' own forward, one text at a time."""

import asyncio
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlft.errors import ConfigError
from rlft.rewards.grader import spoken
from rlft.rewards.learned.log_likelihood import LogLikelihood
from rlft.types import Group, Task

TASK = Task("1", ({"role": "user", "content": "How do I boil an egg? "},))
TEXTS = ["Seven minutes in boiling water.", "No.", "I do not know. " * 5]


@pytest.fixture(scope="module")
def lm(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64), AutoTokenizer.from_pretrained(tiny_model)


def reference(lm, before, text):
    """(sum over the tokens of `text`, their number), unbatched and in float64."""
    model, tokenizer = lm
    start, target = tokenizer(before)["input_ids"], tokenizer(text)["input_ids"]
    logprobs = model(torch.tensor([start + target])).logits[0].log_softmax(-1)
    return sum(logprobs[len(start) + i - 1, token].item() for i, token in enumerate(target)), len(target)


def values(scorer, trajectories):
    async def run():
        await scorer.start()
        got = await asyncio.gather(*(scorer.score(Group(str(i), (t,))) for i, t in enumerate(trajectories)))
        await scorer.close()
        return [value for of_group in got for value in of_group]

    return asyncio.run(run())


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_follow_ups_are_scored_after_the_conversation(lm, tiny_model, reduce):
    good, bad = ["Thanks, that helped!", "Great."], ["That is wrong."]
    scorer = LogLikelihood(model=tiny_model, followups=good, against=bad, reduce=reduce)
    got = values(scorer, [spoken(TASK, text) for text in TEXTS])
    for text, value in zip(TEXTS, got, strict=True):
        before = f"{TASK.messages[0]['content']}{text}<|im_end|>"
        parts = [reference(lm, before, followup) for followup in (*good, *bad)]
        scores = [total / (count if reduce == "mean" else 1) for total, count in parts]
        assert value == pytest.approx((scores[0] + scores[1]) / 2 - scores[2], abs=1e-4)
    assert max(got) - min(got) > 1e-2


def test_without_follow_ups_it_is_the_likelihood_of_the_answer_and_its_end(lm, tiny_model):
    finished = spoken(TASK, TEXTS[0])
    cut = replace(finished, status="truncated")
    got = values(LogLikelihood(model=tiny_model, reduce="sum"), [finished, cut])
    prompt = TASK.messages[0]["content"]
    assert got[0] == pytest.approx(reference(lm, prompt, TEXTS[0] + "<|im_end|>")[0], abs=1e-3)
    assert got[1] == pytest.approx(reference(lm, prompt, TEXTS[0])[0], abs=1e-3)
    assert got[0] < got[1] - 1


@pytest.mark.parametrize("options", [{"against": ["no"]}, {"followups": "thanks"}, {"followups": [" "]}, {"reduce": "max"}])
def test_options_that_make_no_sense_are_refused(tiny_model, options):
    with pytest.raises(ConfigError, match="log_likelihood"):
        LogLikelihood(model=tiny_model, **options)
