"""Recurring tasks in a mixed log: find them, count what each costs, and keep their identity while the log grows.

A task is a set of cells (`smallfirst.assignment`), so whether a call is its is decided in the same way here and online.
`find` looks for cells in a sample of the calls and gives a task that was known before its cells anew, when most of its
calls are in them. What a person decided (`merge`, `split`) is settled: such a task keeps its cells.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from smallfirst.assignment import Assigner, Cell, Prompt, cells_from_json, cells_to_json, prompt_of
from smallfirst.errors import ConfigError, NotFoundError
from smallfirst.learn.answers import Answers
from smallfirst.learn.cells import Group, bounded, find_groups, split_by_words
from smallfirst.learn.naming import Traits, suggest_names, traits_of
from smallfirst.store import TaskRow
from smallfirst.types import Json, total_usd

AUTO = "auto:"
_SAMPLE = 4000
_SAME_TASK = 0.3
_MONTH_S = 365.25 / 12 * 86400
_LEAST_SPAN_S = 86400.0


class Call(Protocol):
    """A recorded call, as `ScrubbedRecord` is one. `messages`, `tools`, `response_format` and `answer` (the assistant's
    message) are OpenAI chat objects; `task` is the caller's own word, none when it is empty or begins with "auto:".
    """

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> float: ...
    @property
    def task(self) -> str | None: ...
    @property
    def episode(self) -> str | None: ...
    @property
    def messages(self) -> Sequence[Json]: ...
    @property
    def tools(self) -> Sequence[Json]: ...
    @property
    def response_format(self) -> Json | None: ...
    @property
    def answer(self) -> Json | None: ...
    @property
    def correct(self) -> bool | None: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cost_usd(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Task:
    """A recurring task. `settled`: its cells are a person's decision and are kept as they are. A task that callers name
    themselves has their word for its id and may be without cells."""

    id: str
    name: str
    cells: tuple[Cell, ...]
    created_at: float
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """What the calls of a task, or those of none (`task` None), are and cost.

    `labelled` calls are known to be correct or not, `correct` of them are. `cost_usd` is None when the price of a call
    is unknown; `cost_month_usd` extrapolates it from the span of the whole log, None below a day. `share_*` are of the
    whole log. `schemas` suggests a JSON Schema for each form of answer: by tool name, and "" for answers in JSON.
    """

    task: str | None
    name: str
    calls: int = 0
    episodes: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0
    cost_month_usd: float | None = None
    share_calls: float = 0.0
    share_tokens: float = 0.0
    share_cost: float | None = None
    labelled: int = 0
    correct: int = 0
    schemas: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """`tasks` as they are to be kept; `figures` of those that calls belong to, the dearest first, then of the calls
    that belong to none; `task_of` gives each call's task id, or None, in the order of the calls."""

    tasks: tuple[Task, ...]
    figures: tuple[Figures, ...]
    task_of: tuple[str | None, ...]

    @property
    def outliers(self) -> float:
        """The share of calls that belong to no task."""
        return self.task_of.count(None) / len(self.task_of) if self.task_of else 0.0

    def of(self, task: str) -> Figures | None:
        """The figures of a task; None when no call belongs to it."""
        return next((figures for figures in self.figures if figures.task == task), None)


def row_of(task: Task, figures: Figures | None = None) -> TaskRow:
    """The task as the store keeps it, with figures if they are known."""
    counted = asdict(figures) if figures else {}
    return TaskRow(task.id, task.name, task.settled, cells_to_json(task.cells), task.created_at, counted)


def task_of_row(row: TaskRow) -> Task:
    """The task that the store kept."""
    return Task(row.id, row.name, cells_from_json(row.model), row.created_at, row.settled)


def figures_of_row(row: TaskRow) -> Figures:
    """The figures kept with a task; none but its id and name when its calls were never counted."""
    return Figures(**{**row.figures, "task": row.id, "name": row.name})


def by_cost(figures: Iterable[Figures]) -> tuple[Figures, ...]:
    """The dearest first; the calls that belong to no task last."""
    return tuple(sorted(figures, key=lambda f: (f.task is None, -(f.cost_usd or 0.0), -f.calls, f.name)))


