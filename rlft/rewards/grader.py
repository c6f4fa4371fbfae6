"""A grader is a tuple of terms: reward functions, each with the rule by which its value counts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from rlft.errors import RewardError, TaskError, explain
from rlft.types import Group, Task, Trajectory

Verdict = tuple[float, str] | None  # raw value and feedback; None: the reward does not apply
Kind = Literal["each", "group", "scorer"]  # grades a trajectory, a whole group, or lives in the reward worker
Cause = Literal["raised", "ungradable", "task", "invalid", "timeout", "crashed", "oom"]
ON = "; on"  # after it, a failure's text says on which task and answer
MAX_ERROR = 2000  # characters of a user's exception that are kept
Fn = TypeVar("Fn", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """How a reward's raw value enters the sum, and what stands in where there is none."""

    name: str  # of its part
    kind: Kind = "each"
    weight: tuple[tuple[int, float], ...] = ((0, 1.0),)  # (step, weight), in a line between the steps
    gate: float | None = None  # below it this reward alone counts, and the later ones are not asked
    normalize: Literal["none", "group"] = "none"  # "group": less the group's mean, over its standard deviation
    clip: tuple[float, float] | None = None  # after normalising
    on_error: float | None = None  # value where there is no verdict; None: the trajectory has failed
    optional: bool = False  # None from the reward means that it does not apply to this trajectory
    timeout_s: float | None = None  # of one call; None: the pool's
    memory_mb: int | None = None  # that one call may allocate

    def weight_at(self, step: int) -> float:
        """The weight of a step: constant before the first point and after the last."""
        (at, weight), *later = self.weight
        for next_at, next_weight in later:
            if step < next_at:
                return weight + (next_weight - weight) * max(0, step - at) / (next_at - at)
            at, weight = next_at, next_weight
        return weight


@dataclass(frozen=True)
class Canary:
    """A text whose grade is known. A reward that grades it otherwise is broken, and the run stops."""

    task: Task
    text: str
    value: float


