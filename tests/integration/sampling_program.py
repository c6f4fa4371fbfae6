"""Run in a process of its own by test_sampling.py: what a real model's engine reports beside what the learner computes, as JSON."""

import asyncio
import json
import sys

import torch

from rlft.actors.engine import Engine
from rlft.config import RolloutConfig, SamplingConfig
from rlft.learner.policy import load_policy
from rlft.rollout.renderer import load_renderer

QUESTIONS = ("Tell me a short story about a fox.", "Why is the sky blue?", "List three rivers.", "What is 17 plus 25?")
SAMPLINGS = {"whole": {}, "cooler": {"temperature": 0.7}, "truncated": {"top_p": 0.9}}


def learner_logprobs(policy, prompt, ids, temperature):
    token_ids = torch.tensor([[*prompt, *ids]])
    mask = torch.arange(token_ids.shape[1])[None] >= len(prompt)
    with torch.no_grad():
        logprobs, _, _ = policy(token_ids, mask, temperature)
    return logprobs[mask]


async def main(folder):
    renderer = load_renderer(folder)
    engine = Engine(folder, RolloutConfig(max_model_len=256, max_num_seqs=16), sorted(renderer.eos_ids), seed=0)
    policy = load_policy(folder, dtype=torch.float32)
    results = {}
    for name, options in SAMPLINGS.items():
        sampling = SamplingConfig(max_tokens=32, **options)
        prompts = [renderer.render([{"role": "user", "content": question}]) for question in QUESTIONS]
        done = await asyncio.gather(*(engine.generate(prompt, sampling, seed) for seed, prompt in enumerate(prompts)))
        pairs = zip(prompts, done, strict=True)
        gaps = [torch.tensor(d.logprobs) - learner_logprobs(policy, prompt, d.token_ids, sampling.temperature) for prompt, d in pairs]
        gap = torch.cat(gaps)
        results[name] = {"mean": gap.mean().item(), "largest": gap.abs().max().item(), "tokens": len(gap)}
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
