"""Smallfirst and its peers on the same random halves of recorded calls, with paired comparisons at equal accuracy.

    python bench/replay.py --data FILE --large MODEL --pair SMALL[,SECOND] [--pair ...]

FILE is what `smallfirst replay` reads. Every way is fitted on one half and decides the other, on the same halves. For
each pair of models and each way: accuracy, escalation, failure among accepted answers and cost per success relative to
the large model alone, at the way's own threshold; then "at par": the least cost per success at which the way is as
accurate as the large model alone, at one share of kept answers for all splits (equal scores are kept by lot), and how
ours stands to it there, paired by call (BCa bootstrap over calls). The share is chosen with sight of the test halves,
for every way alike. Peers come from `bench/peers` and install what they need themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from peers import Peer, Sample, every
from peers.environments import NotInstalled
from smallfirst import stats
from smallfirst.acceptance import Acceptance
from smallfirst.cascade import TOP_LOGPROBS
from smallfirst.replay.calls import Call, load
from smallfirst.replay.run import Bench, Settings, certified, halves
from smallfirst.report import figure_row
from smallfirst.stats import Figure
from smallfirst.wire.shared import tokens_json

Floats = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
OURS = "smallfirst"
SHARES = np.linspace(0, 1, 401)
FIGURES = ("accuracy", "escalation", "accepted failure", "CPS ratio", "CPS ratio at par", "ours / it at par")


@dataclass(frozen=True, slots=True)
class Decided:
    """A way's scores on a test half, whether the small answers it would keep are right, its own threshold there, and
    what asking first costs by call."""

    index: Indices
    scores: Floats
    right: Floats
    threshold: float
    asking: Floats


@dataclass(frozen=True, slots=True)
class Stakes:
    """By call: whether the large answer is right, and what it costs."""

    large_right: Floats
    large_cost: Floats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--large", required=True)
    parser.add_argument("--pair", action="append", required=True, metavar="SMALL[,SECOND]")
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alpha", type=float, help="certify this for ours and for the peers that can; ours: cheapest")
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--small-cost-ratio", type=float, default=0.05)
    parser.add_argument("--only", nargs="+", metavar="PEER", help="names of peers as printed")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows, notes = [], []
    for pair in arguments.pair:
        found, said = measure(pair, arguments)
        rows += found
        notes += said
        if not arguments.json:
            show(pair, found)
    if arguments.json:
        print(json.dumps(rows))
    print(*dict.fromkeys(notes), sep="\n", file=sys.stderr)


def measure(pair: str, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one pair of models, and what is to be said about the peers."""
    small, _, second = pair.partition(",")
    settings = Settings(
        small=small,
        large=arguments.large,
        second=second or None,
        alpha=arguments.alpha,
        delta=arguments.delta,
        splits=arguments.splits,
        seed=arguments.seed,
        small_cost_ratio=arguments.small_cost_ratio,
    )
    bench = Bench(load(arguments.data, settings.models), settings)
    asyncio.run(bench.prepare())
    parts = list(halves(len(bench.calls), settings))
    recorded = np.array([call.answers[small].correct for call in bench.calls], dtype=float)
    facts = bench.facts
    stakes, mended = Stakes(facts.large_right.astype(float), facts.large_cost), facts.small_right.astype(float)
    ways: dict[str, list[Decided]] = {OURS: [_ours(bench, *part) for part in parts]}
    for name, scores in _simple(bench).items():
        asking = facts.small_cost + (facts.second_cost * facts.small_valid if name == "agreement" else 0.0)
        ways[name] = [Decided(test, scores[test], mended[test], 0.5, asking[test]) for _, test in parts]
    notes = []
    for peer in every():
        if arguments.only and peer.name not in arguments.only:
            continue
        try:
            ways[peer.name] = _peer(peer, bench, parts, recorded, f"{pair}: {peer.name}")
            notes.append(f"{peer.name}: {peer.settings}")
        except NotInstalled as reason:
            notes.append(f"{peer.name}: left out, {reason}")
    ours = _at_par(stakes, ways[OURS])
    rows = [{"pair": pair, "way": name, **_figures(stakes, way, ours)} for name, way in ways.items()]
    return rows, notes


def _ours(bench: Bench, fit: Indices, test: Indices) -> Decided:
    acceptance: Acceptance = certified(bench, fit, len(test))
    confidence, right = bench.offered(test, acceptance)
    valid = bench.facts.small_valid[test]
    asking = bench.facts.small_cost + bench.facts.second_cost * bench.facts.small_valid
    return Decided(test, np.where(valid, confidence, 0.0), right.astype(float), acceptance.threshold, asking[test])


def _simple(bench: Bench) -> Mapping[str, Floats]:
    facts = bench.facts
    found = {"validity": facts.small_valid.astype(float)}
    return found | ({"agreement": (facts.small_valid & facts.agrees).astype(float)} if facts.agrees.any() else {})


