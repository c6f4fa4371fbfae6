"""The policy as the learner sees it: log-probabilities of given tokens, without a [B, T, V] tensor.

Axes: B rows, T tokens, V vocabulary, H hidden size, S scored tokens, R adapter rank. This is the
one file in which the next-token shift happens.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlft.errors import ConfigError

# Models that do more to their logits than project: computing without it would be silently wrong.
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class PolicyModel(nn.Module):
    """A causal language model that answers with log-probabilities of the tokens it was given.

    Args:
        value_head: a critic on the same body; None for a policy alone.
    """

    def __init__(self, lm: Any, value_head: ValueHead | None = None) -> None:
        super().__init__()
        self.lm = lm
        self.value_head = value_head

    def forward(
        self, token_ids: Tensor, mask: Tensor, temperature: float = 1.0, train_body: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probability of each masked token given the tokens before it, the entropy it was drawn from, and its value.

        Args:
            token_ids: [B, T] int64, right-padded: causal attention then needs no mask.
            mask: [B, T] bool, tokens to score; entry 0 of a row has nothing before it and is never scored.
            temperature: divides the logits.
            train_body: let the values' gradient reach the body.

        Returns:
            logprobs, entropy and values (None without a value head), [B, T] float32, 0 off the mask. With an
            empty mask they are zeros that still depend on every parameter, so backward runs everywhere.
        """
        hidden = self.lm.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        place, states = states_before(hidden, mask)
        logprobs, entropy = self.lm.get_output_embeddings()(states, token_ids[place], temperature)
        nothing = torch.zeros(token_ids.shape, dtype=torch.float32, device=hidden.device)
        values = None
        if self.value_head is not None:
            values = nothing.index_put(place, self.value_head(states if train_body else states.detach()))
        return nothing.index_put(place, logprobs), nothing.index_put(place, entropy), values


class ValueHead(nn.Module):
    """From a state to what it is worth. It starts at 0 everywhere, so it starts equal on every rank."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.projection = nn.Linear(width, 1, dtype=dtype)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, states: Tensor) -> Tensor:
        """states [S, H] -> values [S] float32."""
        return self.projection(states).squeeze(-1).float()


def states_before(hidden: Tensor, mask: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Where the masked tokens stand (rows, columns), and the hidden state [S, H] from which each is chosen: the next-token shift."""
    rows, columns = mask.nonzero(as_tuple=True)
    rows, columns = rows[columns > 0], columns[columns > 0]
    return (rows, columns), hidden[rows, columns - 1]


