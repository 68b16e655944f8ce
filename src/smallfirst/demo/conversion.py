"""The loop, shown on the simulated help-desk agent: from its log to small specialists in service, and back.

The agent's "large model" is a stand-in (`helpdesk.large`); the specialists are really trained, on the embedded
SmolLM2-135M, and really serve. Every figure is measured in this run.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape

from smallfirst import models, report
from smallfirst.assemble import open_configured_store
from smallfirst.assignment import Assigner, Prompt, cells_from_json, prompt_of
from smallfirst.config import Config, ModelConfig, Policy, PriceConfig
from smallfirst.demo.screen import Screen
from smallfirst.demo.traffic import Sent, Traffic
from smallfirst.extra import need
from smallfirst.helpdesk import agent
from smallfirst.helpdesk.large import MISTAKES, NAME, PRICED_AS, Large
from smallfirst.helpdesk.sites import Ask
from smallfirst.learn import card, ingest, past
from smallfirst.learn.candidates import named
from smallfirst.learn.dataset import Settings as Material
from smallfirst.learn.evaluation import Settings as Evaluating
from smallfirst.learn.loop import Job, Loop, Settings
from smallfirst.learn.progress import stages
from smallfirst.learn.release import register, release
from smallfirst.learn.rounds import Conversion, Recipe
from smallfirst.learn.select import Settings as Selecting
from smallfirst.learn.select import select
from smallfirst.learn.train import TrainConfig
from smallfirst.learn.watch import Triggers
from smallfirst.prices import PriceList
from smallfirst.registry import Version
from smallfirst.report import Report
from smallfirst.rollout import Rules
from smallfirst.serve.server import serving
from smallfirst.store import RecordFilter, Store
from smallfirst.types import Usage

_LIBRARIES = ("torch", "peft", "transformers", "phonenumbers", "stdnum", "sklearn", "networkx")
_MILLION = 1_000_000
_MONTH_S = 30 * 86_400.0
_RULES = Rules(level=0.1, shares=(0.5,), margin=0.2, shadow_margin=0.3, valid_margin=0.2, settle_s=60.0)
"""Wide margins, so that about 60 calls decide; `release.rules_for` gives those of real traffic."""
_TRAINING = TrainConfig(learning_rate=3e-3, step_tokens=256, epochs=0.8, evaluations=1, validation_tokens=1024)
_MATERIAL = Material(calibration=0.36, test=0.1)
_EVALUATING = Evaluating(arms=("B0", "B4"), limit=15, labels=150, alpha=0.1)
_SELECTING = Selecting(limit=20, least=5, examples=2)
_BEFORE, _AFTER, _TRIALS, _NOTES = 100_000, 200_000, 300_000, 400_000
"""The numbers from which tickets are taken for each part, so that no call is asked twice."""
_MOST = 10_000
_AHEAD = 8
"""Calls of a rollout that may wait for their judgement before the next is sent, so that shadows keep up."""
_FOLLOW_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything: `tickets` in the log, `measured` ones before and after, `minutes` of training for each
    specialist, `notes` of the call site that appears later, `later` ones once it is converted, and at most `trial`
    calls of a task during a rollout, for at most `patience_s` seconds. So many `specialists` are made at first, of
    tasks with `least_calls` calls."""

    tickets: int = 440
    measured: int = 30
    minutes: float = 1.0
    notes: int = 280
    later: int = 40
    trial: int = 200
    patience_s: float = 120.0
    specialists: int = 2
    least_calls: int = 100
    seed: int = 0
    rules: Rules = _RULES
    training: TrainConfig = _TRAINING
    material: Material = _MATERIAL
    evaluating: Evaluating = _EVALUATING
    selecting: Selecting = _SELECTING


_PLAN = Plan()


def check() -> None:
    """Raises ConfigError when a library of the `demo` extra is missing."""
    for library in _LIBRARIES:
        need(library)


async def run(config: Config, folder: Path, console: Console, plan: Plan = _PLAN) -> dict[str, Any]:
    """Shows the whole loop with records in `config`'s store and artifacts in `folder`, which is there; returns what was
    measured."""
    large = Large()
    async with large.serving() as upstream:
        settings = _with_models(config, upstream)
        store = await open_configured_store(settings, {})
        try:
            async with serving(settings, {}) as url:
                traffic = Traffic(f"{url}/v1", store)
                try:
                    return await _Show(settings, folder, Screen(console), plan, large, store, traffic).all()
                finally:
                    await traffic.close()
        finally:
            await store.close()


def _with_models(config: Config, upstream: str) -> Config:
    """`config` with the stand-in as the large model, at the price of `PRICED_AS`, and no small one yet."""
    prices = PriceList()
    costs = [prices.cost(PRICED_AS, None, usage) for usage in (Usage(_MILLION, 0), Usage(0, _MILLION))]
    asked, said = (cost for cost in costs if cost is not None)
    large = ModelConfig(
        backend="openai", base_url=upstream, preset="openai", model=NAME, price=PriceConfig(input=asked, output=said)
    )
    policy = Policy(stages=("large",), shadow=False, audit=0.05)
    return msgspec.structs.replace(config, models={"large": large}, cascade=policy, tasks={})


