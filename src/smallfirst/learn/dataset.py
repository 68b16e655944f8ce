"""Stage: the recorded calls of one task become examples to train, calibrate and test a specialist on.

Scrubbed records go in. Of each call it is asked what the right answer is and how that is known (feedback, tools that
ran, or the large model's answer); calls without one, and those whose answer breaks a rule of its request, are left out
and counted. Requests that stand there several times are kept once. What hangs together, by episode or because the
requests are nearly the same, goes whole into one of the splits, which is checked afterwards by another way.

The splits hold rows (`Row`); `card` tells where they came from, and writes and reads the folder that later stages get.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from smallfirst.assignment import Assigner
from smallfirst.backends.specialist import PromptTemplate
from smallfirst.errors import ConfigError, DataError, SmallfirstError
from smallfirst.labels import Outcomes
from smallfirst.learn.near import Clusters, Near, crossings, near
from smallfirst.learn.packing import Example
from smallfirst.learn.scrub import ScrubbedRecord, encode
from smallfirst.learn.tasks import AUTO, Task, prompt_of_call
from smallfirst.learn.usable import (
    KINDS,
    Call,
    Kind,
    answered,
    body,
    brought_up_to,
    form_of,
    message,
    read,
    wrong_answers,
)
from smallfirst.types import Json, ResponseFormat, Tool

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
_PRUNED = PromptTemplate("pruned")

FILTERS: Mapping[str, str] = {
    "unreadable": "the request cannot be read",
    "too_long": "request and answer together are longer than the limit",
    "older": "more calls than are used; these are the oldest",
    "wrong": "known to be wrong, and no right answer is known",
    "unlabelled": "nothing tells whether the answer is right",
    "invalid": "the answer breaks a rule of its request, or is empty",
    "outdated": "the answer does not fit the newest form of its tools or response format",
    "unwritable": "the answer has what the schema does not list, which a constraint would not let a model write",
    "contradictory": "the same request has different answers, equally well known to be right",
    "outvoted": "the same request has another answer, better known or more often given",
    "duplicate": "the same request and answer stand there already",
    "near_duplicate": "nearly the same request with the same answer stands there already",
}
"""Why a call is left out, in the order in which it is asked."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a dataset is made.

    `prompt` is how the specialist will be asked. Calls of more than `most_bytes` (UTF-8 of prompt and answer; a token
    has about four) are left out, of the others the newest `most` are used. Requests whose texts are alike by `near`
    (see `near`) are near-duplicates. `calibration` and `test` are shares of the examples. Fewer than `least` examples
    are no dataset.
    """

    prompt: PromptTemplate = _PRUNED
    most_bytes: int = 8192
    most: int = 20_000
    near: float = 0.8
    calibration: float = 0.15
    test: float = 0.15
    least: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.calibration, self.test) <= 0 or self.calibration + self.test >= 1:
            raise ConfigError(
                f"The shares for calibration and test are {self.calibration!r} and {self.test!r}.",
                hint="Both are above 0, and together below 1.",
            )
        if not 0 < self.near <= 1:
            raise ConfigError(f"near is {self.near!r}.", hint="Allowed: above 0, at most 1.")


@dataclass(frozen=True, slots=True)
class Row:
    """A call with its right answer: `request` is a chat body, `answer` an assistant's message, and `label` tells how
    the answer is known to be right. `prompt` and `completion` are those of `packing.Example`."""

    id: str
    episode: str
    created_at: float
    label: Kind
    request: Json
    answer: Json
    prompt: str | tuple[Json, ...]
    completion: str

    @property
    def example(self) -> Example:
        return Example(self.id, self.episode, self.prompt, self.completion)


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A wrong answer to the request of the train row `id`, as text like that row's completion."""

    id: str
    completion: str


@dataclass(frozen=True, slots=True)
class Leakage:
    """How many were looked at (episodes, clusters of near-duplicates, requests), and how many of them, for
    near-duplicates pairs of requests, stand in more than one split."""

    episodes: int
    clusters: int
    requests: int
    split_episodes: int
    split_near: int
    split_requests: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """What was made. `removed` counts calls by the keys of FILTERS; with the rows they add up to `calls`.

    `resolved` counts the requests whose different answers could be decided between. `forms` is how many different
    sets of tools and response formats the calls had. `common`: see `near.Near`. `parent` is a hash of the records.
    """

    task: str
    settings: Settings
    splits: Mapping[Split, tuple[Row, ...]]
    wrong: tuple[WrongRow, ...]
    calls: int
    removed: Mapping[str, int]
    resolved: int
    forms: int
    models: Mapping[str, int]
    recorded_tokens: tuple[int, int]
    common: float
    leakage: Leakage
    parent: str

    @property
    def rows(self) -> Iterator[Row]:
        return (row for split in SPLITS for row in self.splits[split])


