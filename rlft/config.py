"""The run file: TOML in, one validated `RunConfig` out. Unknown keys name the nearest valid one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from rlft.effects import check_effects, check_reached
from rlft.elsewhere import ours
from rlft.errors import ConfigError
from rlft.files import RECIPES as RECIPES
from rlft.files import find_run_file, read_text
from rlft.names import nearest
from rlft.overrides import apply, section_in

Local = Annotated[str, AfterValidator(expanduser)]  # what may be a path: "~" is the user's home
RESOLVED = "# The resolved run file of an rlft run."  # its first line; such a one may be of a run that was made shorter


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where tasks come from."""

    source: Local = ""  # JSONL / Parquet file, Hub name, or "module:function"
    split: str = "train"  # for Hub names
    prompt: str = "prompt"  # field with the prompt: text, or a list of messages
    answer: str = "answer"  # field with the answer; "" for none
    id: str = ""  # field with a unique id; "" numbers the rows
    system: str = ""  # system message put before every prompt
    limit: int | None = Field(default=None, ge=1)  # use at most this many rows
    shuffle: bool = True  # seeded, anew every epoch
    curriculum: Literal["none", "easy_first", "learnable"] = "none"  # an epoch's order by pass rates of the run so far
    min_pass_rate: float = Field(default=0.0, ge=0, le=1)  # tasks with a lower one are passed over
    max_pass_rate: float = Field(default=1.0, ge=0, le=1)  # tasks with a higher one are passed over
    min_attempts: int = Field(default=8, ge=1)  # graded trajectories before a task's pass rate counts
    options: dict[str, Any] = {}  # keyword arguments of a "module:function" source


class PreferencesConfig(Section):
    """Fields of preference pairs, for reward models."""

    chosen: str = "chosen"  # field with the better answer: text, or a list of messages
    rejected: str = "rejected"  # field with the worse one
    margin: str = ""  # field with how much better; "" for none


class RewardPoolConfig(Section):
    """The workers that grade."""

    num_workers: int = Field(default=1, ge=1)  # Ray actors
    cpus: float = Field(default=1, gt=0)  # per worker
    gpus: float = Field(default=0, ge=0)  # per worker, for rewards that are models
    processes: int = Field(default=1, ge=1)  # killable grading processes of each
    timeout_s: float = Field(default=10.0, gt=0)  # limit of one call of a reward that names none
    max_failed: float = Field(default=0.1, ge=0, le=1)  # share of a step that may stay ungraded before the run stops
    env: list[str] = []  # environment variables that rewards get beside those that programs run by: an API key, say
    per_turn: bool = False  # grade every turn, with the conversation up to it, instead of the trajectory's end


