"""Examples as a trainer reads them: tokens, one after the other without padding, none of which sees another example's.

The calls of one conversation share its text: their prompts, of which each begins the next, are computed once, and their
answers branch off it. Each example counts its positions from 0 and sees its own prompt and answer only, so the loss is
that of the examples alone, whatever they are computed with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from smallfirst.errors import TrainError
from smallfirst.types import Json

if TYPE_CHECKING:
    from torch import Tensor

_WINDOW = 8  # steps among which batches of one size are looked for
_BLOCK = 128  # queries whose attention is computed at once: what none of them sees, later tokens, is left out


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


Group = Sequence[Encoded]
"""Examples whose prompts all begin the longest of them."""


@dataclass(frozen=True, slots=True)
class Block:
    """The queries `begin` to `end` of a batch, and which of the keys `first` to `end` each may see: bool (queries,
    keys)."""

    first: int
    begin: int
    end: int
    visible: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """N tokens: `ids` and `positions` (N,). Blocks hold all queries, in order. `wanted` (W,) are the places that have
    a target, `targets` (W,) the next tokens there, and `weights` (W,) what the loss counts."""

    ids: Tensor
    positions: Tensor
    blocks: tuple[Block, ...]
    wanted: Tensor
    targets: Tensor
    weights: Tensor

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def to(self, device: Any) -> Batch:
        """The same on a device."""
        blocks = tuple(replace(block, visible=block.visible.to(device)) for block in self.blocks)
        names = ("ids", "positions", "wanted", "targets", "weights")
        return replace(self, blocks=blocks, **{name: getattr(self, name).to(device) for name in names})


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


def together(examples: Sequence[Encoded], most_tokens: int) -> list[Group]:
    """The examples in groups, as large as they can be with at most so many tokens; a larger example stands alone."""
    groups: list[list[Encoded]] = []
    for example in sorted(examples, key=lambda e: e.prompt, reverse=True):
        last = groups[-1] if groups else [example]
        fits = last[0].prompt[: len(example.prompt)] == example.prompt
        if groups and fits and tokens_of(last) + len(example.completion) <= most_tokens:
            last.append(example)
        else:
            groups.append([example])
    return list(groups)


def tokens_of(group: Group) -> int:
    """How many tokens a group takes in a batch."""
    return _trunk(group) + sum(len(e.completion) for e in group)


def batches(groups: Sequence[Group], most_tokens: int) -> Iterator[list[Group]]:
    """Runs of groups of together at most so many tokens; a larger group stands alone."""
    batch: list[Group] = []
    taken = 0
    for group in groups:
        size = tokens_of(group)
        if batch and taken + size > most_tokens:
            yield batch
            batch, taken = [], 0
        batch.append(group)
        taken += size
    if batch:
        yield batch


def steps(order: random.Random, groups: Sequence[Group], most_tokens: int, abreast: int) -> Iterator[list[list[Group]]]:
    """All groups in random order, as `abreast` batches at a time, which are computed side by side and so are of about
    the same size; of together at most so many tokens, but for larger groups."""
    shuffled = order.sample(groups, len(groups))
    made = list(batches(shuffled, max(1, most_tokens // abreast)))
    window = _WINDOW * abreast
    for at in range(0, len(made), window):
        near = sorted(made[at : at + window], key=lambda batch: sum(map(tokens_of, batch)))
        made_steps = [near[n : n + abreast] for n in range(0, len(near), abreast)]
        yield from order.sample(made_steps, len(made_steps))


def to_tensors(groups: Sequence[Group]) -> Batch:
    """The groups one after the other; their targets stand in the order of the examples.

    Of each group comes first its trunk, the longest prompt without its last token. Then, for each example, the last
    token of its prompt and its answer but for the end token, which see the trunk as far as that prompt goes.
    """
    import torch

    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for group in groups:
        trunk = max((e.prompt for e in group), key=len)[:-1]
        ids += trunk
        positions += range(len(trunk))
        for example in group:
            start, length = len(example.prompt) - 1, len(example.completion)
            wanted += range(len(ids), len(ids) + length)
            ids += [example.prompt[-1], *example.completion[:-1]]
            positions += range(start, start + length)
    examples = [example for group in groups for example in group]
    return Batch(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        blocks=tuple(_blocks(groups)),
        wanted=torch.tensor(wanted),
        targets=torch.tensor([token for e in examples for token in e.completion]),
        weights=torch.tensor([e.weight for e in examples for _ in e.completion]),
    )


def _blocks(groups: Sequence[Group]) -> Iterator[Block]:
    first = 0
    for run in batches(groups, _BLOCK):  # small groups share a block
        visible = _visible(run)
        for begin in range(0, len(visible), _BLOCK):
            end = min(begin + _BLOCK, len(visible))
            yield Block(first, first + begin, first + end, visible[begin:end, :end])
        first += len(visible)


def _visible(groups: Sequence[Group]) -> Tensor:
    """Which of the groups' tokens (columns) each of them (rows) may see."""
    import torch

    size, at = sum(map(tokens_of, groups)), 0
    seen = torch.zeros(size, size, dtype=torch.bool)
    for group in groups:
        begin, at = at, at + _trunk(group)
        seen[begin:at, begin:at] = True
        for example in group:
            end = at + len(example.completion)
            seen[at:end, begin : begin + len(example.prompt) - 1] = True
            seen[at:end, at:end] = True
            at = end
    return seen.tril_()


def _trunk(group: Group) -> int:
    return max(len(e.prompt) for e in group) - 1
