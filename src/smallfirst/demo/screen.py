"""What the demo prints: titles, sentences, bars and the tables of its second part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from smallfirst.learn.loop import Pass
from smallfirst.registry import Move
from smallfirst.report import FIGURES, FigureSpec, Report, Summary, interval_text, number_text
from smallfirst.stats import Figure

_SPECS = {spec.attribute: spec for spec in FIGURES}


class Screen:
    """A console with the demo's habits."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def title(self, text: str) -> None:
        """Begins a part."""
        self.console.print()
        self.console.rule(f"[bold]{escape(text)}", align="left")

    def say(self, markup: str) -> None:
        """A sentence."""
        self.console.print(markup, highlight=False)

    @contextmanager
    def bar(self, what: str, total: float) -> Iterator[Callable[[float], None]]:
        """A bar; what it yields is told how much of `total` is done."""
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            shown = progress.add_task(f"{what:<9}", total=total)
            yield lambda done: progress.update(shown, completed=done)

    def outcomes(self, done: Pass) -> None:
        """What a pass of the loop did with each task."""
        table = Table("task", "outcome", "why", box=SIMPLE, pad_edge=False)
        for each in done.tasks:
            table.add_row(escape(each.name), each.outcome, escape(each.why))
        self.console.print(table)

    def moves(self, moves: Sequence[Move], calls: int) -> None:
        """The steps of a rollout that took so many calls."""
        for move in moves:
            share = f" for {move.share:.0%} of episodes" if move.share else ""
            self.say(f"  {move.step}{share}, by {move.by}: {escape(move.reason)}")
        self.say(f"  {calls} calls of the task were sent meanwhile.")

    def figures(self, summary: Summary, *names: str) -> str:
        """Figures in a sentence, each with its interval."""
        return ", ".join(f"{_SPECS[name].name} {figure(getattr(summary, name), _SPECS[name])}" for name in names) + "."

    def compare(self, before: Report, after: Report) -> None:
        """Cost per success of each call site before and after."""
        title = "USD for 1,000 right answers (95 %)"
        table = Table(box=SIMPLE, padding=0, title=title, title_justify="left")
        for heading in ("call site", "before", "after", "saved", "right before", "right after", "by small"):
            table.add_column(heading, justify="left" if heading == "call site" else "right")
        later = {summary.task: summary for summary in (*after.tasks, after.overall)}
        for one in (*before.tasks, before.overall):
            if (other := later.get(one.task)) is None:
                continue
            cells = [figure(each.cps, _SPECS["cps"]) for each in (one, other)]
            rights = [figure(each.accuracy, _SPECS["accuracy"]) for each in (one, other)]
            figures = (*cells, saved(one.cps, other.cps), *rights, figure(other.coverage, _SPECS["coverage"]))
            table.add_row(one.task or "all", *(text.replace(" USD", "").replace(" (", "\n(") for text in figures))
        self.console.print(table)


def figure(value: Figure, spec: FigureSpec) -> str:
    """The figure with its unit and its interval."""
    if value.value is None:
        return "-"
    ends = interval_text(value, spec, 2).replace(" ", "")
    unit = {"rate": " %", "seconds": " s", "usd": " USD"}.get(spec.unit, "")
    return number_text(value.value, spec, 2) + unit + (f" ({ends})" if ends else "")


def saved(before: Figure, after: Figure) -> str:
    """The share saved, with the interval that follows from the two (at least as wide as 95 % needs)."""
    if not before.value or after.value is None:
        return "-"
    text = f"{1 - after.value / before.value:.0%}"
    if before.low and before.high and after.low is not None and after.high is not None:
        text += f" ({1 - after.high / before.low:.0%} to {1 - after.low / before.high:.0%})"
    return text