class SamplingConfig(Section):
    """How completions are drawn."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)  # 0 = all
    min_p: float = Field(default=0.0, ge=0, le=1)
    stop: list[str] = []
    max_tokens: int = Field(default=1024, ge=1)  # sampled tokens of one turn


class RolloutConfig(SamplingConfig):
    """vLLM rollout workers."""

    num_workers: int = Field(default=1, ge=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, gt=0)  # per worker
    gpus: float = Field(default=0, ge=0)  # per worker
    group_size: int = Field(default=8, ge=1)  # trajectories per task
    max_turns: int = Field(default=1, ge=1)
    max_staleness: int = Field(default=0, ge=0)  # policy versions a trajectory may lag; 0 = on-policy
    drop_no_signal: bool = False  # drop groups with equal rewards and refill (DAPO dynamic sampling)
    max_refills: int = Field(default=4, ge=1)  # rounds of refilling before the step goes on with fewer groups
    max_model_len: int = Field(default=0, ge=0)  # prompt and completion together; 0 = the smaller of 4096 and the model's positions
    max_num_seqs: int = Field(default=256, ge=1)  # sequences decoded at once
    memory: float = Field(default=0.9, gt=0)  # share of GPU memory; on CPU, GiB of KV cache
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPU, float32 on CPU
    seed: int | None = None  # engine seed; None: the run's
    seeded: bool = True  # every answer from a seed of its own, so that a run can be repeated
    entropy_target: float | None = Field(default=None, gt=0)  # nats per token that the temperature is moved toward; None: it stays
    entropy_gain: float = Field(default=0.05, gt=0)  # largest change of log temperature in a step
    min_temperature: float = Field(default=0.5, gt=0)
    max_temperature: float = Field(default=1.5, gt=0)
    timeout_s: float = Field(default=1800.0, gt=0)  # longest wait for a step's rollouts


class LearnerConfig(Section):
    """DeepSpeed learner ranks."""

    num_ranks: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, gt=0)  # per rank
    gpus: float = Field(default=0, ge=0)  # per rank
    zero_stage: Literal[0, 1, 2, 3] | None = None  # unset: by ranks, dtype and memory (learner/memory.py)
    offload_optimizer: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    lr: float | None = Field(default=None, gt=0)  # unset: by the kind of run and LoRA (`learning_rate`)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)  # final over peak learning rate
    weight_decay: float = Field(default=0.0, ge=0)
    betas: list[float] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    grad_clip: float = Field(default=1.0, gt=0)
    num_minibatches: int = Field(default=1, ge=1)  # optimizer steps per pass over a step's batch
    num_epochs: int = Field(default=1, ge=1)  # passes over a step's batch
    # Unset: by the model, the dtype and the memory there is (learner/memory.py).
    max_tokens_per_micro_batch: int | None = Field(default=None, ge=1)  # padded tokens of one forward pass
    logprob_chunk: int | None = Field(default=None, ge=1)  # tokens projected on the vocabulary at once
    gradient_checkpointing: bool = False
    lora_rank: int = Field(default=0, ge=0)  # 0 = full fine-tuning
    lora_alpha: float = Field(default=16.0, gt=0)
    lora_targets: list[str] = ["all-linear"]
    max_non_finite: int = Field(default=3, ge=1)  # skipped steps in a row before the run stops
    timeout_s: float = Field(default=1800.0, gt=0)  # longest wait for a step's update


Kind = Literal["train", "sft", "dpo", "train-rm"]
# Peak learning rates of full fine-tuning, TRL's defaults by kind. Adapters want about ten times as much (Schulman et al.,
# "LoRA Without Regret", 2025), whatever their rank.
LEARNING_RATES: Mapping[Kind, float] = {"train": 1e-6, "sft": 2e-5, "dpo": 1e-6, "train-rm": 1e-5}
LORA_FACTOR = 10


def learning_rate(learner: LearnerConfig, kind: Kind) -> float:
    """The run file's peak learning rate, or where it names none the one of its kind of run."""
    if learner.lr is not None:
        return learner.lr
    return LEARNING_RATES[kind] * (LORA_FACTOR if learner.lora_rank else 1)


class CriticConfig(Section):
    """The model of values, for algorithms that need one. It trains beside the policy, under the same DeepSpeed options."""

    model: Local = ""  # folder or Hub name; "" = the run's model
    shared: bool = False  # a value head on the policy's own body instead of a model
    lr: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=0, ge=0)  # first updates in which only the critic learns
    num_minibatches: int | None = Field(default=None, ge=1)  # optimizer steps per pass over a step's batch; unset = the learner's
    num_epochs: int | None = Field(default=None, ge=1)  # passes over a step's batch; unset = the learner's
    loss_coef: float = Field(default=0.5, gt=0)  # weight of its loss beside the policy's, where they share a body


class EvalConfig(SamplingConfig):
    """Held-out evaluation. Without `data.source` there is none."""

    data: DataConfig = DataConfig(shuffle=False)
    every: int = Field(default=0, ge=0)  # steps; 0 = only before and after
    samples: int = Field(default=4, ge=1)  # per task
    pass_k: list[Annotated[int, Field(ge=1)]] = Field(default=[1], min_length=1)
    greedy: bool = False  # one more pass at temperature 0
    metric: str = ""  # reward part to report; "" = the whole reward
    threshold: float = 1.0  # value from which a sample counts as a pass


class GuardsConfig(Section):
    """When a run raises an alarm. Alarms are printed and stored; those named in `stop` end the run."""

    ungraded: float = Field(default=0.01, ge=0, le=1)  # share of a step without a verdict
    length: float = Field(default=2.0, gt=1)  # factor between the mean length now and at first
    drift_fall: float = Field(default=0.0, ge=0)  # of the held-out score beyond its interval, while a part rises
    mismatch: float = Field(default=0.0, ge=0, le=1)  # mean |p_learner - p_engine| from which the alarm sounds; 0 = never
    no_signal: int = Field(default=3, ge=0)  # steps in a row with nothing to learn from, until the alarm sounds; 0 = never
    stop: list[Literal["ungraded", "length", "drift", "mismatch", "no_signal"]] = []


