"""Training on a terminal: a bar with loss, tokens/s, the last evaluation and the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

from smallfirst.learn.train import Progress


@contextmanager
def shown(console: Console, name: str) -> Iterator[Callable[[Progress], None]]:
    """A bar for the time of the context; what it yields is `train`'s `report`."""
    columns = (
        progress.TextColumn("train {task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[state]}"),
    )
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=1.0, state="")

        def report(at: Progress) -> None:
            score = "" if at.score is None else f", score {at.score:.3f}"
            minutes, seconds = divmod(round(at.seconds_left), 60)
            state = f"loss {at.loss:.3f}{score}, {at.tokens_per_s:.0f} tok/s, {minutes}:{seconds:02d} left"
            bar.update(task, completed=at.done, state=state)

        yield report
