"""One DeepSpeed learner rank: token rows in, an exact gradient step on all ranks, metrics and weights out.

Axes: B rows, T tokens. Every public method is collective: all ranks call it
together, in the same order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlft.actors.buckets import pack
from rlft.actors.meter import Meter
from rlft.actors.policy import adapters_off, buckets, exports, load_policy, save_model
from rlft.actors.weight_transfer import SyncClient, Transfer, connect
from rlft.algorithms.base import Algorithm
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.batching import collate, empty_batch, micro_batches, minibatches
from rlft.config import LearnerConfig
from rlft.errors import ConfigError, NonFiniteError
from rlft.rows import Row, RowBlock, unpack_rows
from rlft.schedule import lr_factor
from rlft.types import Batch, Source

PAD_ID = 0  # any id does: padding is known by its source, and right padding is never attended to


class LearnerRank:
    """Holds this rank's share of the policy and its optimizer. Plain and synchronous: it runs as a Ray actor
    or in any process.

    Args:
        config: the run file's [learner].
        model: folder or Hub name of a causal language model.
        rank, world_size, master_addr, master_port: where the ranks meet.
        steps: updates in the whole run, for the learning rate schedule.
        seed: adapters' initial values, and the order of trajectories in minibatches.
        temperature: of the sampling that made the rows; log-probabilities are taken at it. Above 0.
        reference: keep the initial policy frozen, for algorithms that need `ref_logprobs`.
        dump_dir: where the rows of a step that stopped the run are written.

    Raises:
        ConfigError: a missing model, or options that do not go together.
    """

    def __init__(
        self,
        config: LearnerConfig,
        model: str,
        *,
        rank: int = 0,
        world_size: int = 1,
        master_addr: str = "127.0.0.1",
        master_port: int = 29500,
        steps: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        reference: bool = False,
        dump_dir: str | Path = ".",
    ) -> None:
        from rlft.actors import zero

        if temperature <= 0:
            raise ConfigError(f"rollout.temperature: training needs a temperature above 0, got {temperature}")
        self._zero = zero
        self._config, self._model, self._rank, self._world_size = config, model, rank, world_size
        self._temperature, self._dump_dir = temperature, Path(dump_dir)
        self._device = zero.join_ranks(rank, world_size, master_addr, master_port, config.timeout_s)
        dtype = zero.training_dtype(config, self._device)
        bf16 = dtype == torch.bfloat16
        torch.manual_seed(seed)  # adapters start equal on every rank
        load = {"dtype": dtype, "logprob_chunk": config.logprob_chunk}
        lora = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha, "lora_targets": config.lora_targets}
        policy = load_policy(model, **load, **lora, gradient_checkpointing=config.gradient_checkpointing)
        self._exports = exports(policy)
        self._engine = zero.start_engine(policy.to(self._device), config, bf16)
        self._transfer: Any = None
        self._reference = None
        if reference and not config.lora_rank:
            self._reference = zero.shard_frozen(load_policy(model, **load).to(self._device), config, bf16)
        self._can_refer = reference
        self._generator = torch.Generator().manual_seed(seed)
        self._per_update = config.num_epochs * config.num_minibatches
        self._total_steps = steps * self._per_update
        self._optimizer_steps = 0  # attempted, the skipped ones included
        self._skipped_in_a_row = 0

    def update(self, algorithm: Algorithm, *blocks: RowBlock) -> dict[str, float]:
        """Train on this rank's rows and return metrics over all ranks.

        Args:
            blocks: the rows of whole groups; none is fine. Ray resolves references to them.

        Raises:
            NonFiniteError: `max_non_finite` optimizer steps in a row were skipped.
        """
        start = time.perf_counter()
        rows = [row for block in blocks for row in unpack_rows(block)]
        batch = collate(rows, PAD_ID) if rows else empty_batch(PAD_ID)
        meter = Meter(self._device)
        meter.timed("time/learner_collate_s", start)
        start = time.perf_counter()
        batch = self._annotate(batch, algorithm)
        _measure_rollout_gap(batch, meter)
        batch = algorithm.advantages(batch, self._reduce)
        meter.timed("time/learner_annotate_s", start)
        lr = 0.0
        for _ in range(self._config.num_epochs):
            for part in minibatches(batch, self._config.num_minibatches, self._generator):
                start = time.perf_counter()
                self._backward(part, algorithm, meter)
                meter.timed("time/learner_backward_s", start)
                start = time.perf_counter()
                lr = self._step(meter, rows, part, algorithm)
                meter.timed("time/learner_optimizer_s", start)
        return meter.totals() | {"learner/lr": lr}

    def ready(self) -> None:
        """Answers once the rank is up."""

    def probe_logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities at temperature 1 of fixed sequences, [len - 1] each: the first token has nothing before it."""
        lengths = torch.tensor([len(ids) for ids in token_ids])
        padded = torch.full((len(token_ids), int(lengths.max())), PAD_ID)
        for row, ids in zip(padded, token_ids, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        real = torch.arange(padded.shape[1]) < lengths[:, None]
        with torch.no_grad():
            logprobs = self._engine.module(padded.to(self._device), real.to(self._device), 1.0)[0].tolist()
        return [row[1:length] for row, length in zip(logprobs, lengths.tolist(), strict=True)]

    def weights(self, bucket_bytes: int = 1 << 28) -> Iterator[tuple[str, Tensor]]:
        """Every weight whole and once, under its Hugging Face name, on this rank's device.

        All ranks iterate to the end. ZeRO-3 gathers one bucket at a time, so a tensor is valid until the
        next one is drawn: copy what you keep. Adapters are merged; a tied head is left out.
        """
        for bucket in buckets(self._exports, bucket_bytes):
            with self._zero.whole(p for export in bucket for p in export.parameters):
                for export in bucket:
                    yield export.name, export.read()

    def export_weights(self, probe: Sequence[Sequence[int]], bucket_bytes: int = 1 << 28) -> tuple[list[Any], list[list[float]]]:
        """Put the weights into Ray's object store, for engines that share no GPU link with this rank.

        Returns:
            On rank 0 one reference per `Bucket`, and on every rank the probe's log-probabilities under these weights (`probe_logprobs`).
        """
        import ray

        references = []
        for bucket in buckets(self._exports, bucket_bytes):
            with self._zero.whole(p for export in bucket for p in export.parameters):
                if self._rank == 0:
                    references.append(ray.put(pack((export.name, export.read()) for export in bucket)))
        return references, self.probe_logprobs(probe)

    def connect(self, transfer: Transfer, workers: Sequence[Any], workers_per_engine: int, address: tuple[str, int]) -> None:
        """Meet the rollout workers for weight transfer between GPUs."""
        client = SyncClient(workers, workers_per_engine, self._config.timeout_s)
        shapes = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights()]
        self._transfer = connect(transfer, self._rank, client, self.weights, shapes, address)

    def free_address(self) -> tuple[str, int]:
        """Where others can meet this rank."""
        return free_address()

    def send_weights(self) -> None:
        """Send the weights to every engine that `connect` met."""
        self._transfer.send_weights()

    def save(self, folder: str | Path) -> None:
        """Write weights, config and tokenizer in Hugging Face format; `folder` appears complete or not at all."""
        from transformers import AutoTokenizer

        kept = {name: tensor.cpu().clone() for name, tensor in self.weights() if self._rank == 0}
        if self._rank == 0:
            save_model(folder, kept, self._engine.module.lm, AutoTokenizer.from_pretrained(self._model, trust_remote_code=False))
        torch.distributed.barrier()

    def _annotate(self, batch: Batch, algorithm: Algorithm) -> Batch:
        """Fill the log-probabilities that the algorithm needs: no gradient, weights of the update's start."""
        if "values" in algorithm.needs:
            raise ConfigError(f"algorithm {algorithm.name!r} needs values, and this learner holds no critic")
        if "old_logprobs" in algorithm.needs:
            batch = replace(batch, old_logprobs=self._score(batch, lambda micro: self._logprobs(self._engine.module, micro)[0]))
        if "ref_logprobs" in algorithm.needs:
            if not self._can_refer:
                raise ConfigError(f"algorithm {algorithm.name!r} needs ref_logprobs: start the learner with reference=True")
            frozen = self._reference or self._engine.module
            with nullcontext() if self._reference else adapters_off(frozen):
                batch = replace(batch, ref_logprobs=self._score(batch, lambda micro: self._logprobs(frozen, micro)[0]))
        return batch

    def _logprobs(self, policy: Any, micro: Batch) -> tuple[Tensor, Tensor]:
        return policy(micro.token_ids, micro.loss_mask, self._temperature)

    @torch.no_grad()
    def _score(self, batch: Batch, fn: Callable[[Batch], Tensor]) -> Tensor:
        """[B, T] from a function of micro-batches [b, t] -> [b, t]."""
        scores = torch.zeros(batch.token_ids.shape)
        numbered = replace(batch, traj_ids=torch.arange(len(batch.traj_ids)))  # micro-batches come in another order
        for micro in self._micro_batches(numbered):
            result = fn(micro.map(lambda x: x.to(self._device))).cpu()
            if micro.loss_mask.any():
                scores[micro.traj_ids, : result.shape[1]] = result
        return scores

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        budget = self._config.max_tokens_per_micro_batch
        micros = micro_batches(batch, budget)
        most = torch.tensor(len(micros), device=self._device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return micros if len(micros) == int(most) else micro_batches(batch, budget, at_least=int(most))

    def _backward(self, part: Batch, algorithm: Algorithm, meter: Meter) -> None:
        """Accumulate the exact gradient of one optimizer step."""
        weights = loss_weights(part.loss_mask, part.traj_ids, algorithm.aggregation, self._reduce, algorithm.max_length)
        first = self._optimizer_steps % self._per_update == 0
        for micro in self._micro_batches(replace(part, loss_weights=weights)):
            micro = micro.map(lambda x: x.to(self._device, non_blocking=True))
            logprobs, entropy = self._logprobs(self._engine, micro)
            per_token, metrics = algorithm.loss(logprobs, micro)
            assert micro.loss_weights is not None
            loss = weighted_sum(per_token, micro.loss_weights)
            self._engine.backward(self._zero.exact_loss(loss, self._world_size))
            meter.add("loss/policy", loss.detach() / self._per_update)
            meter.add_means({"policy/entropy": entropy, **metrics}, micro.loss_mask)
            if first and micro.old_logprobs is not None:
                deviation = (logprobs.detach() - micro.old_logprobs).exp() - 1
                meter.most("ratio/first_max_dev", torch.where(micro.loss_mask, deviation.abs(), 0.0).max())

    def _step(self, meter: Meter, rows: Sequence[Row], part: Batch, algorithm: Algorithm) -> float:
        """Apply the gradient, or skip it on every rank where it is not finite. Returns the learning rate."""
        done = self._optimizer_steps / self._per_update
        config = self._config
        lr = config.lr * lr_factor(done, self._total_steps / self._per_update, config.schedule, config.warmup_steps, config.min_lr_ratio)
        norm = self._zero.step(self._engine, lr)
        self._optimizer_steps += 1
        self._skipped_in_a_row = 0 if norm is not None else self._skipped_in_a_row + 1
        meter.count("learner/num_skipped", 0 if norm is not None else 1)
        if norm is not None:
            meter.average("grad/norm", norm)
        if self._skipped_in_a_row >= config.max_non_finite:
            where = self._dump(rows, part, algorithm)
            raise NonFiniteError(
                f"loss or gradient was not finite in {self._skipped_in_a_row} optimizer steps in a row; the weights are those before them. "
                f"Rows and losses are in {where}: look for extreme rewards or ratios, or lower learner.lr"
            )
        return lr

    def _dump(self, rows: Sequence[Row], part: Batch, algorithm: Algorithm) -> Path:
        """Write this rank's rows, and the last minibatch with its loss per token."""
        from safetensors.torch import save_file

        def loss(micro: Batch) -> Tensor:
            return algorithm.loss(self._logprobs(self._engine.module, micro)[0], micro)[0]

        losses = self._score(part, loss)
        self._dump_dir.mkdir(parents=True, exist_ok=True)
        stem = self._dump_dir / f"non_finite_rank{self._rank}"
        described = [{"group_id": r.group_id, "traj_id": r.traj_id, "num_tokens": len(r), "policy_version": r.policy_version} for r in rows]
        per_row = [{"batch_traj_id": int(i), "loss": repr(float(x))} for i, x in zip(part.traj_ids, losses.sum(-1), strict=True)]
        report = {"optimizer_step": self._optimizer_steps, "algorithm": algorithm.name, "rows": described, "minibatch": per_row}
        stem.with_suffix(".json").write_text(json.dumps(report, indent=1))
        streams = {name: x.contiguous() for name in Batch.__dataclass_fields__ if (x := getattr(part, name)) is not None}
        save_file({**streams, "loss": losses}, stem.with_suffix(".safetensors"))
        return stem.with_suffix(".json")

    def _reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks; the argument is left as it is."""
        total = x.detach().clone().to(self._device)
        torch.distributed.all_reduce(total)
        return total.to(x.device)


def free_address() -> tuple[str, int]:
    """Address of this node and a port that is free on it."""
    import socket

    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def _measure_rollout_gap(batch: Batch, meter: Meter) -> None:
    """How far the engine's log-probabilities are from the learner's, on tokens that the policy sampled."""
    if batch.old_logprobs is None:
        return
    sampled = batch.loss_mask & (batch.sources == Source.POLICY)
    gap = torch.where(sampled, batch.rollout_logprobs - batch.old_logprobs, 0.0)
    meter.add_ratio("kl/rollout", gap.sum(), sampled.sum())
    meter.most("kl/rollout_abs_max", gap.abs().max())
