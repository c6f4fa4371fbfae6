"""The nouns of rlft: what a rollout produces and what a learner consumes.

Axes: N tasks a step, G trajectories a task, M trajectories, B rows (one trained token
sequence each, B >= M), T tokens, K turns, P prompt tokens, C sampled tokens.
Log-probabilities are in nats, times in seconds. Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Message = dict[str, Any]
FinishReason = Literal["stop", "length", "abort"]
Status = Literal["completed", "truncated", "failed"]
Unit = Literal["row", "trajectory", "pair"]  # rows that a loss has to see together


class Source(IntEnum):
    """Who wrote a token."""

    PROMPT = 0
    POLICY = 1
    ENVIRONMENT = 2
    HINT = 3  # injected into the policy's own text
    DEMONSTRATION = 4  # a supervised target
    PADDING = 5


@dataclass(frozen=True, slots=True)
class Task:
    """One problem. `answer` is for graders only and is never rendered into a prompt.

    `variants` are other ways to put the same problem (the two orders of a comparison): the
    trajectories of its group play the task and its variants in turn, and share one baseline.
    `first_attempt` is an answer that was given before: an episode starts with it as its first turn,
    and its tokens are never trained on.
    """

    id: str
    messages: tuple[Message, ...]
    answer: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Task, ...] = ()
    first_attempt: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine sampled, exactly: these ids are trained on, never re-tokenised."""

    token_ids: Sequence[int]  # [C], the EOS included when it was sampled
    logprobs: Sequence[float]  # [C], under the distribution that was sampled from
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One call of the policy: the exact context it saw and what it wrote."""

    prompt_ids: Sequence[int]  # [P]
    completion: Completion
    action: Message
    sources: Sequence[int]  # [P + C], values of Source
    reward: float = 0.0  # for this turn, by the environment and, with reward_pool.per_turn, by the reward function
    tag: str = ""  # "attempt", "reflection", "retry", ...
    observed: tuple[Message, ...] = ()  # what the environment said since the turn before
    parts: Mapping[str, float] = field(default_factory=dict)  # of the verdict on this turn: the reward function's, or an environment's
    opened: str = ""  # mark of the thought that the prompt has left open, "<think>" of many chat templates: the policy wrote on inside it


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode of one task."""

    task: Task
    index: int  # 0..G-1 within its group
    turns: tuple[Turn, ...]
    status: Status
    group_id: str = ""
    reward: float = 0.0  # given by the reward function for the whole trajectory
    parts: Mapping[str, float] = field(default_factory=dict)
    feedback: str = ""  # text a reward or environment returns
    error: str = ""  # why the status is "failed", or why a number stands in for a verdict
    ungraded: Mapping[str, str] = field(default_factory=dict)  # reward -> what kept it from a verdict: "timeout", "raised", ...

    @property
    def conversation(self) -> tuple[Message, ...]:
        """Everything that was said, in order, as messages."""
        return tuple(message for turn in self.turns for message in (*turn.observed, turn.action))

    @property
    def text(self) -> str:
        """The last thing the policy said; "" for a message that only calls tools."""
        return self.turns[-1].action.get("content") or "" if self.turns else ""

    @property
    def outcome(self) -> float:
        """Everything the trajectory earned: its own reward plus its turns'."""
        return self.reward + sum(turn.reward for turn in self.turns)

    @property
    def num_sampled(self) -> int:
        """Tokens the policy wrote, over all turns."""
        return sum(len(turn.completion.token_ids) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Group:
    """The unit of baselines. Usually the trajectories of one task; not always."""

    group_id: str
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True)
class TurnInfo:
    """What the driver knows of a turn."""

    tag: str
    reward: float
    parts: Mapping[str, float]
    num_sampled: int
    truncated: bool  # it ran into a length limit
    edit: float | None = None  # edit distance to the last turn of the same tag over the longer one's length; None for the first


@dataclass(frozen=True, slots=True)
class TrajectoryInfo:
    """What the driver knows of a trajectory: everything but its tokens."""

    task_id: str
    status: Status
    outcome: float
    parts: Mapping[str, float]
    num_prompt: int  # prompt tokens of the first turn
    num_sampled: int
    policy_version: int  # oldest over its turns
    turns: tuple[TurnInfo, ...] = ()
    error: str = ""
    ungraded: Mapping[str, str] = field(default_factory=dict)


EXAMPLE_CHARS = 200  # of a prompt and of an answer, in an example


@dataclass(frozen=True, slots=True)
class Example:
    """An answer as a person is told of it: the ends of what was asked and of what was said."""

    asked: str
    said: str
    truncated: bool
    outcome: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def told(self) -> str:
        """In one line."""
        parts = f" ({', '.join(f'{name} {value:g}' for name, value in self.parts.items())})" if self.parts else ""
        return f"{self.asked!r} -> {self.said!r}{', cut' if self.truncated else ''}, which earned {self.outcome:g}{parts}"


