"""Examples as a trainer reads them: tokens, packed into rows in which no example sees another.

Padding a batch to its longest example wastes most of it. Here examples fill rows one after the other; each counts its
positions from 0 and sees itself only, so the loss is that of the examples alone, whatever they are packed with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smallfirst.errors import TrainError
from smallfirst.types import Json

if TYPE_CHECKING:
    from torch import Tensor

_WINDOW = 64  # examples among which rows are filled
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Example:
    """What a specialist is shown and what it must generate.

    `prompt` is the text exactly as the engine reads it, or chat messages that the model's own chat template makes into
    it. `completion` is the answer without the end token (`specialist.answer_text`). `weight` > 0 scales its loss.
    Examples of one `episode` never stand on both sides of a split.
    """

    id: str
    episode: str
    prompt: str | tuple[Json, ...]
    completion: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example's tokens; the completion ends with the model's end token."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    weight: float

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows, all tensors (rows, length) but `visible` (rows, length, length): row may see column.

    `targets` is the next token where there is a loss, else -100, `weights` what the loss counts there. `tokens` is
    the number of tokens that are not padding.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    targets: Tensor
    weights: Tensor
    tokens: int

    @property
    def wanted(self) -> Tensor:
        return self.targets != _IGNORED


def encode(examples: Sequence[Example], tokenizer: Any, limit: int) -> list[Encoded]:
    """Tokens of the examples that are at most `limit` long. Raises TrainError when none is left."""
    made = []
    for example in examples:
        if isinstance(example.prompt, str):
            prompt = tokenizer.encode(example.prompt)
        else:
            text = tokenizer.apply_chat_template(list(example.prompt), tokenize=False, add_generation_prompt=True)
            prompt = tokenizer.encode(text)
        completion = [*tokenizer.encode(example.completion, add_special_tokens=False), tokenizer.eos_token_id]
        made.append(Encoded(tuple(prompt), tuple(completion), example.weight))
    fitting = [e for e in made if len(e) <= limit]
    if not fitting:
        raise TrainError(
            f"None of the {len(made)} examples has at most {limit} tokens.",
            hint="Give examples, prune their prompts or raise `longest`.",
        )
    return fitting


def packed(examples: Sequence[Encoded], row: int, shuffle: random.Random | None = None) -> list[list[Encoded]]:
    """Rows of examples, each filled up to `row` tokens; a longer example has a row of its own.

    Windows of shuffled examples are filled first-fit by decreasing length; without `shuffle` the given order is kept
    as far as this goes.
    """
    order = list(examples)
    if shuffle:
        shuffle.shuffle(order)
    rows: list[list[Encoded]] = []
    for start in range(0, len(order), _WINDOW):
        window: list[list[Encoded]] = []
        for example in sorted(order[start : start + _WINDOW], key=len, reverse=True):
            fitting = (r for r in window if sum(map(len, r)) + len(example) <= row)
            target = next(fitting, None)
            if target is None:
                window.append([example])
            else:
                target.append(example)
        if shuffle:
            shuffle.shuffle(window)
        rows += window
    return rows


def batches(rows: Sequence[Sequence[Encoded]], most_tokens: int) -> Iterator[list[Sequence[Encoded]]]:
    """Runs of rows that, padded to the longest, have at most `most_tokens`; a longer row stands alone."""
    batch: list[Sequence[Encoded]] = []
    for row in rows:
        longest = max(sum(map(len, r)) for r in [*batch, row])
        if batch and longest * (len(batch) + 1) > most_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def to_tensors(rows: Sequence[Sequence[Encoded]]) -> Batch:
    """The rows as tensors, padded on the right to the longest."""
    import torch

    length = max(sum(map(len, row)) for row in rows)
    shape = (len(rows), length)
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    targets, weights = torch.full(shape, _IGNORED), torch.zeros(shape)
    owner = torch.full(shape, -1)
    for i, row in enumerate(rows):
        at = 0
        for j, example in enumerate(row):
            end, answer = at + len(example), at + len(example.prompt) - 1
            ids[i, at:end] = torch.tensor([*example.prompt, *example.completion])
            positions[i, at:end] = torch.arange(len(example))
            targets[i, answer : end - 1] = torch.tensor(example.completion)
            weights[i, answer : end - 1] = example.weight
            owner[i, at:end] = j
            at = end
    visible = (owner[:, :, None] == owner[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    return Batch(ids, positions, visible, targets, weights, int((owner >= 0).sum()))
