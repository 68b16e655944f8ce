"""The main job, shown: real function-calling questions through a running gateway, scored against their gold answers.

BFCL v4 live questions are sent with the official `openai` client; each record gets its verdict as feedback, as any
application can give it; the table is the report over those records. Starting the gateway is the caller's work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from smallfirst import bfcl, report
from smallfirst.bfcl import Question
from smallfirst.demo.client import connected
from smallfirst.report import Report
from smallfirst.store import RecordFilter, RecordSummary, Store
from smallfirst.types import ToolCall

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

ToolChoiceMode = Literal["auto", "required"]
LABEL = "bfcl gold"
MAX_TOKENS = 256
"""Longer than all but a few gold answers; keeps a model that does not come to an end from taking the time of many."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one question: right or not and why not, and the record that tells more.

    `failure` is set when the call itself failed, which counts as a wrong answer; `record_id` is None where the gateway
    named no record. `seconds` is the call's time as the client saw it.
    """

    question: Question
    correct: bool
    error: str | None
    failure: str | None
    record_id: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """A failed call that left no record, as the report counts it: asked, not answered, not right."""

    task: str
    seconds: float
    served: None = None
    correct: bool = False
    cost_usd: float = 0.0
    cost_usd_local_free: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    valid_first: bool = False
    executable: bool = False
    escalated: bool = False
    cached: bool = False
    by_small: bool = False
    pair: None = None
    afterwards_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Answered:
    """The report over the demo's calls, and what came of each question."""

    report: Report
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> list[dict[str, str | None]]:
        """The calls that failed."""
        return [
            {"question": outcome.question.id, "record": outcome.record_id, "failure": outcome.failure}
            for outcome in self.outcomes
            if outcome.failure is not None
        ]

    def to_json(self) -> dict[str, Any]:
        """The report's rows and the failures."""
        return {"rows": report.to_rows(self.report), "failures": self.failures}


async def run(
    store: Store,
    base_url: str,
    api_key: str,
    console: Console,
    *,
    where: str,
    opened_by: str = "",
    n: int = 60,
    seconds: float = 150,
    seed: int = 0,
    tool_choice: ToolChoiceMode = "required",
) -> Answered:
    """Asks `n` questions of the gateway at `base_url` (up to and with /v1), or as many as `seconds` allow, and prints
    what came of them.

    With `tool_choice` "required" only questions that want a call are drawn; "auto" adds those that no function fits.

    `store` is the one that the gateway records in, `where` says in words where that is, and `opened_by` gives the
    options by which other commands open it ("--config demo.toml", say). Raises ModelFileError when the questions cannot
    be fetched and ConfigError without the `openai` client.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        questions = await asyncio.to_thread(_questions, progress, n, seed, tool_choice)
        bar = progress.add_task("asking", total=len(questions))
        right = 0

        def on_progress(outcome: Outcome) -> None:
            nonlocal right
            right += outcome.correct
            progress.update(bar, advance=1, description=f"asking for {seconds:g} s at most, {right} right")

        since, ask = time.time(), partial(run_questions, base_url, api_key, questions, tool_choice=tool_choice)
        outcomes = await ask(seconds=seconds, on_progress=on_progress)
    result = report.summarise(await _calls(store, outcomes, since), label=LABEL)
    answered = Answered(result, tuple(outcomes))
    _show(console, answered, where, opened_by)
    return answered


async def run_questions(
    base_url: str,
    api_key: str,
    questions: Sequence[Question],
    *,
    seconds: float,
    tool_choice: ToolChoiceMode,
    on_progress: Callable[[Outcome], None],
) -> list[Outcome]:
    """Asks `questions` one after the other, begins none after `seconds`, and posts each verdict as feedback.

    A call that fails is an outcome with `failure`. Raises ConfigError when the `openai` package is not installed.
    """
    outcomes: list[Outcome] = []
    until = time.monotonic() + seconds
    async with connected(base_url, api_key) as client:
        for question in questions:
            if time.monotonic() >= until:
                break
            outcome = await _ask(client, question, tool_choice)
            if outcome.record_id is not None:
                await _label(client, outcome.record_id, outcome.correct)
            outcomes.append(outcome)
            on_progress(outcome)
    return outcomes


def task_name(category: str) -> str:
    """The task under which the demo's questions of a category are recorded."""
    return f"bfcl:{category}"


