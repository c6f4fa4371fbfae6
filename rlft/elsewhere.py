"""What keys of other libraries are called here: TRL's, verl's and OpenRLHF's, for messages about keys that are not known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_FORWARD_PASS = "learner.max_tokens_per_micro_batch, in tokens; how many answers a step learns from is tasks_per_step x rollout.group_size"
_STEPS = "steps, counted in updates"
_CLIP = "clip_low and clip_high in [algorithm]"

# By the end of a key: verl's are nested, and written with dots on the command line.
KEYS: Mapping[str, str] = {
    "model.path": "model",
    "optim.lr": "learner.lr",
    "optim.weight_decay": "learner.weight_decay",
    "rollout.temperature": "rollout.temperature",
    "rollout.top_p": "rollout.top_p",
    # The model and the data.
    **dict.fromkeys(("model_name_or_path", "model_name", "pretrain", "base_model"), "model"),
    **dict.fromkeys(("dataset", "dataset_name", "train_files", "train_file", "prompt_data", "input_data"), "data.source"),
    **dict.fromkeys(("val_files", "eval_dataset", "val_file"), "eval.data.source"),
    **dict.fromkeys(("prompt_key", "input_key"), "data.prompt"),
    "label_key": "data.answer",
    **dict.fromkeys(("dataset_split", "prompt_split"), "data.split"),
    "max_samples": "data.limit",
    "chosen_key": "preferences.chosen",
    "rejected_key": "preferences.rejected",
    # Batches and steps.
    **dict.fromkeys(("num_generations", "n_samples_per_prompt", "n", "num_samples_per_prompt"), "rollout.group_size"),
    **dict.fromkeys(("rollout_batch_size", "gen_batch_size", "generation_batch_size"), "tasks_per_step"),
    **dict.fromkeys(("batch_size", "train_batch_size"), "tasks_per_step, tasks whose answers one step learns from"),
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "micro_train_batch_size", "ppo_micro_batch_size_per_gpu"),
        _FORWARD_PASS,
    ),
    **dict.fromkeys(("ppo_max_token_len_per_gpu", "micro_rollout_batch_size"), "learner.max_tokens_per_micro_batch, in tokens"),
    **dict.fromkeys(("ppo_mini_batch_size", "mini_batch_size", "steps_per_generation"), "learner.num_minibatches, updates of one pass"),
    **dict.fromkeys(("num_iterations", "ppo_epochs", "max_epochs"), "learner.num_epochs"),
    **dict.fromkeys(("max_steps", "num_train_epochs", "total_epochs", "epochs", "num_episodes", "total_training_steps"), _STEPS),
    # Sampling.
    **dict.fromkeys(
        ("max_completion_length", "max_response_length", "generate_max_len", "response_length", "max_new_tokens"), "rollout.max_tokens"
    ),
    **dict.fromkeys(
        ("max_prompt_length", "prompt_max_len", "max_length", "max_seq_length", "max_len"),
        "rollout.max_model_len, of prompt and answer together",
    ),
    "use_vllm": "nothing: vLLM always samples",
    **dict.fromkeys(("vllm_gpu_memory_utilization", "gpu_memory_utilization"), "rollout.memory"),
    **dict.fromkeys(("vllm_tensor_parallel_size", "tensor_model_parallel_size"), "rollout.tensor_parallel_size"),
    "vllm_num_engines": "rollout.num_workers",
    # Optimization.
    **dict.fromkeys(("learning_rate", "actor_learning_rate"), "learner.lr"),
    "critic_learning_rate": "critic.lr",
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "lr_warmup_steps_ratio"), "learner.schedule and learner.warmup_steps"),
    **dict.fromkeys(("warmup_ratio", "lr_warmup_steps", "lr_warmup_ratio"), "learner.warmup_steps"),
    **dict.fromkeys(("max_grad_norm", "max_norm"), "learner.grad_clip"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_betas"), "learner.betas"),
    **dict.fromkeys(("bf16", "torch_dtype", "model_dtype"), 'dtype = "bfloat16" in [learner] and [rollout]'),
    "fp16": 'dtype = "bfloat16" or "float32" in [learner] and [rollout]',
    **dict.fromkeys(("lora_r", "use_peft", "peft_config"), "learner.lora_rank"),
    "lora_target_modules": "learner.lora_targets",
    "enable_gradient_checkpointing": "learner.gradient_checkpointing",
    "deepspeed": "learner.zero_stage; rlft writes DeepSpeed's configuration itself",
    **dict.fromkeys(("adam_offload", "optimizer_offload"), "learner.offload_optimizer"),
    **dict.fromkeys(("actor_num_gpus_per_node", "n_gpus_per_node"), "learner.num_ranks with learner.gpus = 1, and rollout.gpus"),
    # The method.
    **dict.fromkeys(("beta", "init_kl_coef", "kl_loss_coef", "use_kl_loss", "kl_ctrl"), "kl_coef in [algorithm]"),
    "kl_loss_type": "kl in [algorithm]",
    **dict.fromkeys(("epsilon", "clip_ratio", "eps_clip", "cliprange", "eps_clip_low_high"), _CLIP),
    **dict.fromkeys(("epsilon_high", "clip_ratio_high"), "clip_high in [algorithm]"),
    "clip_ratio_low": "clip_low in [algorithm]",
    **dict.fromkeys(("adv_estimator", "advantage_estimator"), "name in [algorithm]"),
    "loss_type": 'name in [algorithm] ("dr_grpo", "dapo"), or its option aggregation',
    "loss_agg_mode": "aggregation in [algorithm]",
    **dict.fromkeys(("scale_rewards", "norm_adv_by_std_in_grpo"), "normalize in [algorithm]"),
    **dict.fromkeys(("delta", "clip_ratio_c", "dual_clip"), "dual_clip in [algorithm]"),
    **dict.fromkeys(
        ("vllm_importance_sampling_cap", "vllm_importance_sampling_correction", "rollout_is_threshold", "vllm_is_truncated_threshold"),
        "is_cap in [algorithm]",
    ),
    "mask_truncated_completions": 'overlong = "filter" in [algorithm]',
    "dynamic_filtering": "rollout.drop_no_signal",
    # Rewards.
    **dict.fromkeys(("reward_funcs", "reward_func", "reward_function", "custom_reward_function"), "[reward]: name = weight"),
    "reward_weights": "the weights in [reward]: name = weight",
    "reward_pretrain": 'reward_model in [reward]: reward_model = { model = "folder" }',
    "remote_rm_url": "openrlhf_server or http_reward in [reward]",
    # What a run leaves.
    **dict.fromkeys(("output_dir", "save_path", "ckpt_path", "default_local_dir"), "run_dir"),
    **dict.fromkeys(("save_steps", "save_freq"), "tracking.save_every"),
    **dict.fromkeys(("eval_steps", "test_freq", "eval_strategy"), "eval.every"),
    "logging_steps": "nothing: every step is recorded",
    **dict.fromkeys(("report_to", "use_wandb", "logger"), "tracking.wandb"),
    **dict.fromkeys(("project_name", "wandb_project_name"), "tracking.wandb_project"),
    **dict.fromkeys(("run_name", "experiment_name"), "run_dir"),
}


def ours(key: str, value: Any = None) -> str:
    """What stands here for another library's key, as the end of a message; "" where it is not known.

    Args:
        key: its name, with dots where it is nested.
        value: what it was set to: a table of keys is answered key by key.
    """
    if named := _known(key):
        return f": here it is {named}"
    told = [f"\n  {path}: here it is {named}" for path in _paths(value, key) if (named := _known(path))]
    return "".join(told) and f", of another library:{''.join(told)}"


def _known(key: str) -> str | None:
    parts = key.split(".")
    return KEYS.get(".".join(parts[-2:])) or KEYS.get(parts[-1])


def _paths(value: Any, key: str) -> Iterator[str]:
    """The dotted names of all values in nested tables."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _paths(part, f"{key}.{name}")
    else:
        yield key
