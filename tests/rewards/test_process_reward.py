"""Process rewards: each step is read where it ends, by token classifiers and by sequence classifiers."""

import asyncio

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from rlft.errors import ConfigError
from rlft.rewards.grader import spoken
from rlft.rewards.learned.process_reward import AGGREGATES, ProcessReward, step_ends
from rlft.types import Group, Task

TASK = Task("1", ({"role": "user", "content": "Solve it.\n"},))
STEPS = ["First, add.", "Then multiply\nby two.", "So 7."]


def model_of(auto, tiny_model, folder, num_labels):
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(tiny_model, num_labels=num_labels)
    auto.from_pretrained(tiny_model, config=config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return str(folder)


def verdicts(scorer, *texts):
    async def run():
        await scorer.start()
        got = await scorer.score(Group("g", tuple(spoken(TASK, text) for text in texts)))
        await scorer.close()
        return got

    return asyncio.run(run())


def listed(feedback):
    return [float(line.partition(": ")[2]) for line in feedback.splitlines()]


def ids_of(folder, text):
    return torch.tensor([AutoTokenizer.from_pretrained(folder)(text)["input_ids"]])


def test_a_token_classifier_is_read_at_the_mark_after_each_step(tmp_path, tiny_model):
    folder = model_of(AutoModelForTokenClassification, tiny_model, tmp_path, 2)
    other = "One step."
    (value, feedback), (lone, _) = verdicts(ProcessReward(model=folder, aggregate="product"), "\n\n".join(STEPS), other)
    lm, expected, text = AutoModelForTokenClassification.from_pretrained(folder), [], "Solve it.\n"
    for step in STEPS:
        text += f"{step}\n\n"
        expected.append(lm(ids_of(folder, text)).logits[0, -1].softmax(-1)[1].item())
    assert listed(feedback) == pytest.approx(expected, abs=6e-4)
    assert value == pytest.approx(expected[0] * expected[1] * expected[2], abs=1e-5)
    assert lone == pytest.approx(lm(ids_of(folder, f"Solve it.\n{other}\n\n")).logits[0, -1].softmax(-1)[1].item(), abs=1e-5)
    assert len({round(score, 3) for score in expected}) == 3


def test_a_sequence_classifier_reads_every_beginning_of_the_answer(tmp_path, tiny_model):
    folder = model_of(AutoModelForSequenceClassification, tiny_model, tmp_path, 1)
    [(value, feedback)] = verdicts(ProcessReward(model=folder, aggregate="min"), "\n\n".join(STEPS))
    lm, expected = AutoModelForSequenceClassification.from_pretrained(folder), []
    for count in (1, 2, 3):
        text = "Solve it.\n" + "\n\n".join(STEPS[:count]) + "<|im_end|>"
        expected.append(lm(input_ids=ids_of(folder, text)).logits[0, 0].sigmoid().item())
    assert listed(feedback) == pytest.approx(expected, abs=6e-4)
    assert value == pytest.approx(min(expected), abs=1e-5)


def test_an_answer_without_a_step_earns_nothing(tmp_path, tiny_model):
    folder = model_of(AutoModelForTokenClassification, tiny_model, tmp_path, 2)
    assert verdicts(ProcessReward(model=folder), " \n\n ") == [(0.0, "no step")]


@pytest.mark.parametrize(("how", "value"), [("min", 0.2), ("mean", 0.5), ("product", 0.08), ("last", 0.8)])
def test_steps_are_aggregated_as_asked(how, value):
    assert AGGREGATES[how]([0.5, 0.2, 0.8]) == pytest.approx(value)


def test_steps_lie_between_separators_without_the_space_around_them():
    text = "\n\n one\n\n\n\ntwo \nlines\n\n"
    assert [text[start:end] for start, end in step_ends(text, "\n\n")] == ["one", "two \nlines"]


def test_a_model_of_another_kind_and_a_label_it_has_not_are_refused(tmp_path, tiny_model):
    with pytest.raises(ConfigError, match="expected a token or sequence classifier"):
        verdicts(ProcessReward(model=tiny_model), "x")
    folder = model_of(AutoModelForTokenClassification, tiny_model, tmp_path, 2)
    with pytest.raises(ConfigError, match="label 2"):
        verdicts(ProcessReward(model=folder, label=2), "x")
