"""How soon a worse candidate is withdrawn, how often a good one is, and what becomes of an equal one, by simulation.

    python bench/rollout.py [--runs 400] [--seed 0] [--only PATTERN...]

Calls arrive one by one, `decide` is asked after every outcome. Canary: the episodes are split at the first share, and a
run ends when the candidate is withdrawn or after 150 canary calls. Through: from shadow to live or withdrawal, at most
the calls stated. Labels are missing, late or correlated as the row says. Rates have Wilson's 95 % interval over runs.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from random import Random
from statistics import median

from rich.console import Console
from rich.progress import track
from rich.table import Table

from smallfirst import stats
from smallfirst.rollout import Answer, Evidence, Outcome, Rollout, Rules, arm, decide, moved

CANARY_CALLS = 150
START = Rollout("r", "task", "new", "old", "", 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How calls turn out. `drift` is added to both rates over the first 1,500 calls. `labelled`: the arms' chances of a
    label; `late`: how many calls a label of canary and incumbent waits. `burst` calls make an episode, whose
    outcomes repeat its first one with probability `alike`. `shared` of the shadowed calls are as hard for one arm as
    for the other. `known`: the incumbent's rate as believed before, from `known_n` calls."""

    incumbent: float
    candidate: float
    drift: float = 0.0
    labelled: tuple[float, float] = (1.0, 1.0)
    late: tuple[int, int] = (0, 0)
    burst: int = 1
    alike: float = 0.0
    shared: float = 0.5
    known: float | None = None
    known_n: int = 200
    share: float = 0.05
    level: float = 0.05

    def rules(self) -> Rules:
        return Rules(
            level=self.level,
            known=self.incumbent if self.known is None else self.known,
            known_n=self.known_n,
            labelled=self.labelled[0],
            labelled_incumbent=self.labelled[1],
            shares=tuple(sorted({self.share, 0.25})),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """How a run ended: its last step, whether it was promoted as better, and the canary's (pairs') calls until then."""

    step: str
    better: bool
    calls: int


class Calls:
    """A stream of calls: for every one the episode, and whether each arm is right."""

    def __init__(self, world: World, random: Random) -> None:
        self._world, self._random = world, random
        self._n = 0
        self._last = (True, True)

    def next(self) -> tuple[str, bool, bool]:
        world, random = self._world, self._random
        change = world.drift * min(self._n / 1500, 1)
        first, second = random.random(), random.random()
        second = first if random.random() < world.shared else second
        fresh = (first < world.candidate + change, second < world.incumbent + change)
        repeats = self._n % world.burst and random.random() < world.alike
        right = self._last if repeats else fresh
        self._last = right if not self._n % world.burst else self._last
        episode = str(self._n // world.burst)
        self._n += 1
        return episode, *right


def outcomes(world: World, rollout: Rollout, calls: Calls, random: Random) -> Iterator[Outcome]:
    """One call's outcome: both arms in the shadow, else one."""
    episode, new, old = calls.next()
    if rollout.step == "shadow":
        if random.random() < min(world.labelled):
            yield Outcome(episode, _answer(new), _answer(old), 0.0, min(world.labelled))
        return
    side, _ = arm(episode, rollout.share, rollout.salt)
    chance = world.labelled[side == "incumbent"]
    told = random.random() < chance
    one = _answer(new if side == "canary" else old, told)
    candidate, incumbent = (one, None) if side == "canary" else (None, one)
    yield Outcome(episode if world.burst > 1 else "", candidate, incumbent, rollout.share, chance)


def canary(world: World, seed: int) -> Run:
    """One rollout at the first canary share, for CANARY_CALLS calls of the canary."""
    random = Random(seed)
    rollout = replace(START, salt=str(seed), step="canary", share=world.share, rules=world.rules())
    evidence, calls = Evidence(rollout), Calls(world, random)
    waiting = tuple(deque[Outcome]() for _ in range(2))
    answered = 0
    while answered < CANARY_CALLS:
        for outcome in outcomes(world, rollout, calls, random):
            served = outcome.candidate is not None
            answered += served
            waiting[not served].append(outcome)
        for queue, late in zip(waiting, world.late, strict=True):
            while len(queue) > late:
                evidence.take(rollout.rules, queue.popleft())
        if moved(rollout, decide(rollout, evidence), 0.0).step == "rolled_back":
            return Run("rolled_back", False, answered)
    return Run("canary", False, answered)


def through(world: World, seed: int, most: int) -> Run:
    """One rollout from the shadow until it is live or withdrawn, at most so many calls; `calls` are the canary's."""
    random = Random(seed)
    rollout = replace(START, salt=str(seed), rules=world.rules())
    evidence, calls, answered, better = Evidence(rollout), Calls(world, random), 0, False
    for _ in range(most):
        for outcome in outcomes(world, rollout, calls, random):
            answered += rollout.step == "canary" and outcome.candidate is not None
            evidence.take(rollout.rules, outcome)
        decision = decide(rollout, evidence)
        after = moved(rollout, decision, 0.0)
        better = better or getattr(decision, "better", False)
        evidence = evidence if after.step == rollout.step else Evidence(after)
        rollout = after
        if rollout.step in {"live", "rolled_back"}:
            break
    return Run(rollout.step, better, answered)


def _answer(right: bool, told: bool = True) -> Answer:
    return Answer(right if told else None, valid=True, seconds=1.0)


CANARY = {
    "0.90 -> 0.75": World(incumbent=0.9, candidate=0.75),
    "0.80 -> 0.65": World(incumbent=0.8, candidate=0.65),
    "0.95 -> 0.80": World(incumbent=0.95, candidate=0.8),
    "0.70 -> 0.55": World(incumbent=0.7, candidate=0.55),
    "0.90 -> 0.75, share 10 %": World(incumbent=0.9, candidate=0.75, share=0.1),
    "0.80 -> 0.65, share 10 %": World(incumbent=0.8, candidate=0.65, share=0.1),
    "0.90 -> 0.75, share 25 %": World(incumbent=0.9, candidate=0.75, share=0.2499),
    "0.90 -> 0.75, nothing known before": World(incumbent=0.9, candidate=0.75, known_n=0),
    "0.90 -> 0.75, believed 0.80": World(incumbent=0.9, candidate=0.75, known=0.8),
    "0.90 -> 0.75, both fall 10 points": World(incumbent=0.9, candidate=0.75, drift=-0.1),
    "0.90 -> 0.75, labels 60 calls late": World(incumbent=0.9, candidate=0.75, late=(3, 57)),
    "0.90 -> 0.75, canary's labels 40 canary calls late": World(incumbent=0.9, candidate=0.75, late=(40, 0)),
    "0.90 -> 0.75, 20 % labelled": World(incumbent=0.9, candidate=0.75, labelled=(0.2, 0.2)),
    "0.90 -> 0.75, canary labelled, 20 % of incumbent": World(incumbent=0.9, candidate=0.75, labelled=(1.0, 0.2)),
    "0.90 -> 0.75, episodes of 5, half alike": World(incumbent=0.9, candidate=0.75, burst=5, alike=0.5),
    "0.90 -> 0.75, episodes of 5, independent": World(incumbent=0.9, candidate=0.75, burst=5),
    "equal 0.90": World(incumbent=0.9, candidate=0.9),
    "equal 0.80": World(incumbent=0.8, candidate=0.8),
    "equal 0.95": World(incumbent=0.95, candidate=0.95),
    "equal 0.90, share 10 %": World(incumbent=0.9, candidate=0.9, share=0.1),
    "0.90 -> 0.95": World(incumbent=0.9, candidate=0.95),
    "equal 0.90, nothing known before": World(incumbent=0.9, candidate=0.9, known_n=0),
    "equal 0.90, believed 0.80": World(incumbent=0.9, candidate=0.9, known=0.8),
    "equal 0.80, believed 0.95": World(incumbent=0.8, candidate=0.8, known=0.95),
    "equal 0.90, both fall 20 points": World(incumbent=0.9, candidate=0.9, drift=-0.2),
    "equal 0.90, canary's labels 40 canary calls late": World(incumbent=0.9, candidate=0.9, late=(40, 0)),
    "equal 0.90, incumbent's labels 400 calls late": World(incumbent=0.9, candidate=0.9, late=(0, 400)),
    "equal 0.80, incumbent's 400 late, believed 0.95": World(incumbent=0.8, candidate=0.8, late=(0, 400), known=0.95),
    "equal 0.90, 20 % labelled": World(incumbent=0.9, candidate=0.9, labelled=(0.2, 0.2)),
    "equal 0.90, canary labelled, 20 % of incumbent": World(incumbent=0.9, candidate=0.9, labelled=(1.0, 0.2)),
    "equal 0.90, episodes of 5, half alike": World(incumbent=0.9, candidate=0.9, burst=5, alike=0.5),
    "equal 0.90, episodes of 5, all alike": World(incumbent=0.9, candidate=0.9, burst=5, alike=1.0),
}
THROUGH = {
    "0.90 -> 0.75": World(incumbent=0.9, candidate=0.75),
    "0.80 -> 0.65": World(incumbent=0.8, candidate=0.65),
    "0.90 -> 0.85 (the margin)": World(incumbent=0.9, candidate=0.85),
    "equal 0.90": World(incumbent=0.9, candidate=0.9),
    "equal 0.80": World(incumbent=0.8, candidate=0.8),
    "0.90 -> 0.95": World(incumbent=0.9, candidate=0.95),
    "equal 0.90, 20 % labelled": World(incumbent=0.9, candidate=0.9, labelled=(0.2, 0.2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--calls", type=int, default=8000, help="most calls of a run from shadow to live")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=["*"], help="rows whose name is, or fits (*, ?), one of these")
    given = parser.parse_args()
    console, seeds = Console(), range(given.seed, given.seed + given.runs)
    table = Table("canary", "rolled back within 150 canary calls", "canary calls until then, median", "runs")
    for name in _chosen(CANARY, given.only):
        runs = [canary(CANARY[name], seed) for seed in track(seeds, name, console=console, transient=True)]
        back = [run.calls for run in runs if run.step == "rolled_back"]
        table.add_row(name, rate(len(back), runs), f"{median(back):.0f}" if back else "-", str(len(runs)))
    console.print(table)
    table = Table("from shadow", "rolled back", "live", "called better", "canary calls, median", "most", "runs")
    for name in _chosen(THROUGH, given.only):
        world = THROUGH[name]
        runs = [through(world, seed, given.calls) for seed in track(seeds, name, console=console, transient=True)]
        counts = [sum(run.step == step for run in runs) for step in ("rolled_back", "live")]
        rates = [rate(n, runs) for n in (*counts, sum(run.better for run in runs))]
        used = [run.calls for run in runs]
        table.add_row(name, *rates, f"{median(used):.0f}", str(max(used)), str(len(runs)))
    console.print(table)


def _chosen(worlds: Mapping[str, World], patterns: Sequence[str]) -> list[str]:
    return [name for name in worlds if any(fnmatchcase(name, pattern) for pattern in patterns)]


def rate(n: int, runs: list[Run]) -> str:
    """In per cent, with its interval."""
    found = stats.wilson(n, len(runs))
    return "{:.1f} [{:.1f}, {:.1f}] %".format(*(100 * (x or 0.0) for x in (found.value, found.low, found.high)))


if __name__ == "__main__":
    main()
