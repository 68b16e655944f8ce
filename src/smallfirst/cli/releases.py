"""`release`, `rollback`, `releases`: which version of a task's small model answers."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from smallfirst import models
from smallfirst.cli.common import (
    ConfigOption,
    JsonOption,
    StoreOption,
    configured,
    out,
    parse_duration,
    print_json,
    pull_progress,
    task_named,
    tell,
    with_store,
)
from smallfirst.cli.dataset import TaskArgument
from smallfirst.config import Config, ModelConfig
from smallfirst.errors import ConfigError, NotFoundError
from smallfirst.registry import Move, Release, Version
from smallfirst.rollout import Evidence, Rollout, decide
from smallfirst.store import Store

app = typer.Typer()


class To(StrEnum):
    shadow = "shadow"
    canary = "canary"
    live = "live"


@app.command(epilog="Example: smallfirst release invoices --adapter adapters/invoices/adapter.gguf --to canary")
def release(
    task: TaskArgument,
    to: Annotated[To, typer.Option(help="shadow: only recorded; canary: for a share of episodes; live: for all.")],
    adapter: Annotated[Path | None, typer.Option(help="What `smallfirst train` made; it becomes a version.")] = None,
    base: Annotated[str, typer.Option(help="The model that the adapter is for.")] = models.DEFAULT_MODEL,
    model: Annotated[
        str | None,
        typer.Option(help="A model as it is, a compressor too: a [models.NAME] table, catalogue name or GGUF file."),
    ] = None,
    version: Annotated[str | None, typer.Option(help="A version; default: the one on trial, else the newest.")] = None,
    share: Annotated[float | None, typer.Option(help="Its share of episodes; 1 with live ends comparing.")] = None,
    audited: Annotated[float | None, typer.Option(help="Audit the incumbent's answers at least so often.")] = None,
    settle: Annotated[str | None, typer.Option(help="Wait so long for a call's label: 20s, 1h, ...")] = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a version of a task's small model into service; from there its calls decide, and it goes back if it is worse.

    Running gateways follow within a second, without a restart.
    """
    from smallfirst.learn import release as stage

    made = {"--adapter": adapter, "--model": model, "--version": version}
    if len(given := [option for option, value in made.items() if value is not None]) > 1:
        raise ConfigError(f"{' and '.join(given)} are given.", hint="Give one of them.")
    if audited is not None and not 0 < audited <= 1:
        raise ConfigError(f"--audited is {audited!r}.", hint="Allowed: a number above 0, up to 1.")
    settle_s = None if settle is None else parse_duration("--settle", settle)

    named = "" if model is None else _model(model, configured(config, store))

    async def work(db: Store) -> None:
        name = await _task(db, task)
        if adapter is not None or model is not None:
            chosen = await stage.register(db, name, adapter, _pulled(base) if model is None else named)
        else:
            chosen = await _version(db, name, version)
        rules = await stage.rules_for(db, name, (await db.release(name)).live)
        rules = rules if audited is None else replace(rules, labelled_incumbent=audited)
        rules = rules if settle_s is None else replace(rules, settle_s=settle_s)
        done = await stage.release(db, chosen, to=to.value, share=share, rules=rules)
        served = done.rollout.share if done.rollout else 0.0
        said = "nobody is served by it" if to is To.shadow else f"{served:.0%} of episodes are its"
        tell(f"{chosen.id} is in step {to.value}: {said}.", _facts(done), as_json=as_json)

    with_store(config, work, store)