class VocabularyHead(nn.Module):
    """Stands in the place of a model's output projection and shares its weight.

    The whole chunked computation is this module's own forward, so that DeepSpeed gathers a
    partitioned weight once for it and once for its backward, tied to the embedding or not.
    """

    def __init__(self, projection: nn.Linear, chunk: int) -> None:
        super().__init__()
        self.weight = projection.weight
        self.bias = projection.bias
        self.chunk = chunk

    def forward(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """hidden [S, H], targets [S] -> log-probability of each target [S], entropy [S]; both carry gradient."""
        return _TokenLogprobs.apply(hidden, self.weight, self.bias, targets, temperature, self.chunk)  # type: ignore[return-value]


class _TokenLogprobs(torch.autograd.Function):
    """log_softmax(hidden @ weight.T / temperature)[target] in float32, `chunk` tokens at a time.

    Backward computes a chunk's logits again instead of keeping them: the peak is [chunk, V].
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int) -> Any:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature, ctx.chunk = temperature, chunk
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        for part in _chunks(len(targets), chunk):
            distribution = _log_softmax(hidden[part], weight, bias, temperature)
            logprobs[part] = distribution.gather(1, targets[part, None]).squeeze(1)
            entropy[part] = -distribution.exp().mul_(distribution).sum(-1)  # in place: two copies of [chunk, V] at the most
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_entropy: Tensor | None) -> Any:
        hidden, weight, bias, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for part in _chunks(len(targets), ctx.chunk):
            upstream = torch.zeros_like(targets[part, None], dtype=torch.float32) if grad is None else grad[part, None] / ctx.temperature
            log_p = _log_softmax(hidden[part], weight, bias, ctx.temperature)
            if grad_entropy is None:
                grad_logits = log_p.exp_().mul_(-upstream)  # dlog p_target / dz = onehot - p
            else:  # dH / dz = -p (log p + H)
                p = log_p.exp()
                negative_entropy = (p * log_p).sum(-1, keepdim=True)
                grad_logits = p * (-upstream - grad_entropy[part, None] / ctx.temperature * (log_p - negative_entropy))
            grad_logits = grad_logits.scatter_add_(1, targets[part, None], upstream).to(hidden.dtype)
            grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[part])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    return nn.functional.linear(hidden, weight, bias).float().div_(temperature).log_softmax(-1)


def _chunks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def load_policy(
    model: str,
    *,
    dtype: torch.dtype,
    logprob_chunk: int = 4096,
    gradient_checkpointing: bool = False,
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
    lora_targets: Sequence[str] = ("all-linear",),
    value_head: bool = False,
) -> PolicyModel:
    """Load a causal language model from a folder or the Hub, in training mode and without dropout
    (a policy's log-probabilities must not depend on chance).

    With `lora_rank` > 0 only adapters (and the value head) train. Their initial values come from torch's global generator.

    Raises:
        ConfigError: no such model, or one whose logits are more than a projection.
    """
    from transformers import AutoModelForCausalLM

    config, lm = load_pretrained(model, dtype, AutoModelForCausalLM)
    head = lm.get_output_embeddings()
    transforms = [key for key in LOGIT_TRANSFORMS if getattr(config, key, None) not in (None, 1.0)]
    if transforms:
        raise ConfigError(f"model {model!r} changes its logits ({', '.join(transforms)}), which the learner does not compute: use another")
    lm.get_input_embeddings().padding_idx = None  # it would drop the gradient of a real token with the pad id
    if lora_rank:
        add_adapters(lm, lora_rank, lora_alpha, lora_targets)
    if lm.get_output_embeddings() is not head or not isinstance(head, nn.Linear):
        raise ConfigError(f"model {model!r}: the output head must be a plain linear layer; leave it out of learner.lora_targets")
    lm.set_output_embeddings(VocabularyHead(head, logprob_chunk))
    if gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return PolicyModel(lm.train(), ValueHead(config.get_text_config().hidden_size, dtype) if value_head else None)


def load_pretrained(model: str, dtype: torch.dtype, auto_class: Any, **changes: Any) -> tuple[Any, Any]:
    """Configuration, with `changes` and without dropout, and model of one of transformers' auto classes. Raises ConfigError."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False, **changes)
        for key, value in vars(config).items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        return config, auto_class.from_pretrained(model, config=config, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: weights of other shapes
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model {model!r} cannot be loaded: {reason} Give a folder that holds config.json and *.safetensors, "
            f"or the Hub name of a model for {auto_class.__name__} that this machine can reach"
        ) from error


def add_adapters(lm: Any, rank: int, alpha: float, targets: Sequence[str], task_type: str | None = None) -> None:
    """Put LoRA adapters into a model, in place; from then on only they train."""
    from peft import LoraConfig, inject_adapter_in_model

    modules = targets[0] if list(targets) == ["all-linear"] else list(targets)
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, lora_dropout=0.0, bias="none", task_type=task_type)  # type: ignore[arg-type]
    inject_adapter_in_model(lora, lm)


def load_tokenizer(model: str, chat_template: str = "") -> Any:
    """The tokenizer of a folder or Hub name, to be saved with what was trained: with the run's template, where it has one of its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=Path(model).is_dir())
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return tokenizer


def save_model(folder: str | Path, weights: Mapping[str, Tensor], lm: Any, tokenizer: Any) -> None:
    """Write a model and its tokenizer in Hugging Face format; `folder` appears complete or not at all."""
    from huggingface_hub import save_torch_state_dict

    target = Path(folder)
    partial = partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_torch_state_dict(dict(weights), partial, metadata={"format": "pt"})
    save_settings(partial, lm.config, getattr(lm, "generation_config", None), tokenizer)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def partial_of(target: Path) -> Path:
    """Where a model folder is written before it gets its name."""
    return target.with_name(f".{target.name}.partial")


def save_settings(folder: str | Path, config: Any, generation: Any, tokenizer: Any) -> None:
    """Write what a model folder holds beside weights, as it was loaded.

    transformers' own `save_pretrained` refuses what its loading accepts, such as a temperature without do_sample, or
    sampling options in config.json: the files are written without its judgement.
    """
    kept = copy.copy(config)
    vars(kept).pop("transformers_weights", None)  # names a weights file of the folder that was loaded
    kept.to_json_file(Path(folder) / "config.json", use_diff=True)
    if generation is not None:
        generation.to_json_file(Path(folder) / "generation_config.json", use_diff=True, keys_to_pop=["compile_config"])
    tokenizer.save_pretrained(folder)


@contextmanager
def adapters_off(policy: PolicyModel) -> Iterator[None]:
    """Within it a policy with adapters computes as the model it started from."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in policy.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)  # type: ignore[operator]
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # type: ignore[operator]


@dataclass(frozen=True)
class Export:
    """One tensor of the model as Hugging Face names it, and how to read it."""

    name: str
    parameters: tuple[nn.Parameter, ...]  # must be whole (gathered) while `read` runs
    read: Callable[[], Tensor]


def buckets(wanted: Sequence[Export], bucket_bytes: int) -> Iterator[list[Export]]:
    """Tensors in order, cut into groups of at most `bucket_bytes`; one that is larger stands alone."""
    bucket: list[Export] = []
    size = 0
    for export in wanted:
        num_bytes = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in export.parameters)
        if bucket and size + num_bytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(export)
        size += num_bytes
    yield bucket


def exports(policy: Any) -> list[Export]:
    """Every weight of `policy.lm` once, under the base model's names: a tied head left out.

    Adapters are merged (W + scale * B @ A) in float32: who hands the sum on rounds it, once it is checked (`check_merge`).
    """
    found = []
    for name, parameter in policy.lm.named_parameters():
        if ".lora_" in name:
            continue
        if not name.endswith(".base_layer.weight"):
            found.append(Export(name.replace(".base_layer", ""), (parameter,), parameter.detach))
            continue
        layer = policy.lm.get_submodule(name.removesuffix(".base_layer.weight"))
        adapter = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        found.append(Export(name.replace(".base_layer", ""), (parameter, *adapter), _merged(parameter, layer)))
    return found


def _merged(weight: nn.Parameter, layer: Any) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with torch.no_grad():
            return weight.float() + layer.get_delta_weight("default").float()

    return read