def build(
    task: str,
    records: Iterable[ScrubbedRecord],
    settings: Settings = Settings(),
    belongs: Callable[[ScrubbedRecord], bool] | None = None,
) -> Dataset:
    """The dataset of the calls that belong to `task`: by default those whose record names it.

    `records` are read once; those of other tasks tell what became of tool calls. The same records, settings and seed
    give the same dataset, in whatever order the records come. Raises DataError when there are too few calls, or too
    few that are independent of each other.
    """
    making = _Making(task, settings)
    belongs = belongs or (lambda record: record.task == task)
    agreed = making.agreed(making.current(making.newest(records, belongs)))
    found = near([call.text for call in agreed], [call.completion for call in agreed], settings.near)
    making.removed["near_duplicate"] = len(found.repeats)
    kept = [call for n, call in enumerate(agreed) if n not in found.repeats]
    if not making.calls:
        tasks = ", ".join(f"{name} ({count})" for name, count in making.others.most_common(5))
        raise DataError(f"There is no call of the task {task!r}.", hint=f"Tasks here: {tasks or 'none'}.")
    if len(kept) < settings.least:
        raise DataError(
            f"The task {task!r} has {len(kept)} usable calls of {making.calls}; {settings.least} are needed.",
            hint=f"Left out: {told(making.removed) or 'none'}.",
        )
    splits = making.split(_together(agreed, found))
    return Dataset(
        task=task,
        settings=settings,
        splits={split: tuple(map(_row, splits[split])) for split in SPLITS},
        wrong=tuple(WrongRow(call.record.id, text) for call in splits["train"] for text in wrong_answers(call)),
        calls=making.calls,
        removed=dict(making.removed),
        resolved=making.resolved,
        forms=len(making.forms),
        models=dict(Counter(call.model for call in kept)),
        recorded_tokens=(sum(c.record.input_tokens for c in kept), sum(c.record.output_tokens for c in kept)),
        common=found.common,
        leakage=check(splits, agreed, found, settings.near),
        parent=making.parent(),
    )


def belonging(tasks: Sequence[Task], wanted: str) -> Callable[[ScrubbedRecord], bool]:
    """Whether a record is a call of the task `wanted`: an id or name among `tasks`, else the callers' own word."""
    task = next((task for task in tasks if wanted in (task.id, task.name)), None)
    words = {wanted} if task is None else {task.id, task.name}
    assigner = Assigner({known.id: known.cells for known in tasks})

    def belongs(record: ScrubbedRecord) -> bool:
        if task is None or not record.task.startswith(AUTO):
            return record.task in words
        return assigner.task(prompt_of_call(record)) == task.id

    return belongs


