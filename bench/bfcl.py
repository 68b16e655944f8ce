"""The embedded models live on BFCL v4: what they get right, what tells right from wrong, and what a cascade saves.

    models     by constraint mode: accuracy, validity, latency, tokens, cost per success, and the constraint tax
    features   AUROC of each feature of confidence, and of the calibrator cross-fitted on all of them
    cascade    fitted on some of the questions, deciding the others, against the large model alone
    ablation   from the large model alone, through the small one with each part added, to the cascade

Questions are drawn in equal numbers of eight kinds: one call, one among several functions, several calls, none because
no function fits; of each the live (written by users) and the non-live ones. Whether to call is left to the model; with
--tool-choice required it must, and the last kind is left out. The last of the models stands in for a hosted large one;
all cost machine time. Every answer is kept in --work and asked once: a run that was cut off, or a larger one, goes on
from there, and the tables are made by running the real router and cascade over the answers kept. Remove the folder
after a change of prompts or engine.

Figures have 95 % intervals. CPS is USD per 1,000 right answers. tax: accuracy of `free` less that of the mode, paired.
ExecRate: valid after repair, as BFCL's functions cannot be run. In cascades `bound` is what was promised of accepted
answers' failures (of `cheapest`, the exact bound on its labels, which is no promise), and `broken` the share of splits
whose test questions failed more often; `CPS / large` is paired.

    python bench/bfcl.py --questions 24 --compared 8 --minutes 12
    python bench/bfcl.py --tool-choice required --questions 160 --compared 32 --threads 2 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from live.asking import MODES, Bench, Settings, ToolChoice, draw
from live.cascades import Plan, ablation, cascade_row, fitted, large_alone
from live.tables import EVIDENCE, Row, by_mode, features, kinds
from smallfirst import bfcl
from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend
from smallfirst.report import figure_row
from smallfirst.stats import Figure
from smallfirst.types import Backend

MODELS = Path.home() / ".cache" / "smallfirst-models"
SMALL = ("smollm2-135m-instruct-q4_1.gguf", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
LARGE = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
CONTEXT = 8192
FITTING = ("longest", "large_mode", "evidence", "delta", "failure_cost", "splits", "fit_share", "seed")
"""Options that are printed beside the settings."""


async def measure(bench: Bench, given: argparse.Namespace) -> dict[str, list[Row]]:
    """All tables from the answers recorded."""
    large = bench.stage(bench.settings.large, given.large_mode, small=False)
    alone = await large_alone(bench, large)
    cascades, ablations = [], []
    for small in bench.settings.smalls:
        fits = {}
        for evidence in kinds(bench, small):
            for alpha in (*given.alpha, None):
                plan = Plan(alpha, given.delta, given.splits, given.fit_share, given.seed, given.failure_cost)
                found = await fitted(bench, small, evidence, large, plan)
                row = {"small": small, "evidence": evidence, "threshold": plan.name}
                cascades.append(row | cascade_row(found, alone, plan))
                if evidence == given.evidence:
                    fits[plan.name] = found
        ablations += await ablation(bench, small, alone, fits)
    return {
        "models": await by_mode(bench),
        "features": await features(bench),
        "cascade": cascades,
        "ablation": ablations,
    }


async def run(backends: Mapping[str, Backend], questions: Sequence[bfcl.Question], given: argparse.Namespace) -> None:
    """Ask what is missing, measure, and print. `backends` are by model, the large one last."""
    *smalls, large = backends
    settings = Settings(
        smalls=tuple(smalls),
        large=large,
        work=given.work,
        tool_choice=given.tool_choice,
        mode=given.mode,
        compared=given.compared,
        samples=given.samples,
        repairs=given.repairs,
        usd_per_hour=given.usd_per_hour,
    )
    bench = Bench(settings, questions, backends)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("questions", total=None)

        def told(done: int, total: int, of_whom: str) -> None:
            progress.update(bar, completed=done, total=total, description=of_whom)

        await bench.ask(given.minutes, told)
        progress.update(bar, description="fitting and deciding")
        tables = await measure(bench, given)
    chosen = {key: value for key, value in asdict(settings).items() if key != "work"} | {"questions": len(questions)}
    chosen |= {name: getattr(given, name) for name in FITTING}
    show(tables, chosen, as_json=given.json)


def show(tables: Mapping[str, Sequence[Row]], settings: Row, *, as_json: bool) -> None:
    if as_json:
        plain = {name: [{k: _plain(v) for k, v in row.items()} for row in rows] for name, rows in tables.items()}
        print(json.dumps(plain | {"settings": settings}, indent=1))
        return
    console = Console()
    console.width = max(console.width, 200)
    for name, rows in tables.items():
        columns = [Column(column, overflow="fold") for column in (rows[0] if rows else ())]
        table = Table(*columns, title=name, title_justify="left")
        for row in rows:
            table.add_row(*(_cell(value) for value in row.values()))
        console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in settings.items()), highlight=False)


def _plain(value: Any) -> Any:
    return figure_row(value) if isinstance(value, Figure) else value


def _cell(value: Any) -> str:
    if not isinstance(value, Figure):
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    if value.value is None:
        return f"- (n {value.n})"
    low, high = ("" if end is None else f"{end:.3g}" for end in (value.low, value.high))
    return f"{value.value:.3g} [{low}, {high}]\nn {value.n}"


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", nargs="+", type=Path, default=[MODELS / name for name in SMALL], help="GGUF files")
    parser.add_argument("--large", type=Path, default=MODELS / LARGE, help="GGUF file")
    parser.add_argument("--work", type=Path, default=Path("bfcl-live"), help="folder of the answers kept")
    parser.add_argument("--questions", type=int, default=160, help="asked in --mode")
    parser.add_argument("--compared", type=int, default=48, help="of these, asked in every mode")
    parser.add_argument("--longest", type=int, default=6000, help="characters of a question's functions at most")
    parser.add_argument("--minutes", type=float, default=120, help="of asking; the tables are of what there is then")
    parser.add_argument("--tool-choice", choices=get_args(ToolChoice), default="auto")
    parser.add_argument("--mode", choices=MODES, default="constrained", help="the small models' in the cascade")
    parser.add_argument("--large-mode", choices=MODES, default="constrained")
    parser.add_argument("--samples", type=int, default=2, help="further answers of a small model, to see if they agree")
    parser.add_argument("--repairs", type=int, default=1, help="of an invalid answer of a small model")
    parser.add_argument("--alpha", nargs="*", type=float, default=[0.05, 0.2], help="promises to be certified")
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--failure-cost", type=float, default=8.0, help="large calls, for the cheapest threshold")
    parser.add_argument("--evidence", choices=EVIDENCE, default="second", help="what the ablation's cascades use")
    parser.add_argument("--splits", type=int, default=10, help="random ones")
    parser.add_argument("--fit-share", type=float, default=0.5, help="of the questions, to fit a cascade on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--usd-per-hour", type=float, default=0.10, help="the machine's price")
    parser.add_argument("--threads", type=int, default=0, help="of the engine; by default a core fewer than there are")
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    given = options().parse_args()
    backends: dict[str, Backend] = {}
    for path in (*given.small, given.large):
        threads = {"threads": given.threads, "batch_threads": given.threads} if given.threads else {}
        backends[path.stem] = LlamaCppBackend(EngineConfig(path, context=CONTEXT, slots=1, **threads))
    questions = draw(bfcl.fetch(), given.questions, given.seed, given.longest, given.tool_choice)
    asyncio.run(run(backends, questions, given))


if __name__ == "__main__":
    main()
