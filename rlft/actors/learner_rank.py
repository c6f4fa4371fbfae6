"""One DeepSpeed learner rank: token rows in, an exact gradient step on all ranks, metrics and weights out.

Axes: B rows, T tokens. Every public method is collective: all ranks call it
together, in the same order.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlft.actors.capacity import counted, rank_capacity
from rlft.actors.weights.buckets import pack
from rlft.actors.weights.probe import policy_logprobs
from rlft.actors.weights.receipt import Receipt, ReceiptWriter, narrowed
from rlft.actors.weights.transfer import SyncClient, Transfer, connect
from rlft.algorithms.base import Algorithm, Need
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.config import CriticConfig, LearnerConfig, learning_rate
from rlft.errors import ConfigError, NonFiniteError
from rlft.learner.batching import collate, empty_batch, micro_batches
from rlft.learner.critic import explained_variance, load_critic
from rlft.learner.memory import choose_budgets, explain, shape_of, state_bytes, training_of
from rlft.learner.merging import adapted_layers, check_merge
from rlft.learner.meter import Meter
from rlft.learner.policy import Export, adapters_off, buckets, exports, load_policy, load_tokenizer, save_model
from rlft.learner.rows import Row, RowBlock, unpack_rows
from rlft.learner.schedule import lr_factor
from rlft.learner.step import Part, early_needs, late_needs, measure_rollout_gap, num_signals, parts, with_own_old_logprobs, with_setting
from rlft.types import Batch, Setting, Unit

PAD_ID = 0  # any id does: padding is known by its source, and right padding is never attended to


class LearnerRank:
    """Holds this rank's share of the policy and its optimizer. Plain and synchronous: it runs as a Ray actor
    or in any process.

    Args:
        config: the run file's [learner]; budgets and a ZeRO stage that it leaves open are chosen here, alike on all ranks.
        model: folder or Hub name of a causal language model.
        rank, world_size, master_addr, master_port: where the ranks meet.
        steps: updates in the whole run, for the learning rate schedule.
        seed: adapters' initial values, and the order of trajectories in minibatches.
        reference: folder or name of the frozen policy, for algorithms that need `ref_logprobs`; "" for none. Adapters that are
            switched off stand in for the model that they were put on, so with them it must be `model`.
        critic: the run file's [critic], for algorithms that need `values`.
        start_step: updates done before, for the schedules.
        state: folder in which `save` left the optimizers' state; "" starts them anew.
        dump_dir: where the rows of a step that stopped the run are written.
        chat_template: the text of the run's, saved with the model; "": the tokenizer's own.
        longest_row: tokens that a row may have; 0 where nobody knows.

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
        reference: str = "",
        critic: CriticConfig | None = None,
        start_step: int = 0,
        state: str = "",
        dump_dir: str | Path = ".",
        chat_template: str = "",
        longest_row: int = 0,
    ) -> None:
        from rlft.actors import zero

        self._zero = zero
        self._config, self._model, self._rank, self._world_size = config, model, rank, world_size
        self._chat_template = chat_template
        self._temperature, self._dump_dir = 1.0, Path(dump_dir)
        self._critic_config, shared = critic, critic is not None and critic.shared
        self._device = zero.join_ranks(rank, world_size, master_addr, master_port, config.timeout_s)
        dtype = zero.training_dtype(config, self._device)
        bf16 = dtype == torch.bfloat16
        memory = rank_capacity(self._device, config.gpus)
        torch.manual_seed(seed)  # adapters start equal on every rank
        lora = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha, "lora_targets": config.lora_targets}
        policy = load_policy(model, dtype=dtype, **lora, gradient_checkpointing=config.gradient_checkpointing, value_head=shared)
        self._exports, self._adapted = exports(policy), adapted_layers(policy)
        shape = shape_of(policy.lm.config.get_text_config(), *counted(policy))
        training = training_of(config, shape, world_size, bf16, memory.total)
        given, config = config, config.model_copy(update={"zero_stage": training.stage, "lr": learning_rate(config, "train")})
        self._lr, others = learning_rate(config, "train"), 0.0
        self._engine = zero.start_engine(policy.to(self._device), config, bf16, critic.lr if critic and shared else None)
        self._critic: Any = None
        if critic and not shared:
            body = load_critic(critic.model or model, dtype, config.gradient_checkpointing)
            others += state_bytes(shape_of(body.lm.config.get_text_config(), *counted(body)), training)
            self._critic = zero.start_engine(body.to(self._device), config.model_copy(update={"lr": critic.lr}), bf16)
        self._transfer: Any = None
        self._writer = ReceiptWriter(start_step, columns=False)
        self._reference = None
        self._can_refer = bool(reference)
        if reference and not (config.lora_rank and reference == model):
            frozen = load_policy(reference, dtype=dtype)
            others += counted(frozen)[0] * training.width / (world_size if training.stage == 3 else 1)
            self._reference = zero.shard_frozen(frozen.to(self._device), config, bf16)
        self.shape, self.training = shape, replace(training, others=others)
        self.budgets = choose_budgets(shape, self.training, memory.available, self._device.type == "cuda", config)
        for scored in filter(None, (policy, self._reference)):
            scored.lm.get_output_embeddings().chunk = self.budgets.chunk
        self._told = explain(self.budgets, self.training, given, memory.available, longest_row)
        self._config = config.model_copy(update={"max_tokens_per_micro_batch": self.budgets.tokens})
        self._seed, self._updates, self._total_updates = seed, start_step, steps
        self._skipped: Counter[str] = Counter()  # optimizer steps in a row, by what trains
        self._critic_updates = start_step if state else 0  # a critic without its state has not warmed up
        if state:
            self._load_state(Path(state))

    def update(self, algorithm: Algorithm, setting: Setting, *blocks: RowBlock) -> dict[str, float]:
        """Train on this rank's rows and return metrics over all ranks. A step without signal on any rank (`num_signals`)
        moves nothing, where AdamW's momentum would still move the weights; the schedules go on.

        Args:
            setting: what the driver decided for this step.
            blocks: the rows of whole groups; none is fine. Ray resolves references to them.

        Raises:
            NonFiniteError: `max_non_finite` optimizer steps in a row were skipped.
        """
        start = time.perf_counter()
        self._temperature = setting.temperature
        rows = [row for block in blocks for row in unpack_rows(block)]
        batch = collate(rows, PAD_ID, algorithm.tags, algorithm.parts) if rows else empty_batch(PAD_ID, algorithm.parts)
        batch = with_setting(batch, rows, setting)
        meter = Meter(self._device)
        meter.timed("time/learner_collate_s", start)
        start = time.perf_counter()
        batch = self._annotate(batch, algorithm, early_needs(algorithm))
        batch = algorithm.advantages(batch, self._reduce)
        if batch.values is not None and batch.returns is not None:
            explained = explained_variance(batch.returns, batch.values, batch.loss_mask, self._reduce)
            meter.average("critic/explained_variance", explained)
        has_signal = bool(self._reduce(num_signals(batch, algorithm)))
        if has_signal:
            steps = 0 if self._critic is not None and self._warming_up else self._config.num_epochs * self._config.num_minibatches
            batch = self._annotate(batch, algorithm, late_needs(algorithm, steps))
        measure_rollout_gap(batch, meter)
        meter.timed("time/learner_annotate_s", start)
        meter.count("learner/no_signal", 0 if has_signal else 1)
        if has_signal:
            self._train(batch, algorithm, meter, rows)
        self._updates += 1
        self._critic_updates += 1
        return meter.totals()

    def ready(self) -> Mapping[str, str]:
        """Answers once the rank is up, with what is to be told of what it chose (`memory.explain`)."""
        return self._told

    def probe_logprobs(self, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities at temperature 1 of fixed sequences, [len - 1] each: the first token has nothing before it."""
        return policy_logprobs(self._engine.module, token_ids, PAD_ID, self._device)

    def weights(self, bucket_bytes: int = 1 << 28) -> Iterator[tuple[str, Tensor]]:
        """Every weight whole and once, under its Hugging Face name, on this rank's device.

        All ranks iterate to the end. ZeRO-3 gathers one bucket at a time, so a tensor is valid until the
        next one is drawn: copy what you keep. Adapters are merged; a tied head is left out.
        """
        for bucket in self._buckets(bucket_bytes):
            yield from bucket

    def export_weights(self, version: int, dtype: str = "", bucket_bytes: int = 1 << 28) -> list[Any]:
        """Put the weights into Ray's object store, for engines that share no GPU link with this rank.

        Args:
            dtype: that engines hold weights in; "" is the learner's.

        Returns:
            References: on rank 0 to the `Receipt` and to each `Bucket`, on others none.
        """
        import ray

        writer, references = ReceiptWriter(version, columns=True), []
        for bucket in self._buckets(bucket_bytes):
            if self._rank == 0:
                references.append(ray.put(pack(writer.note(narrowed(bucket, dtype)))))
        return [ray.put(writer.receipt()), *references] if self._rank == 0 else []

    def connect(
        self, transfer: Transfer, workers: Sequence[Any], workers_per_engine: int, address: tuple[str, int], dtype: str = ""
    ) -> None:
        """Meet the rollout workers for weight transfer between GPUs."""
        client = SyncClient(workers, workers_per_engine, self._config.timeout_s)
        shapes = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in narrowed(self.weights(), dtype)]

        def weights() -> Iterator[tuple[str, Tensor]]:
            sent = narrowed(self.weights(), dtype)
            return self._writer.note(sent) if self._rank == 0 else sent

        self._transfer = connect(transfer, self._rank, client, weights, shapes, address)

    def send_weights(self, version: int) -> Receipt:
        """Send the weights to every engine that `connect` met. Returns what rank 0 sent."""
        self._writer = ReceiptWriter(version, columns=False)  # engines on GPUs keep no packed copies: they are read whole
        self._transfer.send_weights()
        return self._writer.receipt()

    def _buckets(self, bucket_bytes: int) -> Iterator[Iterator[tuple[str, Tensor]]]:
        """The weights in buckets, each valid until the next is drawn."""
        for bucket in buckets(self._exports, bucket_bytes):
            with self._zero.whole(p for export in bucket for p in export.parameters):
                yield ((export.name, self._read(export)) for export in bucket)

    def _read(self, export: Export) -> Tensor:
        whole, layer = export.read(), self._adapted.get(export.name)
        if layer is not None and self._rank == 0:
            check_merge(layer, whole, export.name)
        return whole.to(export.parameters[0].dtype)

    def free_address(self) -> tuple[str, int]:
        """Where others can meet this rank."""
        return free_address()

    def save(self, folder: str | Path, state: bool = False) -> None:
        """Write weights, config and tokenizer in Hugging Face format; `folder` appears complete or not at all.

        Args:
            state: write the optimizers' state too, to `folder`/state. A rank reads it again with as many ranks and the same ZeRO stage.
        """
        kept = {name: tensor.cpu().clone() for name, tensor in self.weights() if self._rank == 0}
        if self._rank == 0:
            save_model(folder, kept, self._engine.module.lm, load_tokenizer(self._model, self._chat_template))
        torch.distributed.barrier()
        if state:
            for name, engine in self._engines():
                engine.save_checkpoint(str(Path(folder) / "state"), tag=name)
            torch.distributed.barrier()

    def _load_state(self, folder: Path) -> None:
        for name, engine in self._engines():
            found, _ = engine.load_checkpoint(str(folder), tag=name) if (folder / name).is_dir() else (None, None)
            if found is None:
                raise ConfigError(f"{folder}: no optimizer state of the {name}; resume with the learner options that the run had")

    def _engines(self) -> list[tuple[str, Any]]:
        """Everything that trains, by name."""
        return [("policy", self._engine), *([("critic", self._critic)] if self._critic is not None else [])]

    @property
    def _warming_up(self) -> bool:
        """Whether only the critic learns in this update."""
        return self._critic_config is not None and self._critic_updates < self._critic_config.warmup_steps

    def _annotate(self, batch: Batch, algorithm: Algorithm, needs: frozenset[Need]) -> Batch:
        """Fill streams that the algorithm needs of the models: no gradient, weights of the update's start."""
        if "values" in needs:
            if self._critic_config is None:
                raise ConfigError(f"algorithm {algorithm.name!r} needs values: start the learner with a critic")
            batch = replace(batch, values=self._score(batch, self._values))
        if "old_logprobs" in needs:
            batch = replace(batch, old_logprobs=self._score(batch, lambda micro: self._forward(self._engine.module, micro)[0]))
        if "ref_logprobs" in needs:
            if not self._can_refer:
                raise ConfigError(f"algorithm {algorithm.name!r} needs ref_logprobs: start the learner with a reference")
            frozen = self._reference or self._engine.module
            with nullcontext() if self._reference else adapters_off(frozen):
                batch = replace(batch, ref_logprobs=self._score(batch, lambda micro: self._forward(frozen, micro)[0]))
        return batch

    def _forward(self, policy: Any, micro: Batch, train_body: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
        return policy(micro.token_ids, micro.loss_mask, self._temperature, train_body)

    def _values(self, micro: Batch) -> Tensor:
        values = self._critic.module(micro.token_ids, micro.loss_mask) if self._critic else self._forward(self._engine.module, micro)[2]
        assert values is not None
        return values

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

    def _micro_batches(self, batch: Batch, unit: Unit = "row") -> list[Batch]:
        budget = self._config.max_tokens_per_micro_batch
        assert budget is not None
        micros = micro_batches(batch, budget, unit=unit)
        most = torch.tensor(len(micros), device=self._device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return micros if len(micros) == int(most) else micro_batches(batch, budget, at_least=int(most), unit=unit)

    def _train(self, batch: Batch, algorithm: Algorithm, meter: Meter, rows: Sequence[Row]) -> None:
        """The optimizer steps of one update: a critic of its own first, then the policy unless the critic warms up."""
        generator = torch.Generator().manual_seed(self._seed * 2**32 + self._updates)  # so a resumed run draws the same
        critic, config = self._critic_config, self._config
        warming_up = self._warming_up
        if self._critic is not None and critic is not None:
            epochs, number = critic.num_epochs or config.num_epochs, critic.num_minibatches or config.num_minibatches
            for part in parts(batch, epochs, number, generator):
                loss = partial(self._critic_loss, part=part, algorithm=algorithm, meter=meter)
                self._learn(self._critic, part, algorithm, loss, meter, rows, "critic/grad_norm")
        if self._critic is None or not warming_up:
            for part in parts(batch, config.num_epochs, config.num_minibatches, generator):
                loss = partial(self._loss, part=part, algorithm=algorithm, meter=meter, warming_up=warming_up)
                factor = self._learn(self._engine, part, algorithm, loss, meter, rows, "grad/norm", freeze_body=warming_up)
                meter.average("learner/lr", self._lr * factor)

    def _learn(
        self,
        engine: Any,
        part: Part,
        algorithm: Algorithm,
        loss: Callable[[Batch], Tensor],
        meter: Meter,
        rows: Sequence[Row],
        norm_name: str,
        freeze_body: bool = False,
    ) -> float:
        """One optimizer step; returns the share of the peak learning rate it was made at."""
        config = self._config
        factor = lr_factor(self._updates + part.done, self._total_updates, config.schedule, config.warmup_steps, config.min_lr_ratio)
        weights = loss_weights(part.batch.loss_mask, part.batch.traj_ids, algorithm.aggregation, self._reduce, algorithm.max_length)
        weighed = replace(part.batch, loss_weights=weights)
        self._backward(engine, weighed, algorithm, loss, meter)
        self._step(engine, factor, meter, norm_name, freeze_body)
        if self._skipped[norm_name] >= config.max_non_finite:
            where = self._dump(rows, weighed, algorithm)
            raise NonFiniteError(
                f"loss or gradient was not finite in {self._skipped[norm_name]} optimizer steps in a row ({norm_name}); "
                f"the weights are those before them. Rows and losses are in {where}: "
                f"look for extreme rewards or ratios, or lower learner.lr"
            )
        return factor

    def _backward(self, engine: Any, part: Batch, algorithm: Algorithm, loss: Callable[[Batch], Tensor], meter: Meter) -> None:
        """Accumulate the exact gradient of one optimizer step."""
        start = time.perf_counter()
        for micro in self._micro_batches(part, algorithm.unit):
            micro = micro.map(lambda x: x.to(self._device, non_blocking=True))
            engine.backward(self._zero.exact_loss(loss(micro), self._world_size))
        meter.timed("time/learner_backward_s", start)

    def _loss(self, micro: Batch, part: Part, algorithm: Algorithm, meter: Meter, warming_up: bool) -> Tensor:
        """The policy's share of a micro-batch in the step's loss, and the critic's where they share a body."""
        logprobs, entropy, values = self._forward(self._engine, micro, not warming_up)
        filled = with_own_old_logprobs(micro, logprobs, algorithm)
        if filled is not micro:
            measure_rollout_gap(filled, meter)
        micro = filled
        assert micro.loss_weights is not None
        per_token, metrics = algorithm.loss(logprobs, replace(micro, entropy=entropy))
        loss = weighted_sum(per_token, micro.loss_weights)
        meter.add("loss/policy", loss.detach() * part.share)
        meter.add_means({"policy/entropy": entropy, **metrics}, micro.loss_mask)
        if part.done == 0 and micro.old_logprobs is not None:
            deviation = (logprobs.detach() - micro.old_logprobs).exp() - 1
            meter.most("ratio/first_max_dev", torch.where(micro.loss_mask, deviation.abs(), 0.0).max())
        if values is None or algorithm.value_loss is None or self._critic_config is None:
            return loss
        if warming_up:
            loss = 0.0 * weighted_sum(logprobs, micro.loss_weights)
        return loss + self._critic_config.loss_coef * self._value_loss(values, micro, part, algorithm, meter)

    def _critic_loss(self, micro: Batch, part: Part, algorithm: Algorithm, meter: Meter) -> Tensor:
        return self._value_loss(self._critic(micro.token_ids, micro.loss_mask), micro, part, algorithm, meter)

    def _value_loss(self, values: Tensor, micro: Batch, part: Part, algorithm: Algorithm, meter: Meter) -> Tensor:
        assert algorithm.value_loss is not None and micro.loss_weights is not None
        per_token, metrics = algorithm.value_loss(values, micro)
        loss = weighted_sum(per_token, micro.loss_weights)
        meter.add("critic/loss", loss.detach() * part.share)
        for name, metric in metrics.items():
            meter.add_ratio(name, torch.where(micro.loss_mask, metric, 0.0).sum(), micro.loss_mask.sum())
        return loss

    def _step(self, engine: Any, factor: float, meter: Meter, norm_name: str, freeze_body: bool) -> None:
        """Apply the gradient, or skip it on every rank where it is not finite."""
        start = time.perf_counter()
        norm = self._zero.step(engine, factor, self._config.grad_clip, freeze_body)
        self._skipped[norm_name] = 0 if norm is not None else self._skipped[norm_name] + 1
        meter.count("learner/num_skipped", 0 if norm is not None else 1)
        if norm is not None:
            meter.average(norm_name, norm)
        meter.timed("time/learner_optimizer_s", start)

    def _dump(self, rows: Sequence[Row], part: Batch, algorithm: Algorithm) -> Path:
        """Write this rank's rows, and the last minibatch with its loss per token."""
        from safetensors.torch import save_file

        def loss(micro: Batch) -> Tensor:
            logprobs = self._forward(self._engine.module, micro)[0]
            return algorithm.loss(logprobs, with_own_old_logprobs(micro, logprobs, algorithm))[0]

        losses = self._score(part, loss)
        self._dump_dir.mkdir(parents=True, exist_ok=True)
        stem = self._dump_dir / f"non_finite_rank{self._rank}"
        described = [{"group_id": r.group_id, "traj_id": r.traj_id, "num_tokens": len(r), "policy_version": r.policy_version} for r in rows]
        per_row = [{"batch_traj_id": int(i), "loss": repr(float(x))} for i, x in zip(part.traj_ids, losses.sum(-1), strict=True)]
        report = {"update": self._updates, "algorithm": algorithm.name, "rows": described, "minibatch": per_row}
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