class TrackingConfig(Section):
    """What a run leaves."""

    save_every: int = Field(default=0, ge=0)  # steps between checkpoints; 0 = only the last
    save_state: bool = True  # keep the optimizer in the newest checkpoint, so that a resumed run goes on as if never interrupted
    rollouts_every: int = Field(default=1, ge=0)  # steps between stored rollouts; 0 = none, of evaluations neither
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "rlft"
    wandb_entity: str = ""  # account or team; "" = wandb's default
    wandb_group: str = ""  # runs that belong together; "" = none
    wandb_tags: list[str] = []
    wandb_name: str = ""  # "" = the name of the run's folder
    tensorboard: bool = False  # event files in the run's folder; needs rlft[tensorboard]

    def stores(self, step: int) -> bool:
        """Whether the trajectories of a step are kept; those of evaluations are as step 0's would be."""
        return self.rollouts_every > 0 and step % self.rollouts_every == 0


class UntilConfig(Section):
    """When a stage ends before its steps are over."""

    metric: str = Field(min_length=1)  # any that metrics.jsonl records, such as "eval/mean"
    above: float | None = None
    below: float | None = None
    for_steps: int = Field(default=1, ge=1)  # records of the metric in a row


class StageConfig(Section):
    """One stage: its length, and what it sets otherwise than the run."""

    name: str = ""
    steps: int = Field(ge=1)
    until: UntilConfig | None = None
    reference: Literal["run", "stage"] = "run"  # frozen reference: the run's model, or the weights that the stage starts from
    first_attempts: float = Field(default=0.0, ge=0, le=1)  # share of tasks that begin with an attempt of the run's model
    data: dict[str, Any] = {}
    env: dict[str, Any] = {}
    reward: dict[str, Any] = {}
    reward_pool: dict[str, Any] = {}
    algorithm: dict[str, Any] = {}
    rollout: dict[str, Any] = {}
    learner: dict[str, Any] = {}
    critic: dict[str, Any] = {}
    eval: dict[str, Any] = {}
    guards: dict[str, Any] = {}


REPLACED = ("env", "reward", "algorithm")  # a stage's table stands instead of the run's; others change key by key
MERGED = ("data", "reward_pool", "rollout", "learner", "critic", "eval", "guards")


class RunConfig(Section):
    """One run. With `stages`, `steps` is the sum of theirs."""

    model: Local  # folder or Hub name
    steps: int = Field(default=100, ge=1)
    tasks_per_step: int = Field(default=32, ge=1)  # tasks rolled out (demonstrations, preference pairs learned) in a step
    seed: int = 0
    run_dir: Local = ""  # "" = runs/<name of the run file>
    chat_template: Local = ""  # file with a Jinja template; "" = the model's own
    data: DataConfig = DataConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    env: dict[str, Any] = {"name": "single_turn"}
    reward: dict[str, Any] = {}
    reward_pool: RewardPoolConfig = RewardPoolConfig()
    algorithm: dict[str, Any] = {"name": "grpo"}
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    critic: CriticConfig = CriticConfig()
    eval: EvalConfig = EvalConfig()
    guards: GuardsConfig = GuardsConfig()
    tracking: TrackingConfig = TrackingConfig()
    stages: list[StageConfig] = []

    def to_toml(self) -> str:
        """The resolved run file, defaults included."""
        return tomli_w.dumps(self.model_dump(exclude_none=True, exclude={"steps"} if self.stages else None))

    def of_stage(self, index: int) -> RunConfig:
        """The run file of one stage: the run's, with what the stage sets. Raises ConfigError."""
        stage, table = self.stages[index], self.model_dump(exclude_none=True, exclude={"stages"})
        changes = stage.model_dump()
        for name in REPLACED:
            table[name] = changes[name] or table[name]
        for name in MERGED:
            _merge(table[name], changes[name])
        try:
            return validate({**table, "steps": stage.steps})
        except ConfigError as error:
            raise ConfigError("\n".join(f"stages[{index}].{line}" for line in str(error).splitlines())) from None


