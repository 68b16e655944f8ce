"""Long work on a terminal: a bar for a training, with loss, tokens/s, the last evaluation and the time left, and bars
for the stages of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich import progress
from rich.console import Console
from rich.markup import escape

from smallfirst.learn.loop import Show
from smallfirst.learn.train import Progress
from smallfirst.learn.workshop import Tell


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


def stages(console: Console) -> Show:
    """Bars for the stages of the loop; each stays where it ended."""
    return partial(_stage, console)


@contextmanager
def _stage(console: Console, task: str, stage: str) -> Iterator[Tell]:
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=20),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    with progress.Progress(*columns, console=console) as bar:
        shown = bar.add_task(f"{stage:<9} {escape(task)}", total=1.0, note="")

        def tell(done: float, note: str) -> None:
            bar.update(shown, completed=done, note=escape(note))

        yield tell
        bar.update(shown, completed=1.0)
