"""rlft's engine beside vLLM alone on the same prompts: tokens per second and per CPU second, side by side in one run, and memory.

    .venv/bin/python benchmarks/rollout/run.py MODEL [threads...]      # default 1 2; writes results.md beside this file

Sides are processes of their own, all of which are started first and then take turns. Every request gives the log-probabilities
of its tokens, and a request of a seed gives the same tokens on every side that has seeds, which is checked.
"""

import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path

HERE = Path(__file__).parent
GROUP = 8
ROUNDS = 3
MAX_TOKENS = (24, 64)
QUESTIONS = (
    "Write the beginning of a long story about a boat that is lost at sea, and leave nothing out.",
    "Explain to a child of ten years how a steam engine works, step by step, with an example.",
    "List the things that one has to think of before a journey through the mountains in winter.",
    "Tell me in your own words, and at length, why people keep cats and dogs in their houses.",
)
SIDES = {
    "rlft": "rlft's engine with its default settings, a seed for every answer",
    "vllm seeded": "LLM.generate with rlft's options, a seed for every answer",
    "vllm": "LLM.generate with rlft's options, n = 8, no seeds",
    "vllm as installed": "LLM.generate with vLLM's own KV blocks (128 tokens), n = 8, no seeds",
}
PROCESS = {"vllm": "vllm seeded"}  # sides that share the process of another
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 4096,
    "enforce_eager": True,
    "generation_config": "vllm",
    "logprobs_mode": "processed_logprobs",
}
HEAD = (
    "| threads | new tokens | side | tokens/s | rlft over it | tokens/CPU s | rlft over it | peak GB |\n|---|---|---|---|---|---|---|---|"
)


def prompts(model: str) -> list[list[int]]:
    from rlft.rollout.renderer import load_renderer

    renderer = load_renderer(model)
    return [renderer.render([{"role": "user", "content": question}]) for question in QUESTIONS]


def rlft_side(model: str):
    """A function (side, max_tokens, round) -> token ids of every answer, on rlft's engine as a run starts it."""
    from rlft.actors.engine import Engine
    from rlft.config import RolloutConfig, SamplingConfig
    from rlft.rollout.renderer import load_renderer

    eos = sorted(load_renderer(model).eos_ids)
    engine, given = Engine(model, RolloutConfig(max_model_len=OPTIONS["max_model_len"]), eos, seed=0), prompts(model)
    loop = asyncio.new_event_loop()

    async def play(max_tokens: int, number: int) -> list[list[int]]:
        sampling = SamplingConfig(max_tokens=max_tokens)
        asked = [engine.generate(ids, sampling, seed_of(number, i, j)) for i, ids in enumerate(given) for j in range(GROUP)]
        return [list(done.token_ids) for done in await asyncio.gather(*asked)]

    async def warm_up() -> None:  # as a rollout worker does
        few = SamplingConfig(max_tokens=2)
        await asyncio.gather(*(engine.generate(eos[:1], few, seed) for seed in range(RolloutConfig().max_num_seqs)))

    loop.run_until_complete(warm_up())

    def answer(side: str, max_tokens: int, number: int) -> list[list[int]]:
        loop.run_until_complete(engine.call(engine._engine.reset_prefix_cache))
        return loop.run_until_complete(play(max_tokens, number))

    return answer


