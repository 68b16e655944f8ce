"""`report --watch`: the dashboard's figures as a picture in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from test_queries import ALL, fill
from typer.testing import CliRunner

from smallfirst.cli import app
from smallfirst.cli.watch import watch
from smallfirst.store import open_store


async def test_the_picture_shows_figures_costs_and_tasks(tmp_path: Path) -> None:
    """The sentence, figures with intervals, bars of cost, each task with its next step, and alarms, in 100 columns."""
    store = await open_store(f"sqlite:///{tmp_path}/calls.db")
    await fill(store)
    console = Console(width=100, record=True, force_terminal=False)
    with console.capture() as captured:
        await watch(store, ALL, console, rounds=1)
    await store.close()
    text = captured.get()
    assert "of 7 calls" in text
    assert "cost saved" in text
    assert "58.9 %" in text
    assert "small-first ▇" in text
    assert "mail" in text
    assert "Collect calls: 5 of about 200 are here." in " ".join(text.split())
    assert "ALARM" in text


def test_watching_gives_no_json() -> None:
    """--watch with --json is refused, with what to do."""
    result = CliRunner().invoke(app, ["report", "--watch", "--json"])
    assert result.exit_code != 0
    assert "Give one of them." in f"{result.output} {result.exception} {getattr(result.exception, 'hint', '')}"