async def _ask(client: AsyncOpenAI, question: Question, tool_choice: ToolChoiceMode) -> Outcome:
    import openai

    messages: Any = question.messages
    tools: Any = bfcl.tools(question.functions) or openai.omit
    started = time.monotonic()
    headers: Mapping[str, str] = {}
    calls: tuple[ToolCall, ...] = ()
    failure = None
    try:
        response = await client.chat.completions.with_raw_response.create(
            model="auto",
            messages=messages,
            tools=tools,
            tool_choice=tool_choice if question.functions else openai.omit,
            temperature=0,
            max_tokens=MAX_TOKENS,
            extra_headers={"x-smallfirst-task": task_name(question.category)},
        )
        headers, calls = response.headers, _tool_calls(response.parse())
    except openai.APIError as error:
        failure = error.message
        if isinstance(error, openai.APIStatusError):
            headers = error.response.headers
    seconds = time.monotonic() - started
    score = bfcl.score(calls, question.gold, question.functions, question.category)
    correct = score.correct and failure is None
    return Outcome(question, correct, failure or score.error, failure, headers.get("x-smallfirst-record"), seconds)


def _tool_calls(completion: ChatCompletion) -> tuple[ToolCall, ...]:
    calls = completion.choices[0].message.tool_calls or ()
    return tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in calls if c.type == "function")


async def _label(client: AsyncOpenAI, record_id: str, correct: bool) -> None:
    verdict = {"record_id": record_id, "kind": "correct", "value": correct, "source": LABEL}
    await client.post("/feedback", cast_to=object, body=verdict)


def _questions(progress: Progress, n: int, seed: int, tool_choice: ToolChoiceMode) -> tuple[Question, ...]:
    fetching = progress.add_task("fetching the questions", total=None)

    def downloaded(_: str, done: int, total: int) -> None:
        progress.update(fetching, completed=done, total=total or None)

    categories = bfcl.WANTING_CALLS if tool_choice == "required" else bfcl.LIVE
    questions = bfcl.sample(bfcl.load(bfcl.fetch(downloaded), categories), n, seed)
    progress.remove_task(fetching)
    return questions


async def _calls(store: Store, outcomes: Sequence[Outcome], since: float) -> list[RecordSummary | Unrecorded]:
    ours = {outcome.record_id for outcome in outcomes}
    calls: list[RecordSummary | Unrecorded] = [
        summary async for summary in store.summaries(RecordFilter(since=since)) if summary.id in ours
    ]
    recorded = {call.id for call in calls if isinstance(call, RecordSummary)}
    calls += [Unrecorded(task_name(o.question.category), o.seconds) for o in outcomes if o.record_id not in recorded]
    return calls


def _show(console: Console, answered: Answered, where: str, opened_by: str) -> None:
    console.print(report.render(answered.report))
    failures, outcomes = answered.failures, answered.outcomes
    lines = [f"{len(failures)} of {len(outcomes)} calls failed and count as wrong:"] if failures else []
    lines += [f"  {failure['question']}: {failure['failure']}" for failure in failures]
    example = next((o.record_id for o in outcomes if o.record_id and not o.correct), None) or "ID"
    lines += ["", f"The records are in {where}. Look at them:"]
    for command in (f"records list --task {task_name('live_simple')}", f"records show {example}", "report"):
        lines.append(f"  smallfirst {command} {opened_by}".rstrip())
    console.print(escape("\n".join(lines)), highlight=False, soft_wrap=True)