def vllm_side(model: str, side: str):
    """The same on vLLM's own class for offline use, in this process."""
    from rlft.actors.engine import CPU_ENV, CPU_KV_BLOCK
    from rlft.rollout.renderer import load_renderer

    os.environ.update(CPU_ENV, VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING")
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from vllm import LLM, SamplingParams

    own = {} if side == "vllm as installed" else {"block_size": CPU_KV_BLOCK, "enable_chunked_prefill": False}
    llm = LLM(model, **OPTIONS, **own)
    stop = sorted(load_renderer(model).eos_ids)
    given = [{"prompt_token_ids": ids} for ids in prompts(model)]

    def answer(side: str, max_tokens: int, number: int) -> list[list[int]]:
        llm.reset_prefix_cache()
        common = {"max_tokens": max_tokens, "logprobs": 0, "stop_token_ids": stop, "detokenize": False}
        if side == "vllm seeded":
            asked = [prompt for prompt in given for _ in range(GROUP)]
            params = [SamplingParams(seed=seed_of(number, i, j), **common) for i in range(len(given)) for j in range(GROUP)]
        else:
            asked, params = given, SamplingParams(n=GROUP, **common)
        done = llm.generate(asked, params, use_tqdm=False)
        return [list(output.token_ids) for request in done for output in request.outputs]

    answer(side, 2, 0)
    return answer


def seed_of(number: int, prompt: int, member: int) -> int:
    return zlib.crc32(f"{number}/{prompt}/{member}".encode())


def work(model: str, side: str) -> None:
    """Answer lines of (side, max_tokens, round) with figures, until there are no more."""
    answer = rlft_side(model) if side == "rlft" else vllm_side(model, side)
    print("READY", flush=True)
    for line in sys.stdin:
        asked, max_tokens, number = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = answer(asked, max_tokens, number)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        told = {"tokens": sum(map(len, tokens)), "wall": wall, "cpu": cpu, "crc": zlib.crc32(json.dumps(tokens).encode()), "peak": peak}
        print("ANSWER " + json.dumps(told), flush=True)


def start(model: str, side: str, threads: int) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, model, "--work", side]
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    read(process, "READY")
    return process


def read(process: subprocess.Popen, mark: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(mark):
            return line.removeprefix(mark)
    raise RuntimeError(f"a side ended with {process.wait()} before it said {mark}")


def measure(model: str, threads: int) -> list[str]:
    """Rows of the table."""
    running = {side: start(model, side, threads) for side in SIDES if side not in PROCESS}
    figures: dict[tuple[str, int], list[dict[str, float]]] = {}
    for number in range(ROUNDS + 1):  # the first one is warm-up
        for max_tokens in MAX_TOKENS:
            for side in SIDES:
                process = running[PROCESS.get(side, side)]
                assert process.stdin is not None
                process.stdin.write(json.dumps([side, max_tokens, number]) + "\n")
                process.stdin.flush()
                found = json.loads(read(process, "ANSWER "))
                if number:
                    figures.setdefault((side, max_tokens), []).append(found)
    for process in running.values():
        process.communicate()
    rows = []
    for max_tokens in MAX_TOKENS:
        ours = figures["rlft", max_tokens]
        assert [f["crc"] for f in ours] == [f["crc"] for f in figures["vllm seeded", max_tokens]], "the same seeds gave other tokens"
        base = {unit: rate(ours, unit) for unit in ("wall", "cpu")}
        for side in SIDES:
            found = figures[side, max_tokens]
            rates = {unit: rate(found, unit) for unit in ("wall", "cpu")}
            cells = [f"{threads}", f"{max_tokens}", side, *(f"{rates[u]:.0f} | {base[u] / rates[u]:.2f}" for u in ("wall", "cpu"))]
            rows.append("| " + " | ".join([*cells, f"{max(f['peak'] for f in found) / 1e9:.2f}"]) + " |")
    return rows


def rate(found: list[dict[str, float]], unit: str) -> float:
    """Tokens per second, the median of the rounds."""
    return statistics.median(f["tokens"] / f[unit] for f in found)


def main() -> None:
    model, *rest = sys.argv[1:]
    if rest[:1] == ["--work"]:
        work(model, rest[1])
        return
    rows = [row for threads in [int(n) for n in rest] or [1, 2] for row in measure(model, threads)]
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    legend = "\n".join(f"- **{side}**: {what}." for side, what in SIDES.items())
    about = (
        f"{Path(model).name}, float32, {len(QUESTIONS)} prompts x {GROUP} answers, log-probabilities of every token, median of {ROUNDS} "
        "rounds in which the sides took turns; the prefix cache is emptied before each. rlft and `vllm seeded` gave the same tokens in "
        "every round. Peak: largest resident set of the process, rlft's after 256 sequences at once, as its warm-up has them. "
        "Other programs shared the machine: the figures per CPU second, over all threads, are the steadier ones."
    )
    text = "\n\n".join(["# Rollouts beside vLLM alone", about, machine, legend, "\n".join([HEAD, *rows])])
    (HERE / "results.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