def merged_figures(parts: Sequence[Figures]) -> Figures:
    """The sums of what several tasks came to, under the first one's id and name.

    Episodes that several of them are part of count for each; schemas of the same form are the first one's.
    """
    return replace(
        parts[0],
        calls=sum(part.calls for part in parts),
        episodes=sum(part.episodes for part in parts),
        input_tokens=sum(part.input_tokens for part in parts),
        output_tokens=sum(part.output_tokens for part in parts),
        cost_usd=total_usd(part.cost_usd for part in parts),
        cost_month_usd=total_usd(part.cost_month_usd for part in parts),
        share_calls=sum(part.share_calls for part in parts),
        share_tokens=sum(part.share_tokens for part in parts),
        share_cost=total_usd(part.share_cost for part in parts),
        labelled=sum(part.labelled for part in parts),
        correct=sum(part.correct for part in parts),
        schemas={form: schema for part in reversed(parts) for form, schema in part.schemas.items()},
    )


@dataclass(frozen=True, slots=True)
class _Sampled:
    """What of a call is held in memory while tasks are found. `word` is the caller's own for the task."""

    prompt: Prompt
    word: str | None
    traits: Traits


def find(calls: Iterable[Call], known: Sequence[Task] = (), *, least_calls: int = 10, seed: int = 0) -> Found:
    """The recurring tasks of `calls`, which are read twice: a list, or an object that can be iterated anew.

    A group of fewer than `least_calls` calls (of a sample of 4,000) is no task. The same calls give the same tasks.
    Raises ConfigError when a library of the `learn` extra is missing or `least_calls` is under 2.
    """
    if least_calls < 2:
        raise ConfigError(f"least_calls is {least_calls!r}; a task recurs, so at least 2 calls are allowed.")
    sample = _sample(calls, seed)
    settled = Assigner({task.id: task.cells for task in known if task.settled})
    free = [n for n, call in enumerate(sample) if settled.task(call.prompt) is None]
    groups = find_groups([sample[n].prompt for n in free], least_calls=least_calls, seed=seed)
    groups = [Group(g.cells, tuple(free[n] for n in g.members)) for g in groups]
    outliers = set(free).difference(*(group.members for group in groups))
    grouped = [call.prompt for n, call in enumerate(sample) if n not in outliers]
    return count(_bounded(_identified(groups, sample, known), grouped), calls)


def prompt_of_call(call: Call) -> Prompt:
    """The prompt of a recorded call."""
    functions = (tool.get("function") for tool in call.tools)
    tools = ((str(f.get("name")), f.get("parameters")) for f in functions if isinstance(f, Mapping))
    return prompt_of(call.messages, tools, _schema(call.response_format))


def count(tasks: Sequence[Task], calls: Iterable[Call]) -> Found:
    """What the calls of known tasks are and cost, in one reading; no others are looked for.

    A caller's word that is no task's becomes a task without cells.
    """
    assigner = Assigner({task.id: task.cells for task in tasks})
    by_word = {word: task.id for task in tasks for word in (task.name, task.id)}
    kept = {task.id: task for task in tasks}
    tallies: dict[str | None, _Tally] = defaultdict(_Tally)
    task_of = []
    for call in calls:
        word = _callers_word(call)
        if word is not None and word not in by_word:
            by_word[word] = word
            kept[word] = Task(word, word, (), time.time())
        task = by_word[word] if word is not None else assigner.task(prompt_of_call(call))
        tallies[task].add(call)
        task_of.append(task)
    return Found(tuple(kept.values()), _figures(tallies, kept), tuple(task_of))


def merge(tasks: Sequence[Task], ids: Sequence[str]) -> tuple[Task, ...]:
    """`tasks` with those of `ids` made one, which keeps the first one's id and name.

    Raises NotFoundError for an unknown task, ConfigError for fewer than two.
    """
    merged = list({task.id: task for task in (_one(tasks, wanted) for wanted in ids)}.values())
    if len(merged) < 2:
        raise ConfigError(f"Merging needs two different tasks; given are {list(ids)!r}.")
    whole = replace(merged[0], cells=tuple(cell for task in merged for cell in task.cells), settled=True)
    return tuple(whole if task is merged[0] else task for task in tasks if task not in merged[1:])


