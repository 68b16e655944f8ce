"""A dataset as a folder: one JSON line for each row, and a data card, for programs (JSON) and people (Markdown).

    train.jsonl, calibration.jsonl, test.jsonl    `dataset.Row`s
    wrong.jsonl                                   `dataset.WrongRow`s, for preference tuning
    card.json, card.md                            what it is and how it was made

`card.json` is written last and holds the sha256 of the others, so a folder that was left half written is no dataset.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from smallfirst.backends.specialist import PromptTemplate
from smallfirst.errors import DataError
from smallfirst.learn.dataset import FILTERS, SPLITS, Dataset, Row, Split, WrongRow
from smallfirst.learn.packing import Example
from smallfirst.learn.prefer import Pair

T = TypeVar("T")
_CARD = "card.json"
_MAKE = "Make one with `smallfirst dataset TASK --out FOLDER`."
_WRONG = "wrong"
_BYTES_A_TOKEN = 4


class SplitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A split in numbers: `tokens` is estimated, at four bytes each; `labels` counts rows by how their answers are
    known to be right."""

    rows: int
    episodes: int
    prompt_bytes: int
    completion_bytes: int
    tokens: int
    labels: Mapping[str, int]


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What a dataset is and how it was made. `calls` = `removed` + rows; see `dataset.Dataset` for the counts.

    `source` says where the records came from, `scrubbing` how personal data was taken out of them. `first` and `last`
    are seconds since the epoch. `recorded_tokens` are input and output tokens as the calls' own models counted them.
    `parents` are hashes of what it was made from, `files` the sha256 of the files beside the card.
    """

    task: str
    source: str
    scrubbing: Mapping[str, Any]
    prompt: PromptTemplate
    settings: Mapping[str, Any]
    calls: int
    removed: Mapping[str, int]
    resolved: int
    forms: int
    models: Mapping[str, int]
    recorded_tokens: tuple[int, int]
    common: float
    first: float
    last: float
    splits: Mapping[str, SplitFacts]
    wrong: int
    leakage: Mapping[str, int]
    parents: Mapping[str, str]
    files: Mapping[str, str]


class Folder(msgspec.Struct, frozen=True):
    """A dataset read back. `sha256` is that of its card, and so stands for all of it."""

    card: Card
    splits: Mapping[Split, tuple[Row, ...]]
    wrong: tuple[WrongRow, ...]
    sha256: str

    def examples(self, split: Split) -> list[Example]:
        """The rows of a split as the trainer takes them."""
        return [row.example for row in self.splits[split]]

    def pairs(self) -> list[Pair]:
        """Right and wrong answers to the same training requests, for `prefer`."""
        right = {row.id: row.example for row in self.splits["train"]}
        return [
            Pair(found, Example(found.id, found.episode, found.prompt, wrong.completion))
            for wrong in self.wrong
            if (found := right.get(wrong.id)) is not None
        ]


def save(dataset: Dataset, folder: Path, *, source: str, scrubbing: Mapping[str, Any]) -> Card:
    """Writes the dataset into `folder`, in place of one that is there.

    Raises DataError for a folder that holds something else, or when it cannot be written (disk full).
    """
    parts: dict[str, Iterable[Any]] = {split: dataset.splits[split] for split in SPLITS}
    parts[_WRONG] = dataset.wrong
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / _CARD).exists() and not (folder / "train.jsonl").exists():
            raise DataError(f"{folder} holds something else.", hint="Name a folder that is empty or not there yet.")
        (folder / _CARD).unlink(missing_ok=True)
        files = {f"{name}.jsonl": _write(folder / f"{name}.jsonl", items) for name, items in parts.items()}
        card = _card(dataset, source, scrubbing, files)
        (folder / "card.md").write_text(markdown(card), encoding="utf-8")
        draft = folder / f"{_CARD}.tmp"
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(card)))
        draft.replace(folder / _CARD)
    except OSError as error:
        raise DataError(f"The dataset cannot be written to {folder}: {error.strerror or error}.") from error
    return card


def load(folder: Path) -> Folder:
    """Reads a dataset. Raises DataError when there is none, or when its files are not those that were written."""
    try:
        text = (folder / _CARD).read_bytes()
        card = msgspec.json.decode(text, type=Card)
        splits = {split: _read(folder, card, split, Row) for split in SPLITS}
        wrong = _read(folder, card, _WRONG, WrongRow)
    except FileNotFoundError:
        raise DataError(f"There is no dataset in {str(folder)!r}.", hint=_MAKE) from None
    except (OSError, msgspec.DecodeError, KeyError) as error:
        raise DataError(f"The dataset in {str(folder)!r} cannot be read: {error}.", hint=_MAKE) from error
    return Folder(card, splits, wrong, hashlib.sha256(text).hexdigest())


def _write(path: Path, items: Iterable[Any]) -> str:
    content = b"".join(msgspec.json.encode(item) + b"\n" for item in items)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _read(folder: Path, card: Card, name: str, kind: type[T]) -> tuple[T, ...]:
    content = (folder / f"{name}.jsonl").read_bytes()
    if hashlib.sha256(content).hexdigest() != card.files[f"{name}.jsonl"]:
        raise DataError(f"{folder / name}.jsonl is not what its card says.", hint="Make the dataset again.")
    decoder = msgspec.json.Decoder(kind)
    return tuple(decoder.decode(line) for line in content.splitlines())


def _card(dataset: Dataset, source: str, scrubbing: Mapping[str, Any], files: Mapping[str, str]) -> Card:
    settings = asdict(dataset.settings)
    prompt: PromptTemplate = settings.pop("prompt")
    ages = [row.created_at for row in dataset.rows]
    return Card(
        task=dataset.task,
        source=source,
        scrubbing=scrubbing,
        prompt=prompt,
        settings=settings,
        calls=dataset.calls,
        removed=dataset.removed,
        resolved=dataset.resolved,
        forms=dataset.forms,
        models=dataset.models,
        recorded_tokens=dataset.recorded_tokens,
        common=dataset.common,
        first=min(ages),
        last=max(ages),
        splits={split: _facts(dataset.splits[split]) for split in SPLITS},
        wrong=len(dataset.wrong),
        leakage=asdict(dataset.leakage),
        parents={"records": dataset.parent},
        files=files,
    )


def _facts(rows: tuple[Row, ...]) -> SplitFacts:
    prompts = sum(
        len((row.prompt if isinstance(row.prompt, str) else "".join(m["content"] for m in row.prompt)).encode())
        for row in rows
    )
    completions = sum(len(row.completion.encode()) for row in rows)
    return SplitFacts(
        rows=len(rows),
        episodes=len({row.episode for row in rows}),
        prompt_bytes=prompts,
        completion_bytes=completions,
        tokens=(prompts + completions) // _BYTES_A_TOKEN,
        labels=dict(Counter(row.label for row in rows)),
    )


def markdown(card: Card) -> str:
    """The card for people."""
    first, last = (time.strftime("%Y-%m-%d", time.gmtime(at)) for at in (card.first, card.last))
    kept = sum(split.rows for split in card.splits.values())
    about = (
        f"{kept} of {card.calls} calls, from {first} to {last}, out of {card.source}. Answers are by "
        f"{_list(card.models)}. The calls had {card.forms} different sets of tools and response formats."
    )
    beside = (
        f"{card.wrong} wrong answers to training requests are kept for preference tuning. As their own models counted, "
        f"the calls had {card.recorded_tokens[0]} input and {card.recorded_tokens[1]} output tokens."
    )
    lines = [
        f"# Dataset of the task {card.task}",
        "",
        about,
        "",
        "| split | rows | episodes | tokens (about) | labels |",
        "|---|---:|---:|---:|---|",
        *(f"| {name} | {s.rows} | {s.episodes} | {s.tokens} | {_list(s.labels)} |" for name, s in card.splits.items()),
        "",
        beside,
        "",
        f"## Prompt\n\n{_prompt(card.prompt)}",
        "",
        "## Left out",
        "",
        "| filter | calls | |",
        "|---|---:|---|",
        *(f"| {name} | {card.removed[name]} | {why} |" for name, why in FILTERS.items()),
        "",
        f"{card.resolved} requests had different answers of which one was chosen.",
        "",
        f"## Leakage\n\n{leakage(card)}",
        "",
        "## Made with",
        "",
        *(f"- {name}: {value}" for name, value in card.settings.items()),
        *(f"- scrubbing, {name}: {value}" for name, value in card.scrubbing.items()),
        *(f"- {name}, sha256: {value}" for name, value in card.parents.items()),
    ]
    return "\n".join(lines) + "\n"


def leakage(card: Card) -> str:
    """The check of the splits in a sentence."""
    found = card.leakage
    return (
        f"{found['split_episodes']} of {found['episodes']} episodes and {found['split_requests']} of "
        f"{found['requests']} requests stand in more than one split, and {found['split_near']} pairs of "
        f"near-duplicates cross them ({found['clusters']} clusters)."
    )


def _prompt(prompt: PromptTemplate) -> str:
    if prompt.kind == "full":
        return "The conversation in the model's chat template, with system prompt and tools."
    turns = f"The last {prompt.turns} messages" if prompt.turns else "All messages"
    return f"{turns} as lines `role: text`, {'with the' if prompt.system else 'without'} system prompt, without tools."


def _list(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name or 'unknown'} ({count})" for name, count in ordered) or "none"
