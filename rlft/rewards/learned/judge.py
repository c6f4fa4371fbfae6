"""A generative judge as a reward: it scores answers, compares them in both orders, or checks them against a rubric."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Literal

from jinja2 import Template

from rlft.errors import ConfigError, RewardError, TaskError
from rlft.rewards.grader import EngineSize, defaults
from rlft.rewards.learned.calls import Caller, Complete, Endpoint, Replies
from rlft.rewards.learned.prompts import answer_of, compiled, load_template, question_of, render
from rlft.rewards.learned.verdicts import Mode, both_orders, pairings, rationale, spread, verdict_of, weighted_share
from rlft.types import Group, Message, Task, Trajectory

POLICY = "policy"  # as a model: the policy that is trained, as it is at that moment
Value = tuple[float, str] | RewardError  # of one trajectory, with feedback; or why it has none


@dataclass(frozen=True)
class Ballot:
    """One juror's verdict, in 0..1, or None for an abstention; and what the juror wrote."""

    value: float | None
    text: str


@defaults(timeout_s=600.0)
@dataclass(kw_only=True)
class Judge:
    """Asks one model, or a jury, what answers are worth. Values lie in 0..1. A Scorer.

    A juror whose answer does not end in a verdict, or in `abstain`, is left out; a trajectory about which all
    abstain gets the value `abstained`, or cannot be graded.

    Args:
        mode: "pointwise": a number on `scale`, the jury's median. "pairwise": share of the matches won against others
            of the group; every pair is asked in both orders. "rubric": weighted share of the criteria met.
        model: of the service; without `base_url` "policy" or a model folder, which run on rlft's engines.
        models: a jury of several instead.
        votes: answers of each juror, sampled with different seeds.
        base_url: of an OpenAI-compatible service, such as "http://host:8000/v1".
        key_env: environment variable that holds its key.
        temperature, max_tokens: of the judge's answers. One that reaches max_tokens has no verdict.
        seed: of sampling, opponents and fences.
        concurrency: requests in flight, of each reward worker.
        retries, call_timeout_s: of one request.
        max_model_len, max_num_seqs, memory: of the judge's own engine, see `EngineSize`. A prompt that leaves no room in it
            leaves its trajectory ungraded.
        budget_calls, budget_tokens: that this reward worker may spend in the run; 0: no limit.
        cache: SQLite file in which replies outlive the run; "": in memory.
        reference: show the task's answer to the judge, where it has one.
        conversation: judge everything since the question, not only the last thing said.
        template: file with a Jinja template to ask with (docs/judges.md).
        system: system message before it.
        scale: lowest and highest pointwise score.
        opponents: matches of each trajectory; 0: against all others.
        conflict: what a pair counts whose verdicts prefer a position: "half" a win each, or "abstain".
        rubric: criteria, texts or {"criterion": text, "weight": number}; a task's meta["rubric"] goes before it.
        abstained: value where all abstain; None: the trajectory is ungradable.

    Raises:
        ConfigError: an option that is out of range, or has no effect.
    """

    mode: Mode = "pointwise"
    model: str = ""
    models: Sequence[str] = ()
    votes: int = 1
    base_url: str = ""
    key_env: str = ""
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    concurrency: int = 32
    retries: int = 3
    call_timeout_s: float = 120.0
    max_model_len: int = 0
    max_num_seqs: int = 64
    memory: float = 0.9
    budget_calls: int = 0
    budget_tokens: int = 0
    cache: str = ""
    reference: bool = True
    conversation: bool = False
    template: str = ""
    system: str = ""
    scale: Sequence[float] = (1, 10)
    opponents: int = 0
    conflict: Literal["half", "abstain"] = "half"
    rubric: Sequence[str | Mapping[str, Any]] = ()
    abstained: float | None = None
    _source: str = field(init=False, repr=False)
    _connected: dict[str, Complete] = field(init=False, repr=False, default_factory=dict)
    _caller: Caller | None = field(init=False, repr=False, default=None)
    _asking: Template | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if isinstance(self.models, str):
            raise ConfigError(f"judge: models {self.models!r}; expected a list of names")
        if bool(self.model) == bool(self.models):
            raise ConfigError("judge: give `model`, or `models` for a jury: one of the two")
        if self.mode not in ("pointwise", "pairwise", "rubric"):
            raise ConfigError(f"judge: mode {self.mode!r}; expected 'pointwise', 'pairwise' or 'rubric'")
        if self.conflict not in ("half", "abstain"):
            raise ConfigError(f"judge: conflict {self.conflict!r}; expected 'half' or 'abstain'")
        self._check_numbers()
        self._check_options_apply()
        if self.rubric:
            weights_of(self.rubric, "judge: rubric")
        self._source = load_template(self.mode, self.template)

    @property
    def jurors(self) -> tuple[str, ...]:
        """The models that are asked."""
        return tuple(dict.fromkeys(self.models or (self.model,)))

    @property
    def engines(self) -> tuple[str, ...]:
        """Models that run on rlft's engines and must be connected before the start: "policy" or folders."""
        return () if self.base_url else self.jurors

    @property
    def engine_size(self) -> EngineSize:
        """Of the engines that are not the policy's."""
        return EngineSize(self.max_model_len, self.max_num_seqs, self.memory)

    def connect(self, engines: Mapping[str, Complete]) -> None:
        """Say what completes for each of `engines`. Called in the reward worker, before `start`."""
        self._connected = {name: engines[name] for name in self.engines}

    async def start(self) -> None:
        """Open the cache and the connections. Raises ConfigError."""
        if missing := set(self.engines) - set(self._connected):
            raise ConfigError(f"judge: no engine runs {sorted(missing)}; for a service set base_url")
        models = dict(self._connected)
        for name in self.jurors if self.base_url else ():
            models[name] = endpoint = Endpoint(name, self.base_url, self.key_env, self.retries, self.call_timeout_s)
            endpoint.connect()
        kept = None if POLICY in self.engines else Replies(self.cache)  # the policy's verdicts change as it learns
        self._caller = Caller(models, self.concurrency, kept, self.budget_calls, self.budget_tokens)
        self._asking = compiled(self._source)

    async def score(self, group: Group) -> list[Value]:
        """One (value, feedback) per trajectory, or the RewardError that kept it from one.

        Raises:
            RewardError: none of the group has a value.
        """
        ways = {"pointwise": self._pointwise, "pairwise": self._pairwise, "rubric": self._rubric}
        values = await ways[self.mode](group)
        errors = [value for value in values if isinstance(value, RewardError)]
        if errors and len(errors) == len(values):
            raise errors[0]
        return values

    async def close(self) -> None:
        """Give up what is in flight and close the connections."""
        if self._caller is not None:
            await self._caller.close()
            for model in self._caller.models.values():
                if isinstance(model, Endpoint):
                    await model.close()

    async def _pointwise(self, group: Group) -> list[Value]:
        async def one(trajectory: Trajectory) -> Value:
            low, high = (f"{end:g}" for end in self.scale)
            ballots = await self._ask(trajectory.task, {"response": self._said(trajectory)}, low=low, high=high)
            values = [ballot.value for ballot in ballots if ballot.value is not None]
            if not values:
                return self._undecided(f"no verdict of {len(ballots)} on task {trajectory.task.id!r}: {ballots[0].text[-200:]!r}")
            text = next(ballot.text for ballot in ballots if ballot.value is not None)
            return median(values), _joined(rationale(text), spread(values))

        return await _each(one(trajectory) for trajectory in group.trajectories)

    async def _rubric(self, group: Group) -> list[Value]:
        async def one(trajectory: Trajectory) -> Value:
            task = trajectory.task
            weights = weights_of(task.meta.get("rubric", self.rubric), f"task {task.id!r}: meta['rubric']", TaskError)
            said = self._said(trajectory)
            ballots = await asyncio.gather(*(self._ask(task, {"response": said, "criterion": criterion}) for criterion in weights))
            jury = {
                criterion: [ballot.value for ballot in cast if ballot.value is not None]
                for criterion, cast in zip(weights, ballots, strict=True)
            }
            open_ = [criterion for criterion, values in jury.items() if not values]
            if open_:
                return self._undecided(f"no verdict on task {task.id!r} about {open_[0]!r}")
            verdicts = {criterion: median(values) for criterion, values in jury.items()}
            return weighted_share(verdicts, weights), _shortfall(verdicts, weights, jury)

        return await _each(one(trajectory) for trajectory in group.trajectories)

    async def _pairwise(self, group: Group) -> list[Value]:
        members = group.trajectories
        pairs = pairings(len(members), self.opponents, zlib.crc32(f"{self.seed}/{group.group_id}".encode()))
        outcomes = await _each(self._match(members[i], members[j]) for i, j in pairs)
        played: list[list[float | None | RewardError]] = [[] for _ in members]
        for (i, j), outcome in zip(pairs, outcomes, strict=True):
            played[i].append(outcome)
            played[j].append(1 - outcome if isinstance(outcome, float) else outcome)
        return [self._standing(member, matches) for member, matches in zip(members, played, strict=True)]

    async def _match(self, one: Trajectory, other: Trajectory) -> float | None:
        """How well the first did against the second, 0..1; None where the jury cannot tell."""
        a, b = self._said(one), self._said(other)
        if a == b:
            return 0.5
        first, swapped = await asyncio.gather(
            self._ask(one.task, {"response_a": a, "response_b": b}), self._ask(one.task, {"response_a": b, "response_b": a})
        )
        values = [both_orders(x.value, y.value, self.conflict) for x, y in zip(first, swapped, strict=True)]
        decided = [value for value in values if value is not None]
        return float(median(decided)) if decided else None

    def _standing(self, trajectory: Trajectory, matches: Sequence[float | None | RewardError]) -> Value:
        decided = [match for match in matches if isinstance(match, float)]
        errors = [match for match in matches if isinstance(match, RewardError)]
        if not matches:
            return RewardError(f"judge: task {trajectory.task.id!r}: pairwise needs two gradable trajectories in a group")
        if not decided:
            return errors[0] if errors else self._undecided(f"no verdict in {len(matches)} matches of task {trajectory.task.id!r}")
        feedback = f"won {sum(decided):g} of {len(decided)} matches"
        left_out = len(matches) - len(decided)
        return fmean(decided), _joined(feedback, f"{left_out} without a verdict" if left_out else "")

    async def _ask(self, task: Task, parts: Mapping[str, str], **plain: str) -> list[Ballot]:
        """Every juror's vote on one question. Raises RewardError when a juror cannot be asked."""
        if self._caller is None or self._asking is None:
            raise RewardError("judge: not started")
        reference = str(task.answer) if self.reference and task.answer is not None else ""
        shown = {"low": "", "high": "", **plain}
        prompt = render(self._asking, {"question": question_of(task), "reference": reference, **parts}, self.seed, **shown)
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": prompt})
        replies = await asyncio.gather(
            *(
                self._caller.ask(juror, messages, self.temperature, self.max_tokens, zlib.crc32(f"{self.seed}/{vote}".encode()))
                for juror in self.jurors
                for vote in range(self.votes)
            )
        )
        low, high = self.scale
        return [Ballot(verdict_of(self.mode, reply.text, (low, high)) if reply.finished else None, reply.text) for reply in replies]

    def _said(self, trajectory: Trajectory) -> str:
        return answer_of(trajectory, self.conversation)

    def _undecided(self, why: str) -> Value:
        if self.abstained is None:
            return RewardError(f"judge: {why}")
        return self.abstained, f"the judge abstained: {why}"

    def _check_numbers(self) -> None:
        least = {"votes": 1, "max_tokens": 1, "concurrency": 1, "retries": 0, "budget_calls": 0, "budget_tokens": 0, "opponents": 0}
        for name, low in {**least, "max_model_len": 0, "max_num_seqs": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"judge: {name} {value!r}; expected a whole number from {low}")
        if not self.memory > 0:
            raise ConfigError(f"judge: memory {self.memory!r}; expected a share of GPU memory, or GiB on CPU, above 0")
        if not self.temperature >= 0 or not self.call_timeout_s > 0:
            raise ConfigError(f"judge: temperature {self.temperature!r} must be at least 0, call_timeout_s {self.call_timeout_s!r} above 0")
        if len(self.scale) != 2 or not self.scale[0] < self.scale[1]:
            raise ConfigError(f"judge: scale {self.scale!r}; expected its lowest and its highest score, such as [1, 10]")

    def _check_options_apply(self) -> None:
        """An option that cannot have an effect is an error."""
        rules: list[tuple[tuple[str, ...], bool, str]] = [
            (("votes",), self.temperature > 0, "needs a temperature above 0: without one all votes are the same"),
            (("scale",), self.mode == "pointwise", "needs mode = 'pointwise'"),
            (("opponents", "conflict"), self.mode == "pairwise", "needs mode = 'pairwise'"),
            (("rubric",), self.mode == "rubric", "needs mode = 'rubric'"),
            (("key_env", "retries", "call_timeout_s"), bool(self.base_url), "needs base_url"),
            (("max_model_len", "max_num_seqs", "memory"), bool({*self.engines} - {POLICY}), "needs an engine of the judge's own"),
            (("cache",), POLICY not in self.engines, "cannot keep what the policy says: it changes as it learns"),
        ]
        for names, applies, reason in rules:
            for name in names:
                if not applies and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ConfigError(f"judge: {name} {reason}")