@app.command(epilog="Example: smallfirst rollback invoices --reason 'wrong totals since noon'")
def rollback(
    task: TaskArgument,
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit trail.")] = "by hand",
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Withdraw the version that is on trial, or else put the one before the live one back in its place."""
    from smallfirst.learn import release as stage

    async def work(db: Store) -> None:
        done = await stage.rollback(db, await _task(db, task), reason=reason)
        live = f"{done.live} is live" if done.live else "the configured models answer"
        tell(f"Taken back; {live}.", _facts(done), as_json=as_json)

    with_store(config, work, store)


@app.command(epilog="Example: smallfirst releases invoices")
def releases(
    task: Annotated[str | None, typer.Argument(help="With a task: its versions and what became of them, too.")] = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which versions are live, previous and on trial, how far each rollout has come, and what it waits for."""

    async def work(db: Store) -> None:
        if task is None:
            found = await db.releases()
            print_json([_facts(one) for one in found]) if as_json else out.print(_table(found))
            return
        name = await _task(db, task)
        one, versions, moves = await db.release(name), await db.versions(name), await db.moves(name)
        if not versions:
            await task_named(db, task)
        if as_json:
            print_json(_facts(one) | {"versions": versions, "moves": moves})
            return
        out.print(_table([one]))
        out.print(_versions(versions))
        out.print(_moves(moves))

    with_store(config, work, store)


def _model(name: str, config: Config) -> ModelConfig | str:
    """The model that is configured under that name, else the name of weights, which are there then."""
    table = config.models.get(name)
    if table is None:
        if name not in models.CATALOGUE and not Path(name).expanduser().is_file():
            known = ", ".join([*config.models, *models.CATALOGUE])
            raise NotFoundError(f"There is no model {name!r}.", hint=f"Name one of {known}, or a GGUF file.")
        return _pulled(name)
    if not table.is_small:
        raise ConfigError(f"models.{name} is configured as large.", hint="Set small = true, or name another model.")
    if table.adapter:
        hint = (
            f"Give --adapter {table.adapters.get(table.adapter, table.adapter)} --base {table.weights or table.model}."
        )
        raise ConfigError(f"models.{name} is asked with the adapter {table.adapter!r}.", hint=hint)
    return table


def _pulled(base: str) -> str:
    if base in models.CATALOGUE:
        with pull_progress() as show:
            models.pull(base, show)
    return base


async def _task(db: Store, said: str) -> str:
    """The id of the task that is named so, else the name as records have it."""
    return next((row.id for row in await db.tasks() if row.name == said), said)


async def _version(db: Store, task: str, said: str | None) -> Version:
    known = {version.id: version for version in await db.versions(task)}
    if not known:
        raise NotFoundError(
            f"There is no version of {task!r}.", hint="Give --adapter adapters/TASK/adapter.gguf, or --model."
        )
    wanted = said or (await db.release(task)).candidate or list(known)[-1]
    if wanted not in known:
        raise NotFoundError(f"There is no version {wanted!r} of {task!r}.", hint=f"There are: {', '.join(known)}.")
    return known[wanted]


def _facts(release: Release) -> dict[str, Any]:
    rollout = release.rollout
    return {
        "task": release.task,
        "aliases": dict(release.aliases),
        "changed_at": release.changed_at,
        "changed_by": release.changed_by,
        "rollout": None if rollout is None else asdict(rollout) | _shown(release, rollout),
    }


def _shown(release: Release, rollout: Rollout) -> dict[str, Any]:
    """What the rollout's step has shown, and what follows from it; nothing where it was kept by another version."""
    try:
        evidence = Evidence.from_json(rollout, release.evidence)
    except ValueError:
        evidence = Evidence(rollout)
    return {"calls": evidence.calls, "known": evidence.shown, "because": decide(rollout, evidence).reason}


def _table(found: list[Release]) -> Table:
    whole = (Column(title, overflow="fold") for title in ("task", "live", "previous", "on trial"))
    table = Table(*whole, "step", "share", "calls", "because")
    for one in found:
        names = [_short(name) for name in (one.live, one.previous, one.candidate)]
        if one.trial is None:
            table.add_row(escape(one.task), *names, "", "", "", "")
            continue
        shown = _shown(one, one.trial)
        step = [one.trial.step, f"{one.trial.share:.0%}", str(shown["calls"]), escape(shown["because"])]
        table.add_row(escape(one.task), *names, *step)
    return table


def _versions(versions: list[Version]) -> Table:
    table = Table(Column("version", no_wrap=True), "made", "base", "adapter", "made from")
    for one in versions:
        parents = ", ".join(parent[:12] for parent in one.parents)
        table.add_row(escape(one.id), _time(one.created_at), escape(one.base), one.adapter_sha256[:12], parents)
    return table


def _moves(moves: list[Move]) -> Table:
    table = Table("when", "version", "to", "share", "by", "why")
    for one in moves:
        table.add_row(_time(one.at), _short(one.version), one.step, f"{one.share:.0%}", one.by, escape(one.reason))
    return table


def _short(version: str) -> str:
    """A version without its task."""
    return version.rpartition("@")[2]


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
