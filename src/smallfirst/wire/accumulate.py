"""Deltas to a Completion, and back."""

from __future__ import annotations

from dataclasses import dataclass, field

from smallfirst.errors import BackendGarbage
from smallfirst.types import (
    Choice,
    Completion,
    Delta,
    FinishReason,
    Native,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)


@dataclass(slots=True)
class _Call:
    id: str | None = None
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class Accumulator:
    """Adds up the Deltas of one answer."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._usage: Usage | None = None
        self._model = ""
        self._facts: dict[str, float] = {}
        self._whole: list[Native] = []

    def feed(self, delta: Delta) -> None:
        """Add a piece; a later usage replaces an earlier one."""
        if delta.native and delta.native.event is None:
            self._whole.append(delta.native)
        self._usage = delta.usage or self._usage
        self._model = delta.model or self._model
        self._facts.update(delta.facts)
        if not _says(delta):
            return
        choice = self._choices.setdefault(delta.choice, _Choice())
        if delta.text:
            choice.text.append(delta.text)
        if delta.reasoning:
            choice.reasoning.append(delta.reasoning)
        if delta.refusal:
            choice.refusal.append(delta.refusal)
        choice.logprobs += delta.logprobs
        choice.finish_reason = delta.finish_reason or choice.finish_reason
        for piece in delta.tool_calls:
            call = choice.calls.setdefault(piece.index, _Call())
            call.id = call.id or piece.id
            call.name = call.name or piece.name or ""
            call.arguments.append(piece.arguments)

    @property
    def usage(self) -> Usage | None:
        """The latest usage; None when none came."""
        return self._usage

    def completion(self) -> Completion:
        """The answer so far, with native if exactly one whole answer came; BackendGarbage if no choice did."""
        if not self._choices:
            raise BackendGarbage("The answer ended without a choice.")
        return Completion(
            choices=tuple(_choice(choice) for _, choice in sorted(self._choices.items())),
            usage=self._usage or Usage(),
            model=self._model,
            native=self._whole[0] if len(self._whole) == 1 else None,
            facts=self._facts,
        )


def _says(delta: Delta) -> bool:
    return bool(
        delta.text or delta.reasoning or delta.refusal or delta.tool_calls or delta.logprobs or delta.finish_reason
    )


def _choice(given: _Choice) -> Choice:
    calls = tuple(
        ToolCall(call.id or f"call_{index}", call.name, "".join(call.arguments))
        for index, call in sorted(given.calls.items())
    )
    return Choice(
        text="".join(given.text),
        tool_calls=calls,
        finish_reason=given.finish_reason or ("tool_calls" if calls else "stop"),
        reasoning="".join(given.reasoning),
        refusal="".join(given.refusal),
        logprobs=tuple(given.logprobs),
    )


def split(completion: Completion) -> tuple[Delta, ...]:
    """One Delta per choice, which an Accumulator adds up to `completion` again: to stream an answer that is whole."""
    return tuple(
        Delta(
            choice=i,
            text=choice.text,
            reasoning=choice.reasoning,
            refusal=choice.refusal,
            tool_calls=tuple(
                ToolCallDelta(j, call.id, call.name, call.arguments) for j, call in enumerate(choice.tool_calls)
            ),
            logprobs=choice.logprobs,
            finish_reason=choice.finish_reason,
            usage=None if i else completion.usage,
            model=None if i else completion.model or None,
            native=None if i else completion.native,
        )
        for i, choice in enumerate(completion.choices)
    )