@dataclass(slots=True)
class _Show:
    """The demo's parts in order, and what they found."""

    config: Config
    folder: Path
    screen: Screen
    plan: Plan
    large: Large
    store: Store
    traffic: Traffic
    names: dict[str, str] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    async def all(self) -> dict[str, Any]:
        """Shows everything; returns what was measured."""
        began = time.monotonic()
        await self._import()
        before = await self._measure("2  Before: every call is the large model's", self._tickets(_BEFORE))
        self.screen.title("3  The loop: scrub, find tasks, and a specialist for each of the two dearest")
        released = await self._pass(self.plan.specialists)
        await self._select()
        live = [v for v in released if await self._rollout("4", v, self._tickets(_TRIALS, self.plan.trial))]
        for version in live:  # what the loop does by itself after more calls
            await release(self.store, version, to="live", share=1.0, reason="nothing to compare any more", by="demo")
        after = await self._measure("5  After: small first", self._tickets(_AFTER))
        self.screen.compare(before, after)
        self.found |= {"before": report.to_rows(before), "after": report.to_rows(after)}
        if live and len(released) > 1:
            await self._bad(live[0], next(version for version in released if version is not live[0]))
        await self._drift()
        self.found["seconds"] = time.monotonic() - began
        return self.found

    async def _import(self) -> None:
        self.screen.title("1  Import: a month of a help-desk agent's log")
        self.screen.say(
            f"The agent is simulated: six call sites, texts drawn by a seed. So is its large model, [bold]{NAME}[/]: "
            f"answers right by construction but for {MISTAKES:.0%}, at once, at {PRICED_AS}'s list price."
        )
        path, now = self.folder / "log.jsonl", time.time()
        asks = agent.asks(range(self.plan.tickets), seed=self.plan.seed)
        agent.write_log(path, asks, self.large, first=now - _MONTH_S, last=now - 1)
        with self.screen.bar("import", path.stat().st_size) as bar:
            done = await ingest.run(self.store, [path], progress=bar)
        self.screen.say(f"{done.added} calls of {self.plan.tickets} tickets imported from {escape(str(path))}.")

    async def _measure(self, title: str, asks: Sequence[Ask]) -> Report:
        """Live traffic, and its report."""
        self.screen.title(title)
        sent = await self._send(asks)
        made = await self.traffic.report(sent)
        failed = f" ({sent.failed} failed)" if sent.failed else ""
        figures = self.screen.figures(made.overall, "accuracy", "coverage", "cps", "latency_p50")
        self.screen.say(f"{made.overall.calls} calls{failed}: {figures}")
        if made.overall.afterwards_usd:
            beside = 1000 * made.overall.afterwards_usd / made.overall.calls
            self.screen.say(f"Shadows and audits, which are in no other cost: {beside:.2g} USD for 1,000 calls.")
        return made

    async def _send(self, asks: Sequence[Ask]) -> Sent:
        self.large.teach(asks)
        sent = Sent()
        with self.screen.bar("calls", len(asks)) as bar:
            await self.traffic.send(asks, sent, lambda: bar(len(sent.records) + sent.failed))
        return sent

    async def _pass(self, most: int, since: float | None = None) -> list[Version]:
        """A pass of the loop; the versions that it released."""
        plan = self.plan
        training = replace(plan.training, max_minutes=plan.minutes, seed=plan.seed)
        recipe = Recipe(material=plan.material, training=training, evaluation=plan.evaluating, rules=plan.rules)
        settings = Settings(self.folder / "loop", Triggers(plan.least_calls, 0.0), most=most, since=since)
        workshop = Conversion(self.store, self.config, {}, recipe)
        done = await Loop(self.store, workshop, settings, stages(self.screen.console)).once()
        self.names = {row.id: row.name for row in await self.store.tasks()}
        self.screen.outcomes(done)
        for each in done.tasks:
            if "evaluate" in each.found:
                self.screen.say(f"[bold]{escape(each.name)}[/]: {escape(each.found['evaluate']['promise'])}")
        self.found.setdefault("passes", []).append([asdict(each) for each in done.tasks])
        ids = [str(each.found["release"]["version"]) for each in done.tasks if each.outcome == "released"]
        return await self.store.versions(ids=ids)

    async def _select(self) -> None:
        """What the untrained model would be worth on the first task that was worked on."""
        states = [state for task, state in (await self.store.jobs()).items() if task and state]
        jobs = [msgspec.json.decode(state, type=Job) for state in states]
        job = next((job for job in jobs if "dataset" in job.found), None)
        if job is None:
            return
        data = card.load(Path(job.folder) / "dataset")
        known = await past.answers_of(self.store, data.splits["calibration"])
        with self.screen.bar("select", 1.0) as bar:
            found = await select(
                data,
                [named(models.DEFAULT_MODEL, self.config, {})],
                known,
                settings=self.plan.selecting,
                progress=lambda _, asked, total: bar(asked / max(total, 1)),
            )
        self.screen.say(f"Without training, {models.DEFAULT_MODEL} on {escape(job.name)}: {escape(found.why)}")
        self.found["select"] = found.why

    async def _rollout(self, number: str, version: Version, asks: Iterable[Ask]) -> bool:
        """Live traffic until the rollout has decided; returns whether the version is live."""
        name = self.names[version.task]
        self.screen.title(f"{number}  Rollout for {name}: shadow, canary, live")
        calls = await self._until_decided(version, asks)
        moves = [move for move in await self.store.moves(version.task) if move.version == version.id]
        self.screen.moves(moves, calls)
        self.found.setdefault("rollouts", []).append({"version": version.id, "step": moves[-1].step, "calls": calls})
        return moves[-1].step == "live"

    async def _until_decided(self, version: Version, asks: Iterable[Ask]) -> int:
        """Send those of the calls that are of the version's task until it is live or withdrawn, or time is up; returns
        how many were part of its rollout."""
        rows = await self.store.tasks()
        assigner = Assigner({row.id: cells_from_json(row.model) for row in rows})
        own = [ask for ask in asks if assigner.task(_prompt(ask)) == version.task]
        self.large.teach(own)
        sent, calls, until = Sent(), 0, time.monotonic() + self.plan.patience_s
        with self.screen.bar("calls", len(own)) as bar:
            for n, ask in enumerate(own):
                rollout = await self.store.rollout(version.task)
                if rollout is None or rollout.step in ("live", "rolled_back") or time.monotonic() > until:
                    break
                record = await self.traffic.one(ask, sent)
                tried = record is not None and (await self.store.get(record)).trial is not None
                calls += tried
                bar(n + 1)
                await asyncio.sleep(0.0 if tried else _FOLLOW_S)
                await self.traffic.settled(rollout.id, 0 if n + 1 == len(own) else _AHEAD)
        return calls

    async def _bad(self, good: Version, other: Version) -> None:
        """Another task's adapter in the good one's place, with its promise; the gateway takes it back."""
        name = self.names[good.task]
        self.screen.title(f"6  A bad adapter: {self.names[other.task]}'s is released for {name} by mistake")
        bad = await register(self.store, good.task, Path(other.adapter), good.base)
        rows = await self.store.calibrations()
        kept = json.loads(next(row.payload for row in rows if row.stage == good.id))
        await self.store.save_calibration(good.task, bad.id, json.dumps({**kept, "stage": bad.id}))
        since = time.time()
        await release(self.store, bad, to="canary", rules=self.plan.rules, reason="by mistake", by="demo")
        await self._until_decided(bad, self._tickets(_TRIALS + _MOST, self.plan.trial))
        found = self.store.summaries(RecordFilter(task=good.task, since=since))
        canary = [one async for one in found if one.trial is not None and one.trial.arm == "canary"]
        wrong = sum(one.by_small and one.correct is False for one in canary)
        last = [move for move in await self.store.moves(good.task) if move.version == bad.id][-1]
        live = (await self.store.release(good.task)).live
        self.screen.say(
            f"{last.step.replace('_', ' ')} after {len(canary)} calls of the canary; it had given {wrong} wrong "
            f"answers. {escape(last.reason)}. Live is {live}."
        )
        self.found["bad adapter"] = {"step": last.step, "canary_calls": len(canary), "wrong_answers": wrong}

    async def _drift(self) -> None:
        """A call site that was not there before, whose wording drifts; the loop takes it on."""
        plan, since = self.plan, time.time()
        ages = [n / plan.notes for n in range(plan.notes)]
        asks = [ask for n, age in enumerate(ages) for ask in agent.claim_asks([_NOTES + n], age=age, seed=plan.seed)]
        before = await self._measure("7  Drift: a seventh call site appears, and its wording changes", asks)
        for version in await self._pass(1, since):
            await self._rollout("8", version, self._late_notes(plan.notes, plan.trial))
        after = await self._measure("9  The seventh call site, small first", self._late_notes(_MOST, plan.later))
        self.screen.compare(before, after)
        self.found["drift"] = {"before": report.to_rows(before), "after": report.to_rows(after)}

    def _late_notes(self, first: int, count: int) -> list[Ask]:
        numbers = range(_NOTES + first, _NOTES + first + count)
        return list(agent.claim_asks(numbers, age=1.0, seed=self.plan.seed))

    def _tickets(self, first: int, count: int | None = None) -> list[Ask]:
        numbers = range(first, first + (self.plan.measured if count is None else count))
        return list(agent.asks(numbers, seed=self.plan.seed))


def _prompt(ask: Ask) -> Prompt:
    """The call's prompt as tasks see it."""
    functions = [tool["function"] for tool in ask.body.get("tools", ())]
    form = ask.body.get("response_format", {}).get("json_schema", {})
    return prompt_of(ask.body["messages"], [(f["name"], f["parameters"]) for f in functions], form.get("schema"))
