"""The command line: `smallfirst --help`. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from smallfirst import __version__, models
from smallfirst.assemble import open_configured_store
from smallfirst.config import Config, load, parse
from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.store import KeyLimits, RecordFilter, Store

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
records_app = typer.Typer(no_args_is_help=True, help="Look at recorded calls.")
keys_app = typer.Typer(no_args_is_help=True, help="API keys of the gateway's callers.")
models_app = typer.Typer(no_args_is_help=True, help="Weights of embedded models.")
app.add_typer(records_app, name="records")
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")

NOTHING_RECORDED = "No such calls are recorded. [bold]smallfirst serve[/] records those sent through it."
out, err = Console(), Console(stderr=True)


class RoleName(StrEnum):
    """The roles, for the command line."""

    agent = "agent"
    viewer = "viewer"
    operator = "operator"
    admin = "admin"


class ToolChoiceName(StrEnum):
    """What the demo asks for."""

    auto = "auto"
    required = "required"


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Configuration file; default: smallfirst.toml here, if there is one."),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="SQLite file or database URL; overrides store.url of the configuration.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """Entry point: runs a command and turns our errors into one clear line."""
    try:
        app()
    except SmallfirstError as error:
        err.print("[bold red]error:[/]", escape(error.message), highlight=False)
        if error.hint:
            err.print(f"       {error.hint}", highlight=False, markup=False)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Answers an agent's model calls with a small model first, and proves each saving."""
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command(epilog="Example: smallfirst init && smallfirst serve")
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("smallfirst.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    print_it: Annotated[bool, typer.Option("--print", help="Print it instead.")] = False,
) -> None:
    """Write a commented configuration file."""
    text = resources.files("smallfirst").joinpath("smallfirst.toml").read_text(encoding="utf-8")
    if print_it:
        sys.stdout.write(text)
        return
    if path.exists() and not force:
        raise ConfigError(f"{str(path)!r} exists.", hint="Use --force to overwrite it, or give another name.")
    path.write_text(text, encoding="utf-8")
    out.print(f"Wrote {path}. Next: [bold]smallfirst serve[/]")


@app.command(epilog="Example: OPENAI_API_KEY=... smallfirst serve, then point any client to http://127.0.0.1:8787/v1")
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides server.host.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; overrides server.port.")
    ] = None,
) -> None:
    """Run the gateway."""
    from smallfirst.serve.server import run

    settings = load(config, os.environ)
    given = {k: v for k, v in {"host": host, "port": port}.items() if v is not None}
    settings = msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, **given))
    pull_weights(settings)
    stages = " -> ".join(settings.cascade.stages)
    err.print(f"smallfirst {__version__} on [bold]http://{settings.server.host}:{settings.server.port}[/]")
    err.print(f"  models   {stages}  ({settings.cascade.mode})", highlight=False)
    err.print(f"  records  {settings.store.url}", highlight=False, markup=False)
    run(settings)


