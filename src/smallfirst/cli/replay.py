"""`replay`: what the cascade would have made of recorded calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from smallfirst.cli.common import JsonOption, err, out, print_json

app = typer.Typer()

_EXAMPLE = "Example: smallfirst replay calls.jsonl.gz --small xLAM-7b --second xLAM-1b --large gpt-4o --alpha 0.05"


@app.command(epilog=_EXAMPLE)
def replay(
    file: Annotated[Path, typer.Argument(help="Recorded calls: JSONL, gzip or not, one call a line.")],
    small: Annotated[str, typer.Option(help="The model that answers first.")],
    large: Annotated[str, typer.Option(help="The model that is escalated to.")],
    second: Annotated[
        str | None, typer.Option(help="A second small model: its agreement is evidence; else the surer answer counts.")
    ] = None,
    fit: Annotated[
        Path | None, typer.Option(help="Calls to calibrate on; without it, random halves of FILE are.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0.0001, max=0.9999, help="Most that accepted answers may fail; without it, what is cheapest."),
    ] = None,
    delta: Annotated[float, typer.Option(min=0.0001, max=0.9999, help="Chance that the promise is missed.")] = 0.05,
    horizon: Annotated[
        bool, typer.Option("--horizon", help="Promise it for the test calls themselves, not for the rate behind them.")
    ] = False,
    splits: Annotated[int, typer.Option(min=1, help="Random halves.")] = 50,
    seed: Annotated[int, typer.Option(help="Which halves are drawn.")] = 0,
    small_cost_ratio: Annotated[
        float, typer.Option(min=0, help="What a self-hosted call costs, of a call of the large model.")
    ] = 0.05,
    failure_cost: Annotated[
        float,
        typer.Option(min=0, help="Without --alpha: what a wrong answer costs, in large calls."),
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Run recorded answers through the router, calibrator, guarantee and cascade, and compare with simple ways.

    A line: {"id", "category", "request": {OpenAI chat body}, "gold", "answers": {model: {"tool_calls":
    [{"name", "arguments"}] or null, "content", "correct", "input_tokens", "output_tokens", "latency_s"}}}.
    """
    from smallfirst.replay import tables
    from smallfirst.replay.calls import load
    from smallfirst.replay.run import Settings, run

    settings = Settings(
        small=small,
        large=large,
        second=second,
        alpha=alpha,
        delta=delta,
        splits=1 if fit else splits,
        seed=seed,
        small_cost_ratio=small_cost_ratio,
        failure_cost=failure_cost,
        horizon=horizon,
    )
    calls = load(file, settings.models, role="test:")
    fit_on = None if fit is None else load(fit, settings.models, role="fit:")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("splits", total=None)
        result = run(calls, settings, fit_on, lambda done, all_: bar.update(task, completed=done, total=all_))
    if as_json:
        print_json(tables.to_json(result))
    else:
        out.print(tables.render(result))
