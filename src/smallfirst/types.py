"""The words of smallfirst: frozen domain values and the two protocols that everything else speaks.

This module imports nothing of ours and does no I/O. Wire formats (OpenAI, Anthropic) and database rows have types
of their own in `wire/` and `store/`; what passes between them is defined here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct, field

Json = Mapping[str, Any]
Wire = Literal["chat", "responses", "messages"]
Mode = Literal["observe", "enforce", "small_only"]
ConstraintMode = Literal["free", "constrained", "late"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Role = Literal["agent", "viewer", "operator", "admin"]


class Tool(Struct, frozen=True):
    """A function that the caller offers. `parameters` is a JSON Schema for an object ({} means: any object)."""

    name: str
    description: str = ""
    parameters: Json = field(default_factory=dict)
    strict: bool = False


class ToolChoice(Struct, frozen=True):
    """Which tools may or must be called. A named choice is mode "required" with one name in `allowed`.

    `allowed` empty means every tool of the request.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    allowed: tuple[str, ...] = ()


class ResponseFormat(Struct, frozen=True):
    """What the text of the answer must be; `schema` is set exactly when kind is "json_schema"."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    schema: Json | None = None
    name: str = ""
    strict: bool = False


class Sampling(Struct, frozen=True):
    """Decoding settings as the caller gave them; None means: the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Origin(Struct, frozen=True):
    """Who called and what for. `key` is the API key's public id ("local" without keys); user and episode are the
    caller's own words here and become keyed hashes in the store."""

    key: str = "local"
    task: str | None = None
    episode: str | None = None
    user: str | None = None


class Constraint(Struct, frozen=True):
    """A JSON Schema that a backend must hold the text of its answer to while it decodes.

    mode "constrained" binds from the first token; "late" lets the model reason freely, then binds.
    """

    schema: Json
    mode: Literal["constrained", "late"] = "constrained"