@app.command(epilog="Example: smallfirst demo --calls 60")
def demo(
    calls: Annotated[int, typer.Option(min=4, help="Questions to ask at most.")] = 60,
    seconds: Annotated[float, typer.Option(min=1, help="Begin no question after so many seconds.")] = 150,
    tool_choice: Annotated[
        ToolChoiceName, typer.Option(help="required: questions that want a call; auto: also some that want none.")
    ] = ToolChoiceName.required,
    store: Annotated[Path, typer.Option(help="SQLite file that keeps the records.")] = Path("demo.db"),
    seed: Annotated[int, typer.Option(help="Which questions are drawn.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer real function-calling questions with the embedded model, and measure the answers against gold."""
    from smallfirst import demo as job
    from smallfirst.serve.server import serving
    from smallfirst.serve.telemetry import configure_logging

    settings = _demo_settings(store)
    configure_logging(settings.telemetry)
    pull_weights(settings)

    async def work() -> None:
        async with serving(settings, {}) as url:
            db = await open_configured_store(settings, {})
            try:
                opened_by = f"--store {store}"
                ask = partial(job.run, db, f"{url}/v1", "unused", out, where=str(store), opened_by=opened_by)
                await ask(n=calls, seconds=seconds, seed=seed, tool_choice=tool_choice.value, as_json=as_json)
            finally:
                await db.close()

    asyncio.run(work())


@app.command(epilog="Example: smallfirst report --since 7d --json")
def report(
    config: ConfigOption = None,
    store: StoreOption = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    since: Annotated[str | None, typer.Option(help="Only calls of the last 30m, 12h, 7d, ...")] = None,
    as_json: JsonOption = False,
) -> None:
    """What the calls cost, how many succeeded, and how sure that is."""
    from smallfirst import report as reports

    async def work(db: Store) -> None:
        wanted = RecordFilter(task=task, since=parse_since(since))
        result = reports.summarise([s async for s in db.summaries(wanted)])
        if as_json:
            print_json(reports.to_rows(result))
        else:
            out.print(reports.render(result) if result.overall.calls else NOTHING_RECORDED)

    with_store(config, work, store)


@records_app.command("list", epilog="Example: smallfirst records list --task invoices --decision abstain --limit 5")
def records_list(
    config: ConfigOption = None,
    store: StoreOption = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    decision: Annotated[str | None, typer.Option(help="accept, escalate or abstain.")] = None,
    model: Annotated[str | None, typer.Option(help="Only what this model served.")] = None,
    episode: Annotated[str | None, typer.Option(help="Only this episode.")] = None,
    since: Annotated[str | None, typer.Option(help="Only calls of the last 30m, 12h, 7d, ...")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List recorded calls, newest first."""
    if decision not in {None, "accept", "escalate", "abstain"}:
        raise ConfigError(f"--decision is {decision!r}.", hint="Allowed: accept, escalate, abstain.")
    wanted = RecordFilter(task, decision, model=model, episode=episode, since=parse_since(since))  # type: ignore[arg-type]

    async def work(db: Store) -> None:
        rows = await db.list_records(wanted, limit=limit)
        if as_json:
            print_json(rows)
            return
        if not rows:
            out.print(NOTHING_RECORDED)
            return
        table = Table(
            Column("record", min_width=36), "when", "task", "decision", "reason", "model", "tokens", "s", "USD", "right"
        )
        for r in rows:
            when = time.strftime("%m-%d %H:%M:%S", time.localtime(r.created_at))
            usd = "?" if r.cost_usd is None else f"{r.cost_usd:.2g}"
            right = {None: "", True: "yes", False: "no"}[r.correct]
            tokens = f"{r.input_tokens}+{r.output_tokens}"
            table.add_row(r.id, when, r.task, r.decision, r.reason, r.model, tokens, f"{r.seconds:.2f}", usd, right)
        out.print(table)

    with_store(config, work, store)


@records_app.command("show", epilog="Example: smallfirst records show 0199...")
def records_show(
    record: Annotated[str, typer.Argument(help="The record's id.")],
    config: ConfigOption = None,
    store: StoreOption = None,
) -> None:
    """Print a recorded call whole, as JSON."""

    async def work(db: Store) -> None:
        print_json(await db.get(record))

    with_store(config, work, store)


@records_app.command("export", epilog="Example: smallfirst records export --task invoices > invoices.jsonl")
def records_export(
    config: ConfigOption = None,
    store: StoreOption = None,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    since: Annotated[str | None, typer.Option(help="Only calls of the last 30m, 12h, 7d, ...")] = None,
) -> None:
    """Write recorded calls to standard output, one JSON object a line."""

    async def work(db: Store) -> None:
        async for record in db.export(RecordFilter(task=task, since=parse_since(since))):
            sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")

    with_store(config, work, store)


@records_app.command("rotate", epilog="Example: SMALLFIRST_ENCRYPTION_KEY=new:...,old:... smallfirst records rotate")
def records_rotate(config: ConfigOption = None, store: StoreOption = None) -> None:
    """Encrypt every payload anew under the first key of the encryption key variable."""

    async def work(db: Store) -> None:
        out.print(f"Encrypted {await db.rotate()} payloads anew.")

    with_store(config, work, store)


@keys_app.command("add", epilog="Example: smallfirst keys add ci --requests-per-minute 600 --usd-per-day 5")
def keys_add(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    role: Annotated[RoleName, typer.Option(help="What it may do.")] = RoleName.agent,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Calls at the same time.")] = None,
    usd_per_day: Annotated[float | None, typer.Option(min=0, help="Budget, days counted in UTC.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key. Its secret is shown once and kept only as a hash."""

    async def work(db: Store) -> None:
        limits = KeyLimits(requests_per_minute, tokens_per_minute, concurrent, usd_per_day)
        row, secret = await db.add_key(name, role.value, limits)
        if as_json:
            print_json({"id": row.id, "name": row.name, "role": row.role, "key": secret})
        else:
            out.print(f"Key [bold]{row.id}[/] ({row.role}); it is shown this once:", highlight=False)
            out.print(secret, highlight=False, markup=False, soft_wrap=True)

    with_store(config, work)


@keys_app.command("list", epilog="Example: smallfirst keys list --json")
def keys_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List API keys (never their secrets)."""

    async def work(db: Store) -> None:
        rows = await db.list_keys()
        if as_json:
            print_json([{k: v for k, v in msgspec.to_builtins(r).items() if k != "secret_hash"} for r in rows])
            return
        table = Table("id", "name", "role", "limits", "created", "revoked")
        for row in rows:
            given = msgspec.to_builtins(row.limits).items()
            limits = ", ".join(f"{k} {v:g}" for k, v in given if v is not None) or "none"
            days = [time.strftime("%Y-%m-%d", time.localtime(t)) if t else "" for t in (row.created_at, row.revoked_at)]
            table.add_row(row.id, escape(row.name), row.role, limits, *days)
        out.print(table)

    with_store(config, work)


@keys_app.command("revoke", epilog="Example: smallfirst keys revoke k3j9")
def keys_revoke(key: Annotated[str, typer.Argument(help="The key's id.")], config: ConfigOption = None) -> None:
    """Revoke an API key; a running gateway refuses it within two seconds."""

    async def work(db: Store) -> None:
        await db.revoke_key(key)
        out.print(f"Revoked {key}.")

    with_store(config, work)


@models_app.command("pull", epilog="Example: smallfirst models pull smollm2-135m")
def models_pull(name: Annotated[str, typer.Argument(help="The model's name.")] = models.DEFAULT_MODEL) -> None:
    """Fetch a model's weights, check them, and convert them once to the format they are served in."""
    with pull_progress() as show:
        path = models.pull(name, show)
    out.print(f"{name} is at {path}", highlight=False)


@models_app.command("list", epilog="Example: smallfirst models list")
def models_list(as_json: JsonOption = False) -> None:
    """List the models that can be pulled and those that are here."""
    here = {m.name: m for m in models.installed()}
    rows = [
        {"name": w.name, "summary": w.summary, "licence": w.licence, "format": w.format, "here": w.name in here}
        for w in models.CATALOGUE.values()
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("name", "model", "licence", "format", "here")
    for row in rows:
        table.add_row(*(str(row[k]) for k in ("name", "summary", "licence", "format")), "yes" if row["here"] else "no")
    out.print(table)


@models_app.command("rm", epilog="Example: smallfirst models rm smollm2-135m")
def models_rm(name: Annotated[str, typer.Argument(help="The model's name.")]) -> None:
    """Delete a model's weights from this machine."""
    if not models.remove(name):
        raise ConfigError(f"{name!r} is not on this machine.", hint="`smallfirst models list` shows what is.")
    out.print(f"Removed {name}.")


def _demo_settings(store: Path) -> Config:
    """The defaults whatever keys the environment holds, so without a large model, and a store of its own."""
    return _with_store_url(parse("", {}), f"sqlite:///{store}")


def pull_weights(config: Config) -> None:
    """Fetch the catalogue's weights that `config` needs and this machine lacks, with a progress bar."""
    for model in config.models.values():
        if model.backend == "llamacpp" and model.weights in models.CATALOGUE:
            with pull_progress() as show:
                models.pull(model.weights, show)


class pull_progress:  # noqa: N801 - a context manager that reads as a verb
    """A progress bar for `models.pull`; appears with the first report."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, transient=True)
        self._task: Any = None

    def __enter__(self) -> models.Progress:
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show(self, what: str, done: int, total: int) -> None:
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(what)
        self._bar.update(self._task, description=what, completed=done, total=total or None)


def with_store(config: Path | None, work: Callable[[Store], Awaitable[None]], url: str | None = None) -> None:
    """Run `work` with the configured store open, or the one at `url`."""
    settings = load(config, os.environ)
    if url is not None:
        if "://" not in url and not Path(url).is_file():
            raise ConfigError(f"There is no store at {url!r}.", hint="Give an SQLite file or a database URL.")
        settings = _with_store_url(settings, url if "://" in url else f"sqlite:///{url}")

    async def run() -> None:
        store = await open_configured_store(settings, os.environ)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(run())


def _with_store_url(config: Config, url: str) -> Config:
    return msgspec.structs.replace(config, store=msgspec.structs.replace(config.store, url=url))


def parse_since(text: str | None) -> float | None:
    """ "30m", "12h", "7d" -> seconds since the epoch. Raises ConfigError for anything else."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.replace(".", "", 1).isdigit():
        raise ConfigError(f"--since is {text!r}.", hint="Give a number and one of s m h d w, as in 12h.")
    return time.time() - float(number) * units[unit]


def print_json(value: Any) -> None:
    """Write `value` as indented JSON to standard output."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
