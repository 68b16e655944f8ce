"""Peers on random halves of a file of recorded calls: each is fitted on one half and measured on the other.

    python -m bench.peers --data FILE --small MODEL --large MODEL [--second MODEL]

FILE is what `smallfirst replay` reads. A call of the large model costs 1, of another `--small-cost-ratio`. Printed are
means over splits with the range of the middle 95 % of splits: accuracy, escalation (share of calls that the large
model answers), failure among the answers kept, and the cost per right answer as a ratio to the large model alone, at
the threshold that the peer chose. `CPS at par` is that ratio at the cheapest share of kept answers (interpolated
between thresholds, the same share in every split) at which the mean accuracy is the large model's.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import Floats, Peer, Sample, every
from .environments import NotInstalled
from .thresholds import at_threshold, frontier, stakes

COLUMNS = ("accuracy", "escalation", "kept failure", "CPS ratio", "CPS at par")
SHARES = np.linspace(0, 1, 201)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--small", required=True)
    parser.add_argument("--large", required=True)
    parser.add_argument("--second")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small-cost-ratio", type=float, default=1 / 20)
    parser.add_argument("--only", nargs="+", metavar="PEER", help="names as printed")
    arguments = parser.parse_args()
    rows = read(arguments.data)
    print(f"{arguments.small} before {arguments.large}, second {arguments.second}, {arguments.splits} random halves\n")
    print(f"| peer | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}", flush=True)
    notes = []
    for peer in every():
        if arguments.only and peer.name not in arguments.only:
            continue
        try:
            splits = [measure(peer, rows, split, arguments) for split in range(arguments.splits)]
        except NotInstalled as reason:
            notes.append(f"{peer.name}: left out, {reason}")
            continue
        print(f"| {peer.name} | {' | '.join(_cells(splits))} |", flush=True)
        notes.append(f"{peer.name}: {peer.settings}")
    print("", *notes, sep="\n")


@dataclass(frozen=True, slots=True)
class Split:
    """One split's figures at the peer's own threshold, and its frontier against the large model alone: accuracy and
    cost at each of `SHARES`, not a number beyond the most that the peer can keep."""

    own: tuple[float, float, float, float]
    large_accuracy: float
    large_cost: float
    accuracy: Floats
    cost: Floats


def read(path: Path) -> list[Row]:
    """The calls of a JSONL file, gzip or plain."""
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in text.splitlines()]


def measure(peer: Peer, rows: Sequence[Row], split: int, arguments: argparse.Namespace) -> Split:
    """Fit the peer on a random half and score the other."""
    models = {"small": arguments.small, "second": arguments.second, "large": arguments.large}
    order = np.random.default_rng((arguments.seed, split)).permutation(len(rows))
    fit, test = ([rows[i] for i in half] for half in np.array_split(order, 2))
    named = [model for model in models.values() if model is not None]
    costs = {model: 1.0 if model == arguments.large else arguments.small_cost_ratio for model in named}
    peer.fit(
        [_sample(row) for row in fit],
        [_correct(row) for row in fit],
        **models,
        alpha=arguments.alpha,
        delta=arguments.delta,
        costs=[costs] * len(fit),
    )
    scores = peer.score([_sample(row) for row in test])
    at = stakes(peer, [_correct(row) for row in test], [costs] * len(test), **models)
    own = at_threshold(peer.threshold, scores, at, pre_generation=peer.pre_generation)
    swept = frontier(scores, at, pre_generation=peer.pre_generation)
    kept = scores >= peer.threshold
    failure = 1 - float(at.small_right[kept].mean()) if kept.any() else np.nan
    ratio = own.cost[0] / own.accuracy[0] * swept.accuracy[0] / swept.cost[0]
    return Split(
        own=(float(own.accuracy[0]), 1 - float(own.kept[0]), failure, float(ratio)),
        large_accuracy=float(swept.accuracy[0]),
        large_cost=float(swept.cost[0]),
        accuracy=np.interp(SHARES, swept.kept, swept.accuracy, right=np.nan),
        cost=np.interp(SHARES, swept.kept, swept.cost, right=np.nan),
    )


def _cells(splits: Sequence[Split]) -> Iterator[str]:
    for values in np.array([split.own for split in splits]).T:
        known = values[np.isfinite(values)]
        low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
        yield f"{known.mean():.3f} [{low:.3f}, {high:.3f}]" if len(known) else "nothing kept"
    accuracy = np.mean([split.accuracy for split in splits], axis=0)
    cost = np.mean([split.cost for split in splits], axis=0)
    wanted, alone = (float(np.mean([getattr(s, key) for s in splits])) for key in ("large_accuracy", "large_cost"))
    ratio = cost / accuracy * wanted / alone
    yield f"{np.nanmin(np.where(accuracy >= wanted - 1e-12, ratio, np.nan)):.3f}"


def _correct(row: Row) -> dict[str, bool]:
    return {model: bool(answer["correct"]) for model, answer in row["answers"].items()}


def _sample(row: Row) -> Sample:
    answers = {
        model: {key: value for key, value in answer.items() if key != "correct"}
        for model, answer in row["answers"].items()
    }
    return Sample(row["id"], row["request"], answers)


if __name__ == "__main__":
    main()
