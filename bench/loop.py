"""The loop measured end to end on recorded calls, through the code that `smallfirst loop` runs.

    calls -> import -> scrub -> tasks -> of each task, the largest first: dataset -> train -> evaluate

--calls names a file of service calls as converted from SGD (tools beside it, in `tools_*.json`), a folder of SNIPS,
CLINC150 (or a domain of it), CrossWOZ or tau-bench, or a log: anything that `smallfirst import` reads. Several are
mixed. Calls of a set are written as an agent's log, with a system prompt and the tools of their site (tau-bench: as
recorded), the right answers (there: the recorded ones) as those of a large model at gpt-4o's list price; dialogues are
episodes, in random order. All is kept in --work: run again, it goes on where it was cut off, and what was measured with
the same options is not measured again. Nothing is released.

    minutes, tokens/s   of training, ended by --minutes at the latest (0: when the calibration split shows no gain)
    exact               the specialist's whole calls that are right, type-aware, as served (B3)
    zero-shot           the same of its base without the adapter (B1); of each further GGUF file of --zero-shot
    examples            the base with the nearest examples (B2)
    coverage            share of calls that the cascade accepts of the specialist (B4); the large model gets the others
    accepted failure    accepted answers that are wrong, with the exact bound at level --delta; alpha was asked for
    outcome             "released", if the loop would release it, or why it would not
    accuracy - B0       of the cascade and the large model, paired by call
    CPS accepted        USD for 1,000 right answers, of the calls accepted; the machine costs 0.10 USD an hour
    accepted / B0       that to what the same calls cost the large model; CPS / B0: all calls of the cascade
    p50 s               the specialist's time for a call
    ARI, V              of the tasks found against the sites, in the last row

The last row has means over the tasks. Intervals are at 95 %; calls that were tested are n. A log's own costs and times
count; where it has none, there is no CPS.

    python bench/loop.py --calls ../shared/data/sgd/calls_train.jsonl.gz --services Restaurants_1 --minutes 10
    python bench/loop.py --calls ../shared/data/snips --work snips-loop --minutes 15 --json
    python bench/loop.py --calls agent.jsonl --work agent-loop --minutes 0 --zero-shot qwen2.5-coder-1.5b.gguf
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Column, Table

from callsites import Said, Site, read
from smallfirst import models, stats
from smallfirst.artifact import write_json
from smallfirst.assemble import assemble, open_configured_store
from smallfirst.cli.common import with_store_url
from smallfirst.config import parse
from smallfirst.errors import ConfigError, DataError, SmallfirstError
from smallfirst.helpdesk.agent import write_log
from smallfirst.helpdesk.large import NAME, Large
from smallfirst.helpdesk.sites import Ask
from smallfirst.learn import card, ingest, tasks
from smallfirst.learn.dataset import Settings as Material
from smallfirst.learn.evaluate import evaluate
from smallfirst.learn.evaluation import ARMS, Arm, Evaluation
from smallfirst.learn.evaluation import Settings as Evaluating
from smallfirst.learn.loop import CALLS, Loop, Settings, Show
from smallfirst.learn.progress import stages
from smallfirst.learn.release import version_of
from smallfirst.learn.rounds import Conversion, Recipe, declined
from smallfirst.learn.scrubbed import Lines
from smallfirst.learn.tasks import Figures, Found
from smallfirst.learn.train import TrainConfig
from smallfirst.learn.workshop import Round
from smallfirst.report import figure_row
from tasks import scores

Row = dict[str, Any]
USD_PER_HOUR = 0.10
FIRST, STEP = 1.76e9, 60.0
"""When the log's first call was, in seconds since the epoch, and the time from each to the next."""
HEAD = ("task", "calls", "train rows", "minutes", "tokens/s", "exact", "zero-shot")
TAIL = ("coverage", "accepted failure", "alpha", "outcome", "accuracy - B0", "CPS accepted", "accepted / B0")
LAST = ("CPS / B0", "p50 s", "ARI", "V")
FREE = ("json", "most", "work")
"""Options that change nothing of a task's row."""