def told(removed: Mapping[str, int]) -> str:
    """The counts in words: "3 wrong, 1 too long"."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in removed.items() if count)


def check(splits: Mapping[Split, Sequence[Call]], calls: Sequence[Call], found: Near, least: float) -> Leakage:
    """Looks for leaks in the splits as they are, whatever made them; `calls` are those that `found` is about.

    Raises DataError if there is one.
    """
    side: dict[str, str] = {call.record.id: split for split in SPLITS for call in splits[split]}
    episodes, requests = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for call in calls:
        if call.record.id in side:
            episodes[call.episode].add(side[call.record.id])
            requests[call.key].add(side[call.record.id])
    sides = [side.get(call.record.id) for call in calls]
    leakage = Leakage(
        episodes=len(episodes),
        clusters=len({cluster for cluster, where in zip(found.cluster, sides, strict=True) if where}),
        requests=len(requests),
        split_episodes=sum(len(where) > 1 for where in episodes.values()),
        split_near=crossings([call.text for call in calls], sides, least, found.common),
        split_requests=sum(len(where) > 1 for where in requests.values()),
    )
    if leakage.split_episodes or leakage.split_near or leakage.split_requests:
        raise DataError(f"The splits leak: {leakage}.", hint="This is a defect of smallfirst; please report it.")
    return leakage


@dataclass(slots=True)
class _Making:
    """The steps in order, and what they count."""

    task: str
    settings: Settings
    calls: int = 0
    resolved: int = 0
    removed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILTERS, 0))
    forms: set[bytes] = field(default_factory=set)
    outcomes: Outcomes = field(default_factory=Outcomes)
    others: Counter[str] = field(default_factory=Counter)
    hashes: list[bytes] = field(default_factory=list)

    def newest(self, records: Iterable[ScrubbedRecord], belongs: Callable[[ScrubbedRecord], bool]) -> list[Call]:
        """The newest readable calls, newest first."""
        calls = heapq.nlargest(self.settings.most, self._readable(records, belongs), key=_age)
        self.removed["older"] = self.calls - len(calls) - sum(self.removed.values())
        return calls

    def _readable(self, records: Iterable[ScrubbedRecord], belongs: Callable[[ScrubbedRecord], bool]) -> Iterator[Call]:
        for record in records:
            self.outcomes.learn_messages(record.episode, record.messages)
            if not belongs(record):
                self.others[record.task] += 1
                continue
            self.calls += 1
            try:
                self.hashes.append(hashlib.sha256(encode(record)).digest())
                call = read(record, self.settings.prompt)
                size = len(call.key.encode()) + len(msgspec.json.encode(record.answer))
            except (SmallfirstError, UnicodeEncodeError):  # a lone surrogate is no text
                self.removed["unreadable"] += 1
                continue
            if size <= self.settings.most_bytes:
                yield call
            else:
                self.removed["too_long"] += 1

    def current(self, calls: Iterable[Call]) -> Iterator[Call]:
        """Those of the calls, newest first, whose right answer is known and fits the newest tools and formats."""
        tools: dict[str, Tool] = {}
        forms: dict[tuple[str, str], ResponseFormat] = {}
        for call in calls:
            form = call.request.response_format
            for tool in call.request.tools:
                tools.setdefault(tool.name, tool)
            form = forms.setdefault((form.kind, form.name), form)
            self.forms.add(form_of(call.request))
            found = answered(call, self.outcomes)
            made = found if isinstance(found, str) else brought_up_to(found, tools, form, self.settings.prompt)
            if isinstance(made, str):
                self.removed[made] += 1
            else:
                yield made

    def agreed(self, calls: Iterable[Call]) -> list[Call]:
        """One call of each request: the newest of those with the answer that is best known, else most often given."""
        by_request: dict[str, list[Call]] = defaultdict(list)
        for call in calls:
            by_request[call.key].append(call)
        return [kept for same in by_request.values() if (kept := self._decided(same)) is not None]

    def _decided(self, same: Sequence[Call]) -> Call | None:
        best = min(KINDS.index(call.label) for call in same)
        votes = Counter(call.meaning for call in same if KINDS.index(call.label) == best)
        meaning, most = votes.most_common(1)[0]
        if 2 * most <= votes.total():
            self.removed["contradictory"] += len(same)
            return None
        kept = [call for call in same if call.meaning == meaning]
        self.removed["outvoted"] += len(same) - len(kept)
        self.removed["duplicate"] += len(kept) - 1
        self.resolved += len(kept) < len(same)
        return next(call for call in kept if KINDS.index(call.label) == best)

    def split(self, groups: Sequence[Sequence[Call]]) -> dict[Split, list[Call]]:
        """Whole groups, in an order drawn by the seed and their episodes alone, fill test, then calibration; a group
        that is larger than the room left goes to train. Each split is in order of age."""
        calls = sum(map(len, groups))
        shares: dict[Split, float] = {"test": self.settings.test, "calibration": self.settings.calibration}
        room = {split: max(1, round(share * calls)) for split, share in shares.items()}
        splits: dict[Split, list[Call]] = {split: [] for split in SPLITS}
        for group in sorted(groups, key=self._draw):
            fitting = (split for split in room if len(splits[split]) + len(group) <= room[split])
            splits[next(fitting, SPLITS[0])].extend(group)
        if empty := [split for split in SPLITS if not splits[split]]:
            raise DataError(
                f"The {calls} usable calls of the task {self.task!r} cannot be split: {' and '.join(empty)} would be "
                f"empty, since {max(map(len, groups))} of them hang together by episode or as near-duplicates.",
                hint="Record calls of more episodes.",
            )
        return {split: sorted(splits[split], key=_age) for split in SPLITS}

    def _draw(self, group: Sequence[Call]) -> bytes:
        name = min(call.episode for call in group)
        return hashlib.sha256(f"{self.settings.seed}\0{name}".encode()).digest()

    def parent(self) -> str:
        """A hash of the task's records, in whatever order they came."""
        return hashlib.sha256(b"".join(sorted(self.hashes))).hexdigest()


def _age(call: Call) -> tuple[float, str]:
    return call.record.created_at, call.record.id


def _together(calls: Sequence[Call], found: Near) -> list[list[Call]]:
    """The calls that are no repeats, in groups that hang together by episode or as near-duplicates."""
    together = Clusters(len(calls))
    first: dict[str, int] = {}
    kept = [n for n in range(len(calls)) if n not in found.repeats]
    for n in kept:
        together.join(first.setdefault(calls[n].episode, n), n)
        together.join(found.cluster[n], n)
    groups: dict[int, list[Call]] = defaultdict(list)
    for n in kept:
        groups[together.root(n)].append(calls[n])
    return list(groups.values())


def _row(call: Call) -> Row:
    record = call.record
    return Row(
        id=record.id,
        episode=call.episode,
        created_at=record.created_at,
        label=call.label,
        request=body(record),
        answer=message(call.right),
        prompt=call.prompt,
        completion=call.completion,
    )