@dataclass(frozen=True, slots=True)
class GroupRef:
    """What the driver knows of a group. `rows` is an object reference to its token rows
    (the rows themselves in unit tests): tokens go from rollout worker to learner rank."""

    group_id: str
    trajectories: tuple[TrajectoryInfo, ...]
    rows: Any
    num_tokens: int  # of all rows together, prompts included

    @property
    def has_signal(self) -> bool:
        """Whether its graded trajectories earned different rewards."""
        graded = {t.outcome for t in self.trajectories if t.status != "failed"}
        return len(graded) > 1


@dataclass(frozen=True, slots=True)
class Setting:
    """What the driver decides anew for every step and the learner has to know.

    `controls` are numbers that move with the run (algorithms/controllers.py), each named like the stream
    of the batch that it fills; `pass_rates` has for each group the share of right answers to its task over the run.
    """

    temperature: float = 1.0  # of the sampling that made the step's rows
    controls: Mapping[str, float] = field(default_factory=dict)
    pass_rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one learner rank. Every [B, T] tensor is aligned with `token_ids`: entry t
    describes token t (its log-probability is log p(token_t | tokens_<t)); entry 0 is inert."""

    token_ids: Tensor  # [B, T] int64, right-padded
    attention_mask: Tensor  # [B, T] bool, real tokens
    loss_mask: Tensor  # [B, T] bool, tokens that are trained on
    sources: Tensor  # [B, T] int64, values of Source
    turn_ids: Tensor  # [B, T] int64, turn that sampled the token, -1 elsewhere
    rewards: Tensor  # [B, T] float32, on the last token of a turn
    rollout_logprobs: Tensor  # [B, T] float32, what the engine reported, 0 where not sampled
    traj_ids: Tensor  # [B] int64, 0..M-1; rows of one trajectory share an id
    group_ids: Tensor  # [B] int64, 0..N-1
    policy_versions: Tensor  # [B] int64
    truncated: Tensor  # [B] bool, the trajectory ran into a length limit
    old_logprobs: Tensor | None = None  # [B, T] the learner's weights at the step's start
    ref_logprobs: Tensor | None = None  # [B, T] frozen reference policy
    values: Tensor | None = None  # [B, T] critic
    advantages: Tensor | None = None  # [B, T]
    returns: Tensor | None = None  # [B, T] critic target
    kl_coef: Tensor | None = None  # [B, T] weight of a KL penalty
    entropy: Tensor | None = None  # [B, T] of the distribution that is being updated; carries gradient
    is_weights: Tensor | None = None  # [B, T] importance weights engine -> learner
    ce_weights: Tensor | None = None  # [B, T] weights of supervised targets
    loss_weights: Tensor | None = None  # [B, T] share of the step's loss (algorithms/masking.py)
    baselines: Tensor | None = None  # [B] float32, what a greedy answer to the task earned
    pass_rates: Tensor | None = None  # [B] float32, share of right answers to the task
    pair_ids: Tensor | None = None  # [B] int64, the preference pair that the row belongs to, -1 for none
    parts: Tensor | None = None  # [B, P] float32, the trajectory's reward parts that Algorithm.parts names

    def __post_init__(self) -> None:
        B, T = self.token_ids.shape
        for f in fields(self):
            x = getattr(self, f.name)
            want = (B, x.shape[-1]) if f.name == "parts" and x is not None else (B,) if f.name in PER_ROW else (B, T)
            if x is not None and tuple(x.shape) != want:
                raise ValueError(f"Batch.{f.name}: expected shape {want}, got {tuple(x.shape)}")

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `fn` to every tensor present (move, slice)."""
        present = {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None}
        return replace(self, **{name: fn(x) for name, x in present.items()})

    def rows(self, index: Any) -> Batch:
        """The rows that `index` selects (slice, list or tensor of row numbers)."""
        return self.map(lambda x: x[index])

    def map_tokens(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `fn` to every [B, T] tensor present (widen, narrow)."""
        streams = [f.name for f in fields(self) if f.name not in PER_ROW]
        return replace(self, **{name: fn(x) for name in streams if (x := getattr(self, name)) is not None})


PER_ROW = frozenset({"traj_ids", "group_ids", "policy_versions", "truncated", "baselines", "pass_rates", "pair_ids", "parts"})


@dataclass(frozen=True)
class Sampled:
    """What an evaluation learns of one task: what was said and what it earned."""

    task: Task
    trajectories: tuple[TrajectoryInfo, ...]
    said: tuple[tuple[str, ...], ...]  # in each, turn by turn
    shown: tuple[tuple[str, ...], ...] = ()  # the same for people, without special tokens
