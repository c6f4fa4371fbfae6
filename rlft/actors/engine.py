"""One vLLM engine behind asyncio: continuous batching over every request in flight."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rlft.actors.weights.readback import Verdict, held_by, judge
from rlft.actors.weights.receipt import Receipt
from rlft.config import RolloutConfig, SamplingConfig
from rlft.errors import RlftError
from rlft.types import Completion

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams

CPU_ENV = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # pinned threads next to another busy process are many times slower
    "VLLM_USE_V2_MODEL_RUNNER": "0",
}
# Tokens of a block of the prefix cache on CPU, where vLLM takes 128 and rounds to multiples of 32. Whole blocks
# alone are shared: a prompt shorter than one is computed once for each member of its group.
CPU_KV_BLOCK = 32


class Engine:
    """A vLLM engine in this process.

    All of vLLM runs in one thread. Requests made while a decoding step runs wait for its
    end, so an episode that waits for a reward or a tool never holds up the others.
    """

    def __init__(self, model: str, config: RolloutConfig, eos_ids: Sequence[int], seed: int, transfer: str | None = None) -> None:
        self.version = 0
        self._eos_ids = list(eos_ids)
        self._names = map(str, itertools.count())
        self._incoming: deque[tuple[str, Sequence[int], SamplingParams]] = deque()
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm")
        self._driver: asyncio.Task[None] | None = None
        self._may_step = asyncio.Event()
        self._may_step.set()
        self._seeded = config.seeded
        self._engine = self._thread.submit(_build, model, config, seed, transfer).result()
        self.max_model_len: int = self._engine.model_config.max_model_len

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingConfig, seed: int | None = None) -> Completion:
        """Sample one completion; at most `sampling.max_tokens` and what the context leaves.

        Log-probabilities are those of the distribution that was sampled from (after
        temperature and truncation by top-p, top-k and min-p).
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            stop=sampling.stop or None,
            include_stop_str_in_output=True,
            stop_token_ids=self._eos_ids,
            max_tokens=min(sampling.max_tokens, self.room(prompt_ids)),
            seed=seed if self._seeded else None,
            logprobs=0,
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        version = self.version
        output = (await self._request(prompt_ids, params)).outputs[0]
        if output.finish_reason not in ("stop", "length"):
            raise RlftError(f"vLLM ended a completion with {output.finish_reason!r}, which is neither the policy's doing nor its limit")
        logprobs = [entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids, strict=True)]
        return Completion(list(output.token_ids), logprobs, output.finish_reason, version)

    async def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of every token after the first, at temperature 1: [len - 1]."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        entries = (await self._request(token_ids, params)).prompt_logprobs
        return [entry[token].logprob for entry, token in zip(entries[1:], token_ids[1:], strict=True)]

    def room(self, prompt_ids: Sequence[int]) -> int:
        """Tokens that fit behind a context."""
        return self.max_model_len - len(prompt_ids)

    async def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights (Hugging Face names) and forget every cached prefix."""
        self._may_step.clear()
        await self.call(_reload, self._engine, weights)
        await self.forget_prefixes(version)

    async def forget_prefixes(self, version: int) -> None:
        """Take note of new weights: nothing computed with the old ones is used again. Decoding goes on."""
        await self.call(self._engine.reset_prefix_cache, reset_running_requests=True)
        self.version = version
        self._may_step.set()

    async def verify(self, receipt: Receipt) -> Verdict:
        """Compare what the engine computes with with what the learner sent."""
        holdings = await self.call(self._engine.collective_rpc, held_by, args=(receipt,))
        return judge(receipt, holdings)

    async def transfer(self, method: str, *args: Any) -> None:
        """A step of a weight transfer by vLLM's workers. From its start no token is decoded until `forget_prefixes`."""
        if method == "start_weight_update":
            self._may_step.clear()
        await self.call(self._engine.collective_rpc, method, args=args)

    async def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Run `fn` in the engine's thread, between two decoding steps."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: fn(*args, **kwargs))

    async def _request(self, prompt_ids: Sequence[int], params: SamplingParams) -> Any:
        name = next(self._names)
        future = self._waiting[name] = asyncio.get_running_loop().create_future()
        self._incoming.append((name, prompt_ids, params))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        return await future

    async def _drive(self) -> None:
        """Step the engine while anything waits. A failed step reaches everyone who waits, a refused request its sender."""
        try:
            while self._waiting:
                await self._may_step.wait()
                outputs, refused = await self.call(self._add_and_step)
                for name, error in refused:
                    self._settle(name, error=error)
                for output in outputs:
                    if output.finished:
                        self._settle(output.request_id, output)
        except Exception as error:
            self._incoming.clear()
            lost = list(self._waiting)
            for name in lost:  # before the engine is touched again, which may be dead
                self._settle(name, error=error)
            self._engine.abort_request(lost)

    def _settle(self, name: str, output: Any = None, error: Exception | None = None) -> None:
        future = self._waiting.pop(name)
        if future.done():
            return  # nobody waits any more
        if error:
            future.set_exception(error)
        else:
            future.set_result(output)

    def _add_and_step(self) -> tuple[list[Any], list[tuple[str, Exception]]]:
        """Outputs of one decoding step, and the requests that vLLM refused."""
        from vllm.exceptions import VLLMClientError

        refused: list[tuple[str, Exception]] = []
        while self._incoming:
            name, prompt_ids, params = self._incoming.popleft()
            try:
                self._engine.add_request(name, {"prompt_token_ids": list(prompt_ids)}, params)
            except (ValueError, VLLMClientError) as error:
                refused.append((name, error))
        return self._engine.step() if self._engine.has_unfinished_requests() else [], refused


def _build(model: str, config: RolloutConfig, seed: int, transfer: str | None) -> Any:
    import torch

    on_gpu = config.gpus > 0
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not on_gpu:
        os.environ.update(CPU_ENV, VLLM_CPU_KVCACHE_SPACE=str(max(1, round(config.memory))))
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from vllm import EngineArgs, LLMEngine
    from vllm.config import WeightTransferConfig

    options: dict[str, Any] = {"gpu_memory_utilization": config.memory} if on_gpu else {"block_size": CPU_KV_BLOCK}
    if config.max_model_len:
        options["max_model_len"] = config.max_model_len
    if transfer:
        options["weight_transfer_config"] = WeightTransferConfig(backend=transfer)
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=model,
            dtype=("bfloat16" if on_gpu else "float32") if config.dtype == "auto" else config.dtype,
            tensor_parallel_size=config.tensor_parallel_size,
            distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else "uni",
            max_num_seqs=config.max_num_seqs,
            enforce_eager=not on_gpu,
            enable_prefix_caching=True,
            enable_chunked_prefill=on_gpu,  # on CPU vLLM cannot rewind the seeded generator of a prompt that it cut: the engine dies
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            disable_log_stats=True,
            seed=seed,
            **options,
        )
    )


def _reload(engine: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
    engine.apply_model(_repack_head)


def _repack_head(model: Any) -> None:
    """On CPU vLLM keeps a packed copy of the output head that a reload of tied embeddings
    does not rebuild: the engine would go on sampling from the old head."""
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear"):
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        dispatch_cpu_unquantized_gemm(head, remove_weight=False)
