"""Run in a process of its own by test_judge_engine.py: judges on a real vLLM engine, results as JSON."""

import asyncio
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlft.actors.judge_engine import JudgeEngine
from rlft.config import RolloutConfig, SamplingConfig
from rlft.errors import RewardError
from rlft.rewards.grader import spoken
from rlft.rewards.learned.judge import Judge
from rlft.types import Group, Task

ASKED = [{"role": "user", "content": "Which? A or B?"}]


def greedy(folder, length):
    """What transformers writes after the same prompt."""
    tokenizer, lm = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(ASKED[0]["content"])["input_ids"]
    with torch.no_grad():
        for _ in range(length):
            ids = [*ids, int(lm(torch.tensor([ids])).logits[0, -1].argmax())]
    return tokenizer.decode(ids[-length:], skip_special_tokens=True)


async def main(folder):
    engine = JudgeEngine(folder, RolloutConfig(max_model_len=900, memory=1.0, max_num_seqs=64))
    await engine.warm_up()
    reply = await engine.complete(ASKED, 0.0, 6, 0)
    results = {"greedy": [reply.text, greedy(folder, 6)], "reply": [reply.finished, reply.tokens]}
    drawn = [(await engine.complete(ASKED, 1.0, 12, seed)).text for seed in (1, 1, 2)]
    results["seeded"] = [drawn[0] == drawn[1], drawn[0] == drawn[2]]
    try:
        await engine.complete([{"role": "user", "content": "x" * 900}], 0.0, 4, 0)
    except RewardError as error:
        results["too long"] = str(error)
    # More prompt tokens than one decoding step takes, every request with a seed.
    prompts = [[2 + (i + j) % 250 for j in range(800)] for i in range(24)]
    many = await asyncio.gather(*(engine.engine.generate(prompt, SamplingConfig(max_tokens=2), i) for i, prompt in enumerate(prompts)))
    results["many"] = [len(done.token_ids) for done in many]
    judge = Judge(model=folder, max_tokens=4, abstained=0.25, reference=False)
    judge.connect({name: engine.complete for name in judge.engines})
    await judge.start()
    task = Task("1", ({"role": "user", "content": "?"},))
    results["judged"] = [value for value, _ in await judge.score(Group("g", (spoken(task, "x"), spoken(task, "y"))))]
    await judge.close()
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
