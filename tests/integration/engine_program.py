"""Run in a process of its own by test_engine.py: one vLLM engine, weights published into it, results as JSON."""

import asyncio
import json
import sys

import torch
from transformers import AutoModelForCausalLM

from rlft.actors import engine as engine_module
from rlft.actors.engine import Engine
from rlft.actors.rollouts import Probe
from rlft.config import RolloutConfig, SamplingConfig
from rlft.errors import PublishError

EOS = 1
PROBE = [[7, 30, 5, 90, 41, 12, 200, 3], [15, 15, 16, 17, 250, 2, 99, 100]]


def learner_logprobs(model):
    with torch.no_grad():
        rows = [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in PROBE]
    return [[row[t, token].item() for t, token in enumerate(ids[1:])] for row, ids in zip(rows, PROBE, strict=True)]


async def engine_logprobs(engine):
    return [await engine.logprobs(ids) for ids in PROBE]


def verdict(engine_side, learner_side):
    try:
        return Probe(PROBE, "float32").compare(engine_side, learner_side, "worker", 1)
    except PublishError as error:
        return str(error)


async def publish(folder, workers, results):
    """New weights with and without the packed head rebuilt, and the old prefix's cache."""
    engine = Engine(folder, RolloutConfig(max_model_len=400, memory=1.0, max_tokens=8, tensor_parallel_size=workers), [EOS], seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    results["start"] = verdict(await engine_logprobs(engine), learner_logprobs(model))
    sampling = SamplingConfig(max_tokens=8)
    prompt = PROBE[0] * 40  # two full blocks of the prefix cache, which hold 128 tokens each on CPU
    before = await engine.generate(prompt, sampling, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    results["stale"] = verdict(await engine_logprobs(engine), learner_logprobs(model))
    repack, engine_module._repack_head = engine_module._repack_head, id  # does nothing to the model
    await engine.load_weights(list(model.named_parameters()), version=1)
    results["not repacked"] = verdict(await engine_logprobs(engine), learner_logprobs(model))
    engine_module._repack_head = repack
    await engine.load_weights(list(model.named_parameters()), version=2)
    results["published"] = verdict(await engine_logprobs(engine), learner_logprobs(model))
    after = await engine.generate(prompt, sampling, 1)
    results["versions"] = [before.policy_version, after.policy_version]
    results["after"] = gap(model, prompt, after)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    await engine.call(engine_module._reload, engine._engine, list(model.named_parameters()))  # the cache stays
    results["old prefix"] = gap(model, prompt, await engine.generate(prompt, sampling, 1))
    await engine.forget_prefixes(version=3)
    return engine, model


def gap(model, prompt, completion):
    """Largest difference of a completion's log-probabilities to those of the model."""
    with torch.no_grad():
        logprobs = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0].log_softmax(-1)
    want = [logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(completion.token_ids)]
    return max(abs(a - b) for a, b in zip(want, completion.logprobs, strict=True))


async def sample(engine, model, results):
    """Sampling options, seeds, finish reasons, and many requests at once."""
    prompt = PROBE[1]
    warm = SamplingConfig(temperature=0.7, max_tokens=6)
    drawn = await asyncio.gather(*(engine.generate(prompt, warm, seed) for seed in (1, 1, 2)))
    results["seeded"] = [list(c.token_ids) for c in drawn]
    ids = torch.tensor([[*prompt, *drawn[0].token_ids]])
    with torch.no_grad():
        logprobs = (model(ids).logits[0] / 0.7).log_softmax(-1)
    results["tempered"] = [list(drawn[0].logprobs), [logprobs[len(prompt) - 1 + i, t].item() for i, t in enumerate(drawn[0].token_ids)]]
    full = [await engine.generate([5] * length, SamplingConfig(max_tokens=64), 3) for length in (396, 399)]
    results["room"] = [[len(c.token_ids), c.finish_reason] for c in full]
    only = SamplingConfig(top_k=1, max_tokens=4)
    results["top_k"] = [list((await engine.generate(prompt, only, seed)).token_ids) for seed in range(3)]
    refused = asyncio.gather(engine.generate([10**6], only), return_exceptions=True)
    beside = await engine.generate(prompt, only, 0)
    results["refused"] = [type((await refused)[0]).__name__, list(beside.token_ids)]
    # A model that always ends: pad and EOS do not matter, position and finish reason do.
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        ending = {name: tensor.clone() for name, tensor in model.named_parameters()}
        key = "lm_head.weight" if "lm_head.weight" in ending else "model.embed_tokens.weight"
        ending[key] = torch.zeros_like(head)
    await engine.load_weights(list(ending.items()), version=4)
    many = await asyncio.gather(*(engine.generate(prompt, SamplingConfig(max_tokens=40), seed) for seed in range(300)))
    ended = [c for c in many if c.finish_reason == "stop"]
    results["ended"] = [len(ended), all(c.token_ids[-1] == EOS and EOS not in c.token_ids[:-1] for c in ended)]
    results["cut"] = all(len(c.token_ids) == 40 and EOS not in c.token_ids[:-1] for c in many if c.finish_reason == "length")


async def main(folder, workers):
    results = {}
    engine, model = await publish(folder, workers, results)
    await sample(engine, model, results)
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