def load(path: str | Path, overrides: Iterable[str] = (), ending: str = "") -> RunConfig:
    """Read a run file and apply overrides such as "rollout.group_size=16".

    Args:
        path: a TOML file, or the name of a recipe that ships with rlft.
        overrides: "dotted.key=value"; the value is TOML, or else taken as a string.
        ending: of the folder's name where the file sets no run_dir.

    Raises:
        ConfigError: missing file, unknown key (with the nearest valid one), wrong type or
            range, or an option that does not apply.
    """
    if isinstance(overrides, str | Mapping):
        raise ConfigError(f"overrides: expected a list of texts such as ['steps=5'], got {overrides!r}")
    file, overrides = find_run_file(path), list(overrides)
    try:
        table = tomllib.loads(text := read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    for override in overrides:
        apply(table, override, RunConfig)
    table["run_dir"] = table.get("run_dir") or f"runs/{file.stem}{ending}"
    config, given = validate(table), {override.partition("=")[0].strip() for override in overrides}
    if not text.startswith(RESOLVED):
        for index in range(max(1, len(config.stages))):
            check_reached(config.of_stage(index) if config.stages else config, config.steps, given)
    return config


def validate(table: Mapping[str, Any]) -> RunConfig:
    """Build a RunConfig from plain tables; every stage is checked as a run file of its own. Raises ConfigError."""
    try:
        config = RunConfig.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None
    if not config.stages:
        check_effects(config)
        return config
    if "steps" in table:
        raise ConfigError(f"steps: every stage has its own, got {config.steps} for the run; remove it")
    for index, stage in enumerate(config.stages):
        own = config.of_stage(index)
        if stage.first_attempts and own.rollout.max_turns == 1:
            raise ConfigError(f"stages[{index}].first_attempts needs rollout.max_turns of 2 or more: the first turn is given")
        if stage.until and (stage.until.above is None) == (stage.until.below is None):
            raise ConfigError(f"stages[{index}].until: expected one of above and below")
    return config.model_copy(update={"steps": sum(stage.steps for stage in config.stages)})


def _explain(error: Mapping[str, Any]) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    if error["type"] == "extra_forbidden":
        *parents, leaf = error["loc"]
        section: Any = RunConfig
        for parent in parents:  # the number of a stage leads to what the list holds, the name of a field to its section
            section = section if isinstance(parent, int) else section_in(section.model_fields[parent].annotation)
        return f"{where}: unknown key{_misplaced(where, leaf) or ours(where, error['input']) or nearest(leaf, section.model_fields)}"
    if error["type"] == "missing":
        return f"{where}: missing; every {'stage' if error['loc'][0] == 'stages' else 'run file'} must set it"
    if error["type"] in ("dict_type", "model_type"):
        return f"{where}: expected a table, got {error['input']!r}{_in_table(where, error['input'])}"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _in_table(where: str, value: Any) -> str:
    """Which key of a table a value was meant for, as the end of a message."""
    key = {"algorithm": "name", "env": "name", "data": "source", "eval": "data.source"}.get(leaf := where.rpartition(".")[2])
    if key and isinstance(value, str):
        return f"; write {where}.{key} = {json.dumps(value)} there, or --set {where}.{key}={value} on the command line"
    if leaf != "reward":
        return f"; set keys of it, such as {whole_key(leaf) or leaf}.KEY = VALUE"
    listed = value if isinstance(value, list) else [value]
    names = [name for name in listed if name and isinstance(name, str)]
    weights = [(name if name.isidentifier() else json.dumps(name), name) for name in names or ["exact_match"]]
    told = ", ".join(f"{key} = 1.0" for key, _ in weights), " ".join(f"--set {where}.{name}=1.0" for _, name in weights)
    return f"; write each reward with its weight, {told[0]} below [{where}], or {told[1]} on the command line"


def _misplaced(where: str, leaf: str) -> str:
    """Where a key belongs that stands in another section, as the end of a message; "" where there is none of that name."""
    if "." in where and whole_key(leaf) == leaf:
        return f": {leaf!r} belongs at the top of the run file, before the first [section]"
    holders = _holders(leaf)
    return f": it belongs in {' or '.join(f'[{name}]' for name in holders)}, as {holders[0]}.{leaf}" if holders else ""


def whole_key(name: str) -> str:
    """A key of the run file by its last part, with its section ("lr": "learner.lr"); "" where there is none."""
    section, _, leaf = name.rpartition(".")
    if not section and leaf in RunConfig.model_fields:
        return leaf
    holders = _holders(leaf)
    return f"{section if section in holders else holders[0]}.{leaf}" if holders and (not section or section in holders) else ""


def _holders(leaf: str) -> list[str]:
    sections = {name: section_in(field.annotation) for name, field in RunConfig.model_fields.items() if name != "stages"}
    return [name for name, section in sections.items() if leaf in getattr(section, "model_fields", ())]


def _merge(table: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Change a section key by key; of sections inside it too, while a plain table replaces the one before."""
    for key, value in changes.items():
        if key == "data" and isinstance(value, dict):  # [eval.data] is the only section inside another
            _merge(table[key], value)
        else:
            table[key] = value
