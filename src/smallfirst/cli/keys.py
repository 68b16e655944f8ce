"""`keys`: who may call the gateway."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from smallfirst.cli.common import ConfigOption, JsonOption, out, print_json, tell, with_store
from smallfirst.errors import ConfigError
from smallfirst.store import KeyLimits, Store

app = typer.Typer(no_args_is_help=True, help="API keys of the gateway's callers.")


class RoleName(StrEnum):
    """The roles, for the command line."""

    agent = "agent"
    viewer = "viewer"
    operator = "operator"
    admin = "admin"


@app.command("add", epilog="Example: smallfirst keys add ci --requests-per-minute 600 --usd-per-day 5")
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
    if not name.strip():
        raise ConfigError(
            f"The key's name is {name!r}.", hint="Say what the key is for, as in `smallfirst keys add ci`."
        )

    async def work(db: Store) -> None:
        limits = KeyLimits(requests_per_minute, tokens_per_minute, concurrent, usd_per_day)
        row, secret = await db.add_key(name, role.value, limits)
        if as_json:
            print_json({"id": row.id, "name": row.name, "role": row.role, "key": secret})
        else:
            out.print(f"Key [bold]{row.id}[/] ({row.role}); it is shown this once:", highlight=False)
            out.print(secret, highlight=False, markup=False, soft_wrap=True)

    with_store(config, work, make=True)


@app.command("list", epilog="Example: smallfirst keys list --json")
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


@app.command("revoke", epilog="Example: smallfirst keys revoke k3j9")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="The key's id.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke an API key; a running gateway refuses it within two seconds."""

    async def work(db: Store) -> None:
        await db.revoke_key(key)
        tell(f"Revoked {key}.", {"id": key}, as_json=as_json)

    with_store(config, work)