@dataclass(frozen=True)
class Term:
    """One reward: what to call, and how its value counts."""

    rule: Rule
    fn: Any  # "each": called with (task, trajectory); "group": with (group); "scorer": a Scorer
    canaries: tuple[Canary, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a reward gave no verdict.

    "raised" an exception, found the answer "ungradable" or the "task" broken, returned something "invalid",
    ran into its "timeout", "crashed" its process, or ran out of memory ("oom").
    """

    cause: Cause
    text: str

    def stops(self, rule: Rule) -> bool:
        """Whether the trajectory has failed, since nothing may stand in for the verdict."""
        return rule.on_error is None or self.cause == "task"


@runtime_checkable
class Scorer(Protocol):
    """A reward that keeps a model, an engine or a connection: it lives in the reward worker, on its event loop.

    Constructing one does nothing but check its options; it is made on the driver and sent to the
    worker. `score` answers concurrent calls and returns one value (or (value, feedback)) per trajectory
    of the group, a RewardError in the place of one that it cannot grade; it raises where it can grade none.
    """

    async def start(self) -> None: ...
    async def score(self, group: Group) -> Sequence[Any]: ...
    async def close(self) -> None: ...


@runtime_checkable
class UsesEngines(Protocol):
    """A scorer that asks models on rlft's own engines."""

    @property
    def engines(self) -> Sequence[str]:
        """Which: "policy" for the one that is trained, or model folders. Each gets an engine before the start."""
        ...

    def connect(self, engines: Mapping[str, Any]) -> None:
        """Take what completes conversations for each of them (`rlft.rewards.learned.calls.Complete`)."""
        ...


@dataclass(frozen=True)
class EngineSize:
    """What a scorer's own engines have to hold. `memory`: share of a GPU's; on CPU, GiB of KV cache."""

    max_model_len: int = 0  # tokens of prompt and answer; 0: the smaller of 4096 and the model's positions
    max_num_seqs: int = 64  # answers written at once
    memory: float = 0.9

    def both(self, other: EngineSize) -> EngineSize:
        """Of one engine for two scorers: the larger of each, where 0 tokens are as many as the model usually has."""
        lengths = (self.max_model_len, other.max_model_len)
        length = max(lengths) if all(lengths) else 0
        return EngineSize(length, max(self.max_num_seqs, other.max_num_seqs), max(self.memory, other.memory))


@runtime_checkable
class SizesEngines(UsesEngines, Protocol):
    """A scorer that says how large its own engines are; others get `EngineSize()`."""

    @property
    def engine_size(self) -> EngineSize:
        """Of each of `engines` but the policy's."""
        ...


@dataclass(frozen=True)
class Defaults:
    """What a reward function says about itself, for the rules that name it."""

    options: Mapping[str, Any] = field(default_factory=dict)  # of its rule: timeout_s, on_error, memory_mb
    canaries: tuple[Canary, ...] = ()
    check: Callable[..., Any] | None = None  # called with the reward's options before a run starts; raises ConfigError


def defaults(*, canaries: Sequence[Canary] = (), check: Callable[..., Any] | None = None, **options: Any) -> Callable[[Fn], Fn]:
    """Decorate a reward function with options of its rule (`timeout_s`, `on_error`, ...), canaries, and a check of its own options."""

    def decorate(fn: Fn) -> Fn:
        fn.rlft_defaults = Defaults(options, tuple(canaries), check)  # type: ignore[attr-defined]
        return fn

    return decorate


class InvalidReturn(RewardError):
    """A reward returned something that is no verdict."""


def verdicts(rule: Rule, returned: Any, count: int) -> list[Verdict | Failure]:
    """What a reward returned as one verdict per graded trajectory, `count` of them.

    A value is a finite number (True and False count as 1 and 0, numpy scalars are numbers), or
    a pair (number, feedback text); None too where the rule is optional. All but kind "each" return
    one value per trajectory of a group, a RewardError in the place of one that cannot be graded.

    Raises:
        InvalidReturn: anything else; the message names the reward, what it returned and what was expected.
    """
    if rule.kind == "each":
        return [_verdict(rule, returned, "")]
    if isinstance(returned, (str, bytes, Mapping)) or not hasattr(returned, "__len__"):
        raise InvalidReturn(f"reward {rule.name!r} returned {_short(returned)}; expected a list of {count} finite numbers")
    if len(returned) != count:
        raise InvalidReturn(
            f"reward {rule.name!r} returned {len(returned)} values; expected {count}, one per trajectory of the group"
        )
    return [_verdict(rule, value, f" for trajectory {i} of its group") for i, value in enumerate(returned)]


def failure(rule: Rule, error: BaseException, subject: Trajectory | Group | None = None) -> Failure:
    """Why a reward gave no verdict; of an exception also where it arose, and on which task and answer."""
    if isinstance(error, RewardError):
        cause = "task" if isinstance(error, TaskError) else "invalid" if isinstance(error, InvalidReturn) else "ungradable"
        text = str(error)[:MAX_ERROR]
        return Failure(cause, text if text.startswith("reward ") else f"reward {rule.name!r}: {text.removeprefix(f'{rule.name}: ')}")
    text = f"reward {rule.name!r} raised {explain(error)[:MAX_ERROR]}{_on(subject)}"
    return Failure("oom" if isinstance(error, MemoryError) else "raised", text)


def _on(subject: Trajectory | Group | None) -> str:
    if isinstance(subject, Group):
        return f"{ON} the group of task {subject.trajectories[0].task.id!r}" if subject.trajectories else ""
    return f"{ON} task {subject.task.id!r}, answer {_short(subject.text)}" if subject else ""


def _verdict(rule: Rule, returned: Any, where: str) -> Verdict | Failure:
    if isinstance(returned, RewardError) and rule.kind != "each":
        return failure(rule, returned)
    if returned is None and rule.optional:
        return None
    value: Any = returned
    feedback = ""
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], str):
        value, feedback = returned
    number = math.nan
    if not isinstance(value, (str, bytes)) and hasattr(type(value), "__float__") and getattr(value, "ndim", 0) == 0:
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # what is no float stays no number
            number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise InvalidReturn(f"reward {rule.name!r} returned {_short(returned)}{where}; expected a finite number")
    return number, feedback


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def spoken(task: Task, text: str) -> Trajectory:
    """A finished trajectory in which `text` was said, without tokens: for canaries and for trying a reward."""
    from rlft.types import Completion, Turn

    turn = Turn([], Completion([], [], "stop", 0), {"role": "assistant", "content": text}, [], observed=task.messages)
    return Trajectory(task, 0, (turn,), "completed")