def weights_of(rubric: Any, where: str, error: Callable[[str], Exception] = ConfigError) -> dict[str, float]:
    """Criteria with their weights. Raises `error` for anything but a list of distinct criteria, one of them of positive weight."""
    expected = "expected a list of texts or of {criterion = text, weight = number}"
    if not isinstance(rubric, Sequence) or isinstance(rubric, str) or not rubric:
        raise error(f"{where}: {rubric!r}; {expected}")
    weights: dict[str, float] = {}
    for item in rubric:
        entry = {"criterion": item} if isinstance(item, str) else item
        if not isinstance(entry, Mapping) or not set(entry) <= {"criterion", "weight"}:
            raise error(f"{where}: {item!r}; {expected}")
        criterion, weight = entry.get("criterion"), entry.get("weight", 1.0)
        if not isinstance(criterion, str) or not criterion.strip() or criterion in weights:
            raise error(f"{where}: {item!r}; expected a text that stands once")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise error(f"{where}: weight {weight!r} of {criterion!r}; expected a number")
        weights[criterion] = float(weight)
    if not any(weight > 0 for weight in weights.values()):
        raise error(f"{where}: no criterion has a positive weight")
    return weights


async def _each(questions: Any) -> list[Any]:
    """All answers, a RewardError in the place of what it kept from one."""

    async def caught(question: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await question
        except RewardError as error:
            return error

    return list(await asyncio.gather(*map(caught, questions)))


def _shortfall(verdicts: Mapping[str, float], weights: Mapping[str, float], jury: Mapping[str, Sequence[float]]) -> str:
    """What is missing, what is at fault, and where the jurors disagree."""
    missing = [criterion for criterion, verdict in verdicts.items() if weights[criterion] > 0 and verdict < 1]
    faults = [criterion for criterion, verdict in verdicts.items() if weights[criterion] < 0 and verdict > 0]
    disputed = [criterion for criterion, values in jury.items() if spread(values)]
    named = {"missing": missing, "at fault": faults, "jurors disagree on": disputed}
    return "\n".join(f"{label}: {'; '.join(criteria)}" for label, criteria in named.items() if criteria)


def _joined(*texts: str) -> str:
    return "\n".join(filter(None, texts))