def split(tasks: Sequence[Task], task_id: str, calls: Iterable[Call], *, least_calls: int = 10) -> tuple[Task, ...]:
    """`tasks` with one of them taken apart: into its cells if it has several, else by what its users said.

    The largest part keeps the id and the name. Raises NotFoundError for an unknown task, ConfigError when its calls
    show no parts.
    """
    whole = _one(tasks, task_id)
    if not whole.cells:
        raise ConfigError(f"The calls of the task {whole.name!r} name it themselves; let them name its parts.")
    assigner = Assigner({task.id: task.cells for task in tasks})
    everything = [call for call in _sample(calls, 0) if assigner.task(call.prompt) is not None]
    sample = [call for call in everything if assigner.task(call.prompt) == whole.id]
    prompts = [call.prompt for call in sample]
    if len(whole.cells) > 1:
        own = Assigner({cell.id: [cell] for cell in whole.cells})
        of = [own.task(prompt) for prompt in prompts]
        groups = [Group((cell,), tuple(n for n, c in enumerate(of) if c == cell.id)) for cell in whole.cells]
    else:
        groups = split_by_words(prompts, range(len(prompts)), least_calls=least_calls, like=whole.cells[0])
    if len(groups) < 2:
        raise ConfigError(
            f"The {len(sample)} calls of the task {whole.name!r} show no parts of {least_calls!r} calls or more.",
            hint="Allow smaller parts, or let it be one task.",
        )
    groups = sorted(groups, key=lambda group: -len(group.members))
    taken = {word for task in tasks for word in (task.id, task.name)}
    parts = [replace(whole, cells=groups[0].cells, settled=True)]
    parts += [replace(_new_task(group, sample, taken), settled=True) for group in groups[1:]]
    others = [task for task in tasks if task is not whole]
    return tuple(_bounded([*others, *parts], (call.prompt for call in everything)))


def rename(tasks: Sequence[Task], task_id: str, new: str) -> tuple[Task, ...]:
    """`tasks` with one of them named `new`. Raises NotFoundError, and ConfigError for a name that is taken or empty."""
    renamed = _one(tasks, task_id)
    if not new.strip() or any(new in (task.id, task.name) for task in tasks if task is not renamed):
        raise ConfigError(f"The name {new!r} is empty or taken.", hint="Names of tasks differ from each other.")
    return tuple(replace(task, name=new) if task is renamed else task for task in tasks)


def _one(tasks: Sequence[Task], wanted: str) -> Task:
    """The task of that id or name."""
    for task in tasks:
        if wanted in (task.id, task.name):
            return task
    raise NotFoundError(f"There is no task {wanted!r}.", hint="`smallfirst tasks list` shows their ids and names.")


def _sample(calls: Iterable[Call], seed: int) -> list[_Sampled]:
    """At most 4,000 calls in their order, each as likely as any other (Vitter 1985, algorithm R)."""
    rng = random.Random(seed)
    kept: dict[int, tuple[int, _Sampled]] = {}
    for n, call in enumerate(calls):
        place = n if n < _SAMPLE else rng.randrange(n + 1)
        if place < _SAMPLE:
            kept[place] = (n, _Sampled(prompt_of_call(call), _callers_word(call), traits_of(call)))
    return [sampled for _, sampled in sorted(kept.values(), key=lambda pair: pair[0])]


def _schema(response_format: Json | None) -> Any:
    asked = (response_format or {}).get("json_schema")
    return asked.get("schema") if isinstance(asked, Mapping) else None


def _callers_word(call: Call) -> str | None:
    return call.task if call.task and not call.task.startswith(AUTO) else None


def _identified(groups: Sequence[Group], sample: Sequence[_Sampled], known: Sequence[Task]) -> list[Task]:
    """A task for each group: the known one that most of its calls belonged to, else a new one.

    A known task whose calls all went to others is gone; one that no call looks like is kept.
    """
    before = Assigner({task.id: task.cells for task in known})
    was = [before.task(call.prompt) for call in sample]
    by_id = {task.id: task for task in known}
    same = _matched(groups, was, {task.id for task in known if not task.settled})
    taken = {word for task in known for word in (task.id, task.name)}
    seen = set(was)
    tasks = [task for task in known if task.settled or task.id not in seen]
    for n, group in enumerate(groups):
        if n in same:
            tasks.append(replace(by_id[same[n]], cells=group.cells))
        else:
            tasks.append(_new_task(group, sample, taken))
    return tasks