class Request(Struct, frozen=True):
    """One call, in OpenAI chat words whatever wire it came by.

    `body` is the client's JSON object, never changed: a backend that speaks the same wire sends it upstream with only
    the intended fields replaced. `messages` are OpenAI chat message objects. `needs` names what a backend must be
    capable of to answer at all (see `Capabilities.missing`). `headers` are the few of the client's that its provider
    must see, by lower-case name: anthropic-beta, anthropic-version, openai-organization, openai-project,
    idempotency-key.
    """

    wire: Wire
    body: Json
    model: str
    messages: tuple[Json, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    sampling: Sampling = Sampling()
    stream: bool = False
    include_usage: bool = False
    origin: Origin = Origin()
    needs: frozenset[str] = frozenset()
    constraint: Constraint | None = None
    adapter: str | None = None
    timeout_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Whether all that the answer may hold is known here: no custom tools, and no tools or features that only the
        wire's own provider understands."""
        return self.needs.isdisjoint(("custom_tools", f"native:{self.wire}"))

    @property
    def callable_tools(self) -> Mapping[str, Tool]:
        """By name, the tools that the answer may call under `tool_choice`."""
        if self.tool_choice.mode == "none":
            return {}
        allowed = self.tool_choice.allowed
        return {tool.name: tool for tool in self.tools if not allowed or tool.name in allowed}


class Capabilities(Struct, frozen=True):
    """What a server or engine can do. Differences between servers live here, not in branches on their names.

    `modalities` are content kinds of messages ("text", "image", "audio", "file"). `constraint` tells whether
    `Request.constraint` is honoured. `native` lists the wires that the backend sends through unchanged.
    `top_logprobs` is the largest k it returns (0: no log-probabilities).
    """

    modalities: frozenset[str] = frozenset({"text"})
    native: frozenset[str] = frozenset()
    tools: bool = True
    custom_tools: bool = False
    constraint: bool = False
    top_logprobs: int = 0
    many: bool = True
    max_tokens_field: str = "max_tokens"
    stream_usage: bool = True
    embeddings: bool = False

    def missing(self, request: Request) -> frozenset[str]:
        """What `request` needs and this backend lacks; empty when it can answer.

        Needs are modality names, "custom_tools", "logprobs", "n", or "native:<wire>" for a feature that only the
        wire's own provider understands (a hosted tool, say).
        """
        have = set(self.modalities)
        have |= {f"native:{wire}" for wire in self.native}
        have |= {"custom_tools"} if self.custom_tools else set()
        have |= {"logprobs"} if self.top_logprobs else set()
        have |= {"n"} if self.many else set()
        have |= {"tools"} if self.tools else set()
        return request.needs - have


class TokenLogprob(Struct, frozen=True):
    """One generated token: text, natural-log probability, likeliest alternatives (text, logprob), best first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Usage(Struct, frozen=True):
    """Tokens of one attempt. `busy_seconds` is the machine time that this request took of a local engine, shared with
    the requests that ran beside it; None for a hosted model."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    busy_seconds: float | None = None


class ToolCall(Struct, frozen=True):
    """A call that the model made; `arguments` is the JSON text exactly as generated."""

    id: str
    name: str
    arguments: str


class ToolCallDelta(Struct, frozen=True):
    """A piece of the tool call at `index`; `id` and `name` come with its first piece."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Native(Struct, frozen=True):
    """An answer or stream event exactly as an upstream sent it, so that the same wire can hand it on unchanged.

    `event` is the stream event's name, "" if it has none; None marks a whole answer.
    """

    wire: Wire
    payload: Json
    event: str | None = None


class Delta(Struct, frozen=True):
    """A piece of an answer. A backend that answers at once yields one Delta per choice.

    `facts` is what the backend found out about the answer by the way (see `Completion`).
    """

    choice: int = 0
    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    model: str | None = None
    native: Native | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


class Choice(Struct, frozen=True):
    """One complete alternative of an answer. `logprobs` are those of the tokens as generated, tool calls included."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    reasoning: str = ""
    refusal: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()


class Completion(Struct, frozen=True):
    """A complete answer. `native` is the upstream's whole answer when it was not streamed. `facts` are numbers that the
    backend found out by the way, by name; they are recorded among the attempt's features."""

    choices: tuple[Choice, ...]
    usage: Usage = Usage()
    model: str = ""
    native: Native | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


class Violation(Struct, frozen=True):
    """One way in which an answer breaks the request: a stable code, a sentence that helps to repair, a JSON path."""

    code: str
    message: str
    path: str = "$"


class Verdict(Struct, frozen=True):
    """What the validators found; `ok` exactly when there are no violations."""

    violations: tuple[Violation, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.violations


Decision = Literal["accept", "escalate", "abstain", "shadow", "evidence", "audit"]
AFTERWARDS: frozenset[Decision] = frozenset({"shadow", "audit"})
"""Decisions of attempts made after the client was served. They and what stands after them in a record, evidence beside
them, are no part of what the call cost."""


class Attempt(Struct, frozen=True):
    """One stage's try. `kind` tells a first generation from a repair; `error` is set when there is no completion.

    `small` tells whose try it was. Made after the client was served are those with `decision` "shadow" (a small
    model's, to learn from) and "audit" (the large one's, to check an accepted answer by; its `reason` says what it
    found: "same", "different", or "not_told" when answers cannot be compared or there is none). "evidence" is one made
    beside a small model's, whose stage its `reason` names: to see whether the two agree and, where they do not and the
    calibrator judges both, to be served if it is the surer one (`offered`). `probability` is that of the draw by
    which it was made, None without.
    `features` are the confidence features (see `confidence`); `confidence` is the calibrated P(correct) if there is a
    calibrator. Times in seconds, cost in USD (None: the price is unknown): `cost_usd` prices local machine time,
    `cost_usd_local_free` does not.
    """

    stage: str
    backend: str
    model: str
    kind: Literal["generate", "repair", "cache"]
    decision: Decision
    reason: str
    completion: Completion | None
    small: bool = False
    verdict: Verdict = Verdict()
    features: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None
    probability: float | None = None
    cost_usd: float | None = 0.0
    cost_usd_local_free: float | None = 0.0
    seconds: float = 0.0
    first_token_s: float | None = None
    error: str | None = None


class Pair(Struct, frozen=True):
    """A served answer beside the large model's own to the same call; it stands for `weight` calls, which is one over
    the probability that the large model was asked. `differs`: the two are not the same answer. The cost is in USD, None
    where the price is unknown; tokens are input and output."""

    weight: float
    differs: bool
    large_usd: float | None
    large_tokens: int


def evidence_of(attempts: Sequence[Attempt], n: int) -> range:
    """Which of `attempts` were made beside the n-th one: those that follow it as evidence."""
    end = n + 1
    while end < len(attempts) and attempts[end].decision == "evidence":
        end += 1
    return range(n + 1, end)


def offered(attempts: Sequence[Attempt], n: int) -> int:
    """Which of `attempts` holds the answer that the n-th one's stage offers: the surest of its own and those beside it,
    its own where none is surer."""
    best = n
    for m in evidence_of(attempts, n):
        if (attempts[m].confidence or 0.0) > (attempts[best].confidence or 0.0):
            best = m
    return best


def total_usd(costs: Iterable[float | None]) -> float | None:
    """The sum in USD; None when one of them is unknown."""
    known = list(costs)
    return None if None in known else sum(c for c in known if c is not None)


class Trial(Struct, frozen=True):
    """The rollout that a call was part of: its arm, drawn by episode with probability `share` for the canary and
    1 - `share` for the incumbent; in the "shadow" both answer."""

    rollout: str
    arm: Literal["shadow", "canary", "incumbent"]
    share: float = 0.0


class Record(Struct, frozen=True):
    """The call as it is kept: what was asked, every attempt, what was decided and why.

    `id` sorts by time (UUIDv7). `served` indexes `attempts`; None when nothing was served. `status` is the HTTP
    status given, 499 when the client went away. `decision` is "accept" when a small model's answer was accepted,
    "escalate" when the large model's was served, "abstain" when no answer met the bar (what was served then, if
    anything, is a valid answer that nothing vouches for).
    """

    id: str
    created_at: float
    request: Request
    task: str
    mode: Mode
    attempts: tuple[Attempt, ...]
    served: int | None
    decision: Decision
    reason: str
    status: int
    seconds: float
    config_hash: str
    trial: Trial | None = None

    @property
    def cost_usd(self) -> float | None:
        """What the call cost in USD, every attempt counted; None when the price of one is unknown."""
        return total_usd(a.cost_usd for a in self.attempts)


class Feedback(Struct, frozen=True):
    """A later label of a record. `kind` and its `value`: "correct" bool, "score" float, "answer" the right answer,
    "comment" text."""

    id: str
    record_id: str
    created_at: float
    kind: Literal["correct", "score", "answer", "comment"]
    value: Any
    source: str


class Backend(Protocol):
    """Anything that answers requests: one method that matters, and a lifetime.

    `generate` raises errors of `smallfirst.errors.BackendError` only; closing the iterator cancels the work.
    """

    @property
    def name(self) -> str: ...
    @property
    def capabilities(self) -> Capabilities: ...
    def generate(self, request: Request) -> AsyncIterator[Delta]: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...


class Stage(Struct, frozen=True):
    """A backend with the model that it is asked for, and how its answers are treated.

    `model` is the name asked of the backend. `small`: its answers need checking, so its log-probabilities are watched.
    `repairs` bounds repair attempts. `temperature` replaces the caller's, for samples whose agreement is looked at.
    """

    name: str
    backend: Backend
    model: str
    small: bool = False
    repairs: int = 0
    constraint: ConstraintMode = "free"
    adapter: str | None = None
    temperature: float | None = None
    timeout_s: float = 120.0


class Calibrator(Protocol):
    """Features of a completion -> calibrated P(correct), and the least value at which an answer is accepted.

    `beside` is the same for another answer than the judged stage's, given by the stage of that name beside it; None
    where such answers are not judged.
    """

    @property
    def threshold(self) -> float: ...
    def confidence(self, features: Mapping[str, float]) -> float: ...
    def beside(self, stage: str, features: Mapping[str, float]) -> float | None: ...


class Route(Struct, frozen=True):
    """What the router decided: the stages to run in order, those to run in shadow afterwards, and why.

    `stages` are tried in order until one accepts; `shadow` stages answer after the client was served. A stage before
    the last accepts when its answer is valid and `calibrator` is confident enough; without a calibrator on validity
    alone, which only an operator's explicit word allows. `others` answer beside a small stage whose answer is valid, as
    evidence for or against it. `probability` is that of the draw that chose where to begin, None without one.
    """

    task: str
    mode: Mode
    stages: tuple[Stage, ...]
    shadow: tuple[Stage, ...] = ()
    others: tuple[Stage, ...] = ()
    calibrator: Calibrator | None = None
    reason: str = ""
    probability: float | None = None
