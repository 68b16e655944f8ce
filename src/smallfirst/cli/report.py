"""`report`: what the recorded calls came to."""

from __future__ import annotations

import typer

from smallfirst import report as reports
from smallfirst.cli.common import (
    NOTHING_RECORDED,
    ConfigOption,
    JsonOption,
    SinceOption,
    StoreOption,
    TaskOption,
    out,
    parse_since,
    print_json,
    with_store,
)
from smallfirst.store import RecordFilter, Store

app = typer.Typer()


@app.command(epilog="Example: smallfirst report --since 7d --json")
def report(
    config: ConfigOption = None,
    store: StoreOption = None,
    task: TaskOption = None,
    since: SinceOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the calls cost, how many succeeded, and how sure that is."""

    async def work(db: Store) -> None:
        wanted = RecordFilter(task=task, since=parse_since(since))
        tally = reports.Tally()
        async for summary in db.summaries(wanted):
            tally.add(summary)
        result = tally.report()
        if as_json:
            print_json(reports.to_rows(result))
        else:
            out.print(reports.render(result) if result.overall.calls else NOTHING_RECORDED)

    with_store(config, work, store)