def _bounded(tasks: Sequence[Task], prompts: Iterable[Prompt]) -> list[Task]:
    cells = bounded({task.id: task.cells for task in tasks}, prompts)
    return [replace(task, cells=cells[task.id]) for task in tasks]


def _matched(groups: Sequence[Group], was: Sequence[str | None], free: set[str]) -> dict[int, str]:
    """For groups by place, the id of the known task they go on: one each, so that the overlaps are largest in sum."""
    from scipy.optimize import linear_sum_assignment

    sizes = Counter(task for task in was if task in free)
    ids = sorted(sizes)
    if not ids or not groups:
        return {}
    scores = []
    for group in groups:
        shared = Counter(was[n] for n in group.members)
        scores.append([shared[i] / (len(group.members) + sizes[i] - shared[i]) for i in ids])
    pairs = zip(*linear_sum_assignment(scores, maximize=True), strict=True)
    return {int(row): ids[column] for row, column in pairs if scores[row][column] >= _SAME_TASK}


def _new_task(group: Group, sample: Sequence[_Sampled], taken: set[str]) -> Task:
    """A task with an id of its cell's and a name of its own, or its callers' word; both are added to `taken`."""
    members = [sample[n] for n in group.members]
    words = Counter(call.word for call in members if call.word is not None)
    for word, uses in words.most_common(1):
        if word not in taken and uses >= _SAME_TASK * len(members):
            taken.add(word)
            return Task(word, word, group.cells, time.time())
    cell = group.cells[0]
    names = suggest_names([call.traits for call in members], [call.traits for call in sample], cell.template)
    return Task(_free([f"t-{cell.id}"], taken), _free(names, taken), group.cells, time.time())


def _free(words: Sequence[str], taken: set[str]) -> str:
    """The first of `words` that is not taken, else the first with a number; added to `taken`."""
    numbered = (f"{words[0]}-{number}" for number in itertools.count(2))
    free = next(word for word in itertools.chain(words, numbered) if word not in taken)
    taken.add(free)
    return free


class _Tally:
    """Sums over the calls of a task."""

    def __init__(self) -> None:
        self.calls = self.input_tokens = self.output_tokens = self.labelled = self.correct = 0
        self.cost_usd: float | None = 0.0
        self.episodes: set[str] = set()
        self.first, self.last = math.inf, -math.inf
        self.answers = Answers()

    def add(self, call: Call) -> None:
        self.calls += 1
        self.input_tokens += call.input_tokens
        self.output_tokens += call.output_tokens
        self.cost_usd = total_usd((self.cost_usd, call.cost_usd))
        self.labelled += call.correct is not None
        self.correct += call.correct is True
        self.first, self.last = min(self.first, call.created_at), max(self.last, call.created_at)
        if call.episode is not None:
            self.episodes.add(call.episode)
        self.answers.add(call.answer)

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def _figures(tallies: Mapping[str | None, _Tally], tasks: Mapping[str, Task]) -> tuple[Figures, ...]:
    """The dearest first; the calls that belong to no task last."""
    everything = list(tallies.values())
    calls, tokens = sum(t.calls for t in everything), sum(t.tokens for t in everything)
    cost = total_usd(t.cost_usd for t in everything)
    span = max((t.last for t in everything), default=0.0) - min((t.first for t in everything), default=0.0)
    months = span / _MONTH_S if span >= _LEAST_SPAN_S else None
    found = [
        Figures(
            task=task,
            name=tasks[task].name if task is not None else "",
            calls=tally.calls,
            episodes=len(tally.episodes),
            input_tokens=tally.input_tokens,
            output_tokens=tally.output_tokens,
            cost_usd=tally.cost_usd,
            cost_month_usd=tally.cost_usd / months if months and tally.cost_usd is not None else None,
            share_calls=tally.calls / calls,
            share_tokens=tally.tokens / tokens if tokens else 0.0,
            share_cost=tally.cost_usd / cost if cost and tally.cost_usd is not None else None,
            labelled=tally.labelled,
            correct=tally.correct,
            schemas=tally.answers.schemas() if task is not None else {},
        )
        for task, tally in tallies.items()
    ]
    return by_cost(found)
