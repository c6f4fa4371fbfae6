"""The task for a real model: each rule pays what it says, no short cut is paid, splits share nothing, and the run files fit together."""

import pytest

from rlft.config import RECIPES, load
from rlft.data.sources import load_tasks
from rlft.errors import TaskError
from rlft.recipes.sentences import (
    MAX_WORDS,
    MIN_WORDS,
    NUM_HELD_OUT,
    RULES,
    THINGS,
    demonstrations,
    follows,
    original,
    splits,
    task,
    tasks,
)
from rlft.rewards.compose import compose
from rlft.rewards.grader import spoken
from rlft.types import Group, Task

DOG = task("dog", "train")

# What is said about a dog, and which of length, sentence, topic and varied it keeps.
SAID = [
    ("The old dog slept by the warm fire.", (1, 1, 1, 1)),
    ("Dogs bark, and my mother's cat runs away.", (1, 1, 1, 1)),
    ("Dog.", (0, 1, 1, 0)),  # too short a word to count as varied
    ("The dog barked loudly.", (0, 1, 1, 1)),
    ("The old cat slept by the warm fire.", (1, 1, 0, 1)),
    ("The hotdog was eaten by the hungry man.", (1, 1, 0, 1)),
    ("The happy dog is a happy dog at home.", (1, 1, 1, 0)),
    ("dog dog dog dog dog dog dog.", (1, 0, 1, 0)),
    ("the old dog slept by the warm fire.", (1, 0, 1, 1)),
    ("The old dog slept by the warm fire", (1, 0, 1, 1)),
    ("The old dog slept. The warm fire burned.", (1, 0, 1, 1)),
    ("Is the old dog by the warm fire?", (1, 0, 1, 1)),
    ("The dog is 3 years old and quite lazy.", (1, 0, 1, 1)),
    ("Here you are:\nThe old dog slept there.", (1, 0, 1, 1)),
    ("", (0, 0, 0, 0)),
    ("The old dog slept by the warm fire, and in the morning it ran out to play.", (0, 1, 1, 1)),
]


@pytest.mark.parametrize(("text", "kept"), SAID, ids=[text[:30] for text, _ in SAID])
def test_each_rule_pays_what_it_says_and_all_of_them_together(text, kept):
    answer = spoken(DOG, text)
    assert tuple(rule(DOG, answer) for rule in RULES) == kept
    assert follows(DOG, answer) == float(all(kept))


def test_a_task_without_a_thing_cannot_be_graded():
    with pytest.raises(TaskError, match="expected the word to use"):
        follows(Task("1", ()), spoken(Task("1", ()), "The old dog slept by the warm fire."))


def test_an_answer_that_another_of_its_group_repeats_is_not_original():
    said = ["The dog ran home.", "the dog, ran home", "A dog slept.", ""]
    assert original(Group("g", tuple(spoken(DOG, text) for text in said))) == [0.0, 0.0, 1.0, 1.0]


def test_splits_share_no_thing_and_the_seed_decides_them():
    parts = splits(3)
    assert len(parts["held_out"]) == NUM_HELD_OUT and not set(parts["held_out"]) & set(parts["train"])
    assert sorted([*parts["held_out"], *parts["train"]]) == sorted(THINGS) and len(set(THINGS)) == len(THINGS)
    assert tasks("train", 3) == tasks("train", 3) != tasks("train", 4)
    assert task("owl", "train").messages[1]["content"] == 'Write one short, simple sentence with the word "owl".'


def test_demonstrations_keep_every_rule_and_show_nothing_held_out():
    train = {t.messages[-1]["content"]: t for t in tasks("train", 1)}
    rows = list(demonstrations(seed=1, count=1000))
    shown = [train[row["prompt"][-1]["content"]] for row in rows]
    assert [row["answer"] for row, t in zip(rows, shown, strict=True) if not follows(t, spoken(t, row["answer"]))] == []
    assert {MIN_WORDS, MAX_WORDS - 1} <= {len(row["answer"].split()) for row in rows}


def test_the_run_files_fit_together():
    grpo, lora, sft = (load(name) for name in ("sentences", "sentences_lora", "sentences_sft"))
    changed = {"run_dir", "learner"}
    assert lora.model_dump(exclude=changed) == grpo.model_dump(exclude=changed)  # the same task, the same reward
    assert lora.learner.lora_rank and lora.learner.lr > grpo.learner.lr
    assert lora.learner.model_copy(update={"lr": grpo.learner.lr, "lora_rank": 0, "lora_alpha": 16.0}) == grpo.learner
    assert [term.rule.name for term in compose(grpo.reward)][0] == grpo.eval.metric == "follows"
    assert len(load_tasks(sft.data).tasks) == sft.steps * sft.tasks_per_step
    assert f"runs/sentences_sft/checkpoints/step-{sft.steps:06d}" in (RECIPES / "sentences_sft.toml").read_text()
