"""Preference tuning: an adapter learns to prefer right answers to the wrong ones that were given.

Direct preference optimisation (Rafailov et al. 2023, eq. 7) on top of a trained adapter, which is the reference:

    loss = -log sigmoid(beta * ((log p(right) - log p_ref(right)) - (log p(wrong) - log p_ref(wrong))))

with log p the sum over the answer's tokens. The pairs are the wrong answers that validators and audits found beside
what was right. The reference's values are computed once, so no second model is kept in memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallfirst.errors import TrainError
from smallfirst.extra import need
from smallfirst.learn.adapter import load_adapter, logits_of
from smallfirst.learn.base import Base
from smallfirst.learn.packing import Example, Group, encode, to_tensors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt: `right.completion` is to be preferred to `wrong.completion`."""

    right: Example
    wrong: Example


@dataclass(frozen=True, slots=True)
class PreferConfig:
    """`beta` holds the adapter to its reference: the smaller, the further it may go. A step takes `pairs` pairs."""

    beta: float = 0.1
    learning_rate: float = 1e-4
    epochs: int = 1
    pairs: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Preferred:
    """The adapter's folder; of the last epoch the mean loss (log 2 = 0.69 at the start) and the share of pairs whose
    right answer had gained on the wrong one."""

    folder: Path
    loss: float
    gained: float


def prefer(
    base: Base, start: Path, pairs: Sequence[Pair], folder: Path, config: PreferConfig = PreferConfig()
) -> Preferred:
    """Tunes the adapter in `start` on `pairs` into `folder`.

    Raises TrainError without pairs, or when the loss is no longer finite, and ConfigError (`learn` is not installed).
    """
    torch = need("torch")
    torch.manual_seed(config.seed)
    if not pairs:
        raise TrainError("There are no pairs to learn a preference from.")
    tokenizer = base.tokenizer()
    rows = [encode([pair.right, pair.wrong], tokenizer, limit=1 << 20) for pair in pairs]
    model = load_adapter(base, start, trainable=True)
    logits = logits_of(model)
    with torch.no_grad():
        references = [_gap(logits, [row])[0] for row in rows]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)
    order, mean, ordered = list(range(len(rows))), math.log(2), 0
    for epoch in range(config.epochs):
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        total, ordered = 0.0, 0
        for at in range(0, len(order), config.pairs):
            picked = order[at : at + config.pairs]
            gained = _gap(logits, [rows[i] for i in picked]) - torch.stack([references[i] for i in picked])
            loss = -torch.nn.functional.logsigmoid(config.beta * gained).sum()
            (loss / len(picked)).backward()
            optimizer.step()
            optimizer.zero_grad()
            total, ordered = total + float(loss.detach()), ordered + int((gained > 0).sum())
        mean = total / len(rows)
        if not math.isfinite(mean):
            raise TrainError(f"The loss is {mean} in epoch {epoch}.", hint="Lower the learning rate.")
    model.save_pretrained(folder)
    return Preferred(folder, mean, ordered / len(rows))


def _gap(logits: Any, pairs: Sequence[Group]) -> Tensor:
    """log p(right) - log p(wrong) of pairs, each a group of the two, shape (pairs,)."""
    torch = need("torch")
    batch = to_tensors(pairs)
    made = logits(batch).float()
    losses = torch.nn.functional.cross_entropy(made, batch.targets.to(made.device), reduction="none")
    sums = [part.sum() for part in losses.split([len(e.completion) for pair in pairs for e in pair])]
    gaps: Tensor = torch.stack([wrong - right for right, wrong in zip(sums[::2], sums[1::2], strict=True)])
    return gaps