def asks(sites: Mapping[str, Site], each: int, seed: int) -> Iterator[Ask]:
    """The calls as an agent sends them, dialogue by dialogue in random order; at most `each` of a site, 0 for all."""
    episodes: dict[str, list[tuple[str, Said]]] = defaultdict(list)
    for name, site in sites.items():
        for said in site.calls:
            episodes[said.episode].append((name, said))
    order, taken = sorted(episodes), Counter[str]()
    random.Random(seed).shuffle(order)
    for episode in order:
        for name, said in episodes[episode]:
            taken[name] += 1
            if not each or taken[name] <= each:
                yield _ask(name, sites[name], said, seed)


def _ask(name: str, site: Site, said: Said, seed: int) -> Ask:
    messages = site.messages(said.turns, random.Random(f"{seed}/{said.episode}"))
    body: Row = {"model": NAME, "messages": messages, "temperature": 0}
    if site.tools:
        body |= {"tools": list(site.tools), "tool_choice": site.tool_choice, "parallel_tool_calls": False}
    if site.response_format:
        body["response_format"] = site.response_format
    return Ask(name, said.episode, body, said.answer)


@dataclass(frozen=True, slots=True)
class Bench:
    """A measurement: the loop's own workshop, what it is to measure, and how it shows how far it is."""

    workshop: Conversion
    given: argparse.Namespace
    show: Show

    async def rows(self, sites: Mapping[str, Site], logs: Sequence[Path]) -> list[Row]:
        """A row for each task, the largest first, and their mean."""
        made = list(asks(sites, self.given.each, self.given.seed))
        found = await self._found(made, logs)
        truth = {FIRST + STEP * n: ask.site for n, ask in enumerate(made)}
        calls = [truth.get(call.created_at) for call in Lines(self.given.work / CALLS)]
        placed = [(site, task) for site, task in zip(calls, found.task_of, strict=True) if site is not None]
        known = sorted((f for f in found.figures if f.task), key=lambda f: (-f.calls, f.name))[: self.given.most]
        rows = []
        for n, figures in enumerate(known, 1):
            of_site = Counter(site for site, task in placed if task == figures.task)
            [(name, _)] = of_site.most_common(1) or [(figures.name, 0)]
            rows.append(await self._row(figures, name, f"{n}/{len(known)} {name}"))
        last = _mean(rows, self.columns)
        if placed:
            last["ARI"], last["V"] = scores([site for site, _ in placed], [task for _, task in placed])
        return [*rows, last]

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row has, in order."""
        return (*HEAD, *(f"zero-shot {path.stem}" for path in self.given.zero_shot), "examples", *TAIL, *LAST)

    async def _found(self, made: Sequence[Ask], logs: Sequence[Path]) -> Found:
        """The tasks of all calls, which are imported and scrubbed if they are not yet."""
        store, work = self.workshop.store, self.given.work
        if kept := await store.tasks():
            return tasks.count([tasks.task_of_row(row) for row in kept], Lines(work / CALLS))
        if made:
            logs = [*logs, work / "log.jsonl"]
            write_log(logs[-1], made, Large(mistakes=0.0), first=FIRST, last=FIRST + STEP * (len(made) - 1))
        size = sum(path.stat().st_size for path in logs)
        with self.show("", "import") as tell:
            came = await ingest.run(store, logs, progress=lambda n: tell(n / size, ""))
        for problem in came.problems[:5]:
            print(f"{problem.file}:{problem.line}: {problem.reason}", file=sys.stderr)
        if not came.added + came.known:
            raise DataError("No call could be read.", hint="`smallfirst import --help` tells what a log may be.")
        return await Loop(store, self.workshop, Settings(folder=work), self.show).survey()

    async def _row(self, figures: Figures, name: str, title: str) -> Row:
        """What came of a task: as it was measured before with the same options, else now."""
        folder = self.given.work / "tasks" / re.sub(r"[^\w.-]", "-", str(figures.task))
        options = {k: str(v) for k, v in vars(self.given).items() if k not in FREE}
        kept = folder / "row.json"
        if kept.exists() and (before := json.loads(kept.read_bytes()))["options"] == options:
            return dict(before["row"])
        folder.mkdir(parents=True, exist_ok=True)
        row: Row = dict.fromkeys(self.columns) | {"task": name, "calls": figures.calls}
        try:
            row |= await self._converted(Round(str(figures.task), folder, self.given.work / CALLS), title)
        except (SmallfirstError, OSError, RuntimeError, MemoryError) as error:  # as the loop does
            return row | {"outcome": f"failed: {error}"}
        write_json({"options": options, "row": row}, kept)
        return row

    async def _converted(self, work: Round, title: str) -> Row:
        try:
            data = card.load(work.folder / "dataset")
        except DataError:  # not made yet
            with self.show(title, "dataset") as tell:
                await self.workshop.dataset(work, tell)
            data = card.load(work.folder / "dataset")
        with self.show(title, "train") as tell:
            reached = (await self.workshop.train(work, tell)).facts["reached"]
        with self.show(title, "evaluate") as tell:
            found = await self.workshop.evaluated(work, tell)
        row = {
            "train rows": len(data.splits["train"]),
            "minutes": reached["seconds"] / 60,
            "tokens/s": reached["tokens"] / reached["seconds"],
            **_figures(found),
        }
        for weights in self.given.zero_shot:
            with self.show(title, weights.stem) as tell:
                row[f"zero-shot {weights.stem}"] = await self._zero_shot(data, weights)
                tell(1.0, "")
        return row

    async def _zero_shot(self, data: card.Folder, weights: Path) -> Row | None:
        version = await asyncio.to_thread(version_of, data.card.task, None, str(weights))
        settings = Evaluating(arms=("B1",), limit=self.given.limit)
        async with assemble(self.workshop.config, self.workshop.env) as parts:
            return _figure(await evaluate(parts, data, version, settings=settings), "B1", "accuracy")


def _calls(given: argparse.Namespace) -> tuple[dict[str, Site], list[Path]]:
    """The sites of the sets named, and the logs."""
    sites, logs = dict[str, Site](), list[Path]()
    for path in given.calls:
        found = read(path)
        sites |= found or {}
        logs += [path] if found is None else []
    if unknown := sorted(set(given.services) - set(sites)):
        raise ConfigError(f"There is no service {unknown[0]!r}.", hint=f"Known: {', '.join(sites) or 'none'}.")
    return {name: site for name, site in sites.items() if name in (given.services or sites)}, logs


def _figure(found: Evaluation, arm: Arm, name: str) -> Row | None:
    result = found.arm(arm)
    return None if result is None else figure_row(result.figures[name])


def _figures(found: Evaluation) -> Row:
    """The columns that come of an evaluation."""
    row: Row = {
        "exact": _figure(found, "B3", "accuracy"),
        "zero-shot": _figure(found, "B1", "accuracy"),
        "examples": _figure(found, "B2", "accuracy"),
        "p50 s": _figure(found, "B3", "latency_p50"),
    }
    large, cascade = found.arm("B0"), found.arm("B4")
    if large is None or cascade is None:
        return row
    before = {call.id: call for call in large.calls}
    told = [(call, before[call.id]) for call in cascade.calls if call.by_small and call.correct is not None]
    priced = [(c.cost_usd, b.cost_usd, c.correct, b.correct) for c, b in told if None not in (c.cost_usd, b.cost_usd)]
    usd, base, right, base_right = zip(*priced, strict=True) if priced else ((), (), (), ())
    return row | {
        "coverage": _figure(found, "B4", "coverage"),
        "accepted failure": _figure(found, "B4", "accepted_failure"),
        "alpha": found.settings.alpha,
        "outcome": declined(found) or "released",
        "accuracy - B0": _figure(found, "B4", "difference"),
        "CPS accepted": figure_row(stats.ratio([1000 * each for each in usd], right)),
        "accepted / B0": figure_row(stats.ratio_of_ratios((usd, base), (right, base_right))),
        "CPS / B0": _figure(found, "B4", "cps_ratio"),
    }


def _mean(rows: Sequence[Row], columns: Sequence[str]) -> Row:
    """Means over the tasks for which there is a value."""
    mean: Row = dict.fromkeys(columns)
    for column in columns:
        values = [row[column]["value"] if isinstance(row[column], dict) else row[column] for row in rows]
        numbers = [value for value in values if isinstance(value, int | float)]
        if numbers and column != "alpha":
            mean[column] = figure_row(stats.mean(numbers))
    released = sum(row["outcome"] == "released" for row in rows)
    return mean | {"task": f"mean of {len(rows)}", "outcome": f"{released} of {len(rows)} released"}


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return "-" if value is None else _number(value) if isinstance(value, float) else str(value)
    if value["value"] is None:
        return f"- (n {value['n']})"
    ends = ", ".join("" if value[end] is None else _number(value[end]) for end in ("low", "high"))
    return f"{_number(value['value'])} [{ends}]\nn {value['n']}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def options() -> argparse.ArgumentParser:
    training, evaluating = TrainConfig(), Evaluating()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=Path, nargs="+", required=True, help="sets and logs")
    parser.add_argument("--services", nargs="+", default=[], help="only these sites of the sets")
    parser.add_argument("--each", type=int, default=0, help="calls of a site at most; 0: all")
    parser.add_argument("--most", type=int, default=10, help="tasks, the largest; 0: only find them")
    parser.add_argument("--work", type=Path, default=Path(".bench/loop"), help="folder in which all is kept")
    parser.add_argument("--base", default=models.DEFAULT_MODEL, help="a pulled model or a GGUF file")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training a task at most; 0: no limit")
    parser.add_argument("--epochs", type=float, default=training.epochs)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--limit", type=int, default=evaluating.limit, help="test calls, the newest")
    parser.add_argument("--labels", type=int, default=evaluating.labels, help="calls to calibrate on at most")
    parser.add_argument("--alpha", type=float, default=evaluating.alpha, help="accepted answers may fail so often")
    parser.add_argument("--delta", type=float, default=evaluating.delta)
    parser.add_argument("--zero-shot", type=Path, nargs="+", default=[], metavar="GGUF", help="further models for B1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser


async def run(given: argparse.Namespace) -> list[Row]:
    """The rows. Raises ConfigError when --work holds the calls of something else."""
    sites, logs = _calls(given)
    given.work.mkdir(parents=True, exist_ok=True)
    named = given.work / "of.json"
    of: Row = {name: getattr(given, name) for name in ("services", "each", "seed")}
    of["calls"] = [str(path.resolve()) for path in given.calls]
    if named.exists() and json.loads(named.read_bytes()) != of:
        raise ConfigError(f"{given.work} holds a measurement of other calls.", hint="Name another --work.")
    write_json(of, named)
    config = with_store_url(parse("", {}), f"sqlite:///{given.work.absolute()}/calls.db")
    config = msgspec.structs.replace(config, models={}, machine_usd_per_hour=USD_PER_HOUR)
    recipe = Recipe(
        base=given.base,
        material=Material(seed=given.seed),
        training=TrainConfig(max_minutes=given.minutes or None, epochs=given.epochs, seed=given.seed),
        evaluation=Evaluating(tuple(given.arms), given.limit, given.labels, alpha=given.alpha, delta=given.delta),
    )
    store = await open_configured_store(config, os.environ)
    try:
        bench = Bench(Conversion(store, config, os.environ, recipe), given, stages(Console(stderr=True)))
        return await bench.rows(sites, logs)
    finally:
        await store.close()


def main() -> None:
    given = options().parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about words of its own
    try:
        rows = asyncio.run(run(given))
    except SmallfirstError as error:
        sys.exit(f"error: {error}")
    if given.json:
        print(json.dumps(rows))
        return
    table = Table(*(Column(name, overflow="fold", min_width=30 if name == "outcome" else None) for name in rows[0]))
    for row in rows:
        table.add_row(*map(_shown, row.values()))
    console = Console()
    console.width = max(console.width, 240)
    console.print(table)


if __name__ == "__main__":
    main()