def _peer(
    peer: Peer, bench: Bench, parts: Sequence[tuple[Indices, Indices]], recorded: Floats, title: str
) -> list[Decided]:
    settings, calls = bench.settings, bench.calls
    samples = [_sample(call) for call in calls]
    correct = [{model: answer.correct for model, answer in call.answers.items()} for call in calls]
    costs = [{model: bench.prices.usd[model][call.id] for model in settings.models} for call in calls]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    made = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        for fit, test in bar.track(parts, description=title):
            peer.fit(
                [samples[i] for i in fit],
                [correct[i] for i in fit],
                small=settings.small,
                second=settings.second,
                large=settings.large,
                alpha=settings.alpha or 0.05,
                delta=settings.delta,
                costs=[costs[i] for i in fit],
            )
            scores = peer.score([samples[i] for i in test])
            asking = bench.facts.small_cost[test] + (bench.facts.second_cost[test] if peer.asks_second else 0.0)
            if peer.pre_generation:  # the small model is asked only where its answer is kept
                asking = np.where(np.isfinite(scores), asking, 0.0)
            made.append(Decided(test, scores, recorded[test], peer.threshold, asking))
    return made


def _kept(scores: Floats, share: float) -> Floats:
    """The chance that each answer is kept when a share of all is: the best scores, equal ones by lot."""
    wanted = share * len(scores)
    order = np.sort(scores)[::-1]
    if wanted >= np.isfinite(scores).sum():
        return np.isfinite(scores).astype(float)
    edge = order[int(wanted)]
    above, equal = scores > edge, scores == edge
    return above + equal * (wanted - above.sum()) / equal.sum()


def _by_call(stakes: Stakes, decided: Sequence[Decided], kept: Sequence[Floats]) -> dict[str, Floats]:
    """Means over the splits that tested a call."""
    n = len(stakes.large_right)
    times, sums = np.zeros(n), {name: np.zeros(n) for name in ("success", "cost", "kept", "failed", "alone", "right")}
    for each, keep in zip(decided, kept, strict=True):
        i = each.index
        times[i] += 1
        sums["success"][i] += np.where(keep > 0, keep * each.right, 0) + (1 - keep) * stakes.large_right[i]
        asked = each.asking if np.any(keep > 0) else np.zeros(len(i))
        sums["cost"][i] += asked + (1 - keep) * stakes.large_cost[i]
        sums["kept"][i] += keep
        sums["failed"][i] += keep * (1 - each.right)
        sums["alone"][i] += stakes.large_cost[i]
        sums["right"][i] += stakes.large_right[i]
    tested = times > 0
    return {name: total[tested] / times[tested] for name, total in sums.items()}


def _at_par(stakes: Stakes, decided: Sequence[Decided]) -> dict[str, Floats]:
    """The cheapest share at which the mean accuracy is the large model's."""
    best: tuple[float, dict[str, Floats]] | None = None
    for share in SHARES:
        came = _by_call(stakes, decided, [_kept(each.scores, share) for each in decided])
        ratio = came["cost"].sum() / came["success"].sum()
        if came["success"].mean() >= came["right"].mean() - 1e-9 and (best is None or ratio < best[0]):
            best = ratio, came
    assert best is not None  # the share 0 is the large model alone
    return best[1]


def _figures(stakes: Stakes, decided: Sequence[Decided], ours: Mapping[str, Floats]) -> dict[str, Any]:
    own = _by_call(stakes, decided, [(each.scores >= each.threshold).astype(float) for each in decided])
    par = _at_par(stakes, decided)
    found = {
        "accuracy": stats.mean(own["success"]),
        "escalation": stats.mean(1 - own["kept"]),
        "accepted failure": stats.ratio(own["failed"], own["kept"]),
        "CPS ratio": _against(own, own["alone"], own["right"]),
        "CPS ratio at par": _against(par, par["alone"], par["right"]),
        "ours / it at par": _against(ours, par["cost"], par["success"]),
    }
    return {name: figure_row(figure) for name, figure in found.items()}


def _against(came: Mapping[str, Floats], cost: Floats, success: Floats) -> Figure:
    return stats.ratio_of_ratios((came["cost"], cost), (came["success"], success))


def _sample(call: Call) -> Sample:
    answers = {}
    for model, answer in call.answers.items():
        made = [{"name": c.name, "arguments": _value(c.arguments)} for c in answer.choice.tool_calls]
        answers[model] = {"tool_calls": made or None, "content": answer.choice.text}
        if logprobs := answer.choice.logprobs:
            answers[model]["logprobs"] = {"content": tokens_json(logprobs, TOP_LOGPROBS)}
    return Sample(call.id, call.request.body, answers)


def _value(arguments: str) -> Any:
    """The arguments of a call, as text where they are no JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def show(pair: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("way", *FIGURES, title=pair)
    for row in rows:
        table.add_row(row["way"], *(_cell(row[name]) for name in FIGURES))
    Console().print(table)


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "nothing kept"
    ends = "" if figure["low"] is None or figure["high"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f}{ends}"


if __name__ == "__main__":
    main()
