"""Does our scorer decide as BFCL's own checker does? Every item of the single-turn Python categories is asked.

Three sets of answers go to both: the gold answers with every alternative, systematic perturbations of them, and the
answers that models gave (`--data`, optional). BFCL's checker is loaded alone out of the pinned wheel. Where it raises
an exception it has no verdict: such answers are counted in a column of their own.

    python bench/bfcl_scorer.py --data ../shared/data/replay/bfcl_2024-08-11.jsonl.gz
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smallfirst import bfcl
from smallfirst.stats import Figure, wilson
from smallfirst.types import ToolCall

CATEGORIES = (
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance"),
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
)
RECORDED = {
    "simple": "simple_python",
    "multiple_function": "multiple",
    "parallel_function": "parallel",
    "parallel_multiple_function": "parallel_multiple",
    "relevance": "irrelevance",
}
Calls = list[tuple[str, Any]]
Judge = Callable[[Calls, bfcl.Question], bool]


@dataclass
class Tally:
    """Verdicts on one set of answers."""

    answers: int = 0
    right: int = 0
    disagreements: int = 0
    no_verdict: int = 0
    first: str = ""

    def add(self, calls: Calls, question: bfcl.Question, judge: Judge) -> None:
        """Asks both about one answer."""
        ours = bfcl.score(as_tool_calls(calls), question.gold, question.functions, question.category).correct
        try:
            theirs = judge(calls, question)
        except (AttributeError, IndexError, KeyError, TypeError):  # what BFCL's checker stumbles over
            self.no_verdict += 1
            return
        self.answers += 1
        self.right += theirs
        if ours != theirs:
            self.disagreements += 1
            self.first = self.first or f"{question.id}: ours {ours}, BFCL's {theirs}: {calls!r}"


def as_tool_calls(calls: Calls) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(str(i), name, json.dumps(arguments)) for i, (name, arguments) in enumerate(calls))


def load_judge(wheel: Path) -> Judge:
    """BFCL's verdict: its AST checker, and its rule for the categories that have no gold answer."""
    sys.path.insert(0, str(wheel))
    stub = types.ModuleType("bfcl_eval.constants.model_config")
    stub.MODEL_CONFIG_MAPPING = {"model": types.SimpleNamespace(underscore_to_dot=True)}  # type: ignore[attr-defined]
    sys.modules[stub.__name__] = stub
    from bfcl_eval.constants.enums import Language  # type: ignore[import-not-found]
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # type: ignore[import-not-found]

    utils = pure_functions(wheel, "bfcl_eval/utils.py", "is_empty_output", "is_function_calling_format_output")

    def judge(calls: Calls, question: bfcl.Question) -> bool:
        decoded = [{name: arguments} for name, arguments in calls]
        if "relevance" in question.category:
            return bool(utils["is_empty_output"](decoded)) == ("irrelevance" in question.category)
        if not utils["is_function_calling_format_output"](decoded):
            return False
        functions, gold = list(question.functions), list(question.gold)
        return bool(ast_checker(functions, decoded, gold, Language.PYTHON, question.category, "model")["valid"])

    return judge


def pure_functions(wheel: Path, module: str, *names: str) -> dict[str, Any]:
    """Functions of a module of the wheel without what the module imports."""
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read(module))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    namespace: dict[str, Any] = {}
    exec(compile(tree, module, "exec"), namespace)
    return namespace


def concrete(wanted: Any) -> Iterator[Any]:
    """The values that a gold value stands for: a dictionary's own values are lists of alternatives."""
    if isinstance(wanted, list) and wanted and all(isinstance(item, dict) for item in wanted):
        yield [next(concrete(item)) for item in wanted]
        for i, item in enumerate(wanted):
            for value in concrete(item):
                yield [value if j == i else next(concrete(other)) for j, other in enumerate(wanted)]
    elif isinstance(wanted, dict) and all(isinstance(v, list) and v for v in wanted.values()):
        first = {key: values[0] for key, values in wanted.items()}
        yield first
        for key, values in wanted.items():
            yield from ({**first, key: value} for value in values)
            yield {k: v for k, v in first.items() if k != key}
    yield wanted


def gold_answers(question: bfcl.Question) -> Iterator[Calls]:
    """The first alternatives of every argument, then every other alternative of each argument, one at a time."""
    first: Calls = []
    for gold_call in question.gold:
        ((name, allowed),) = gold_call.items()
        arguments = {
            argument: next(concrete(next(v for v in values if v != "")))
            for argument, values in allowed.items()
            if any(v != "" for v in values)
        }
        first.append((bfcl.tool_name(name), arguments))
    yield first
    for i, gold_call in enumerate(question.gold):
        name, arguments = first[i]
        for argument, values in next(iter(gold_call.values())).items():
            for value in (value for wanted in values for value in concrete(wanted)):
                yield [*first[:i], (name, {**arguments, argument: value}), *first[i + 1 :]]
            rest = {k: v for k, v in arguments.items() if k != argument}
            yield [*first[:i], (name, rest), *first[i + 1 :]]


def changed(value: Any) -> Iterator[Any]:
    """Other values: wrong ones, the same in another type or spelling, and changes within lists and dictionaries."""
    yield from (None, "", [], {}, 0, [value], {"key": value}, str(value))
    if isinstance(value, bool):
        yield from (not value, int(value), str(value).lower())
    elif isinstance(value, int | float):
        yield from (value + 1, -value, float(value), int(value), bool(value), value + 0.5)
    elif isinstance(value, str):
        yield from (value.upper(), value.lower(), f" {value} ", value.replace(" ", ""), value.replace(" ", "_"))
        yield from (f"{value}x", value[:-1], f"{value}.", value.replace("'", '"'), f"{value}\n", f"'{value}'")
        yield value.replace("-", "/")
    elif isinstance(value, list):
        yield from (value[::-1], value[:-1], value + value[:1], [*value, None], [str(v) for v in value])
        for i, item in enumerate(value[:3]):
            yield from ([*value[:i], other, *value[i + 1 :]] for other in changed(item))
    elif isinstance(value, dict):
        yield {**value, "unexpected": 1}
        yield dict(reversed(value.items()))
        for key, item in list(value.items())[:4]:
            yield {k: v for k, v in value.items() if k != key}
            yield {(k.upper() if k == key else k): v for k, v in value.items()}
            yield from ({**value, key: other} for other in changed(item))


def perturbations(question: bfcl.Question) -> Iterator[Calls]:
    """Answers that differ from gold in one thing: calls, names, or one argument."""
    first = next(gold_answers(question))
    yield from ([], first[::-1], [*first, first[0]], first[1:], first[:-1], [first[0]] * len(first), first[-1:])
    for i, (name, arguments) in enumerate(first):
        before, after = first[:i], first[i + 1 :]
        properties = next(f for f in question.functions if bfcl.tool_name(f["name"]) == name)["parameters"][
            "properties"
        ]
        for other_name in (name.upper(), f"{name}_", name.replace("_", "."), question.functions[-1]["name"]):
            yield [*before, (other_name, arguments), *after]
        for other in ({}, [], None, "text", {**arguments, "unexpected": 1}, dict(reversed(arguments.items()))):
            yield [*before, (name, other), *after]
        for argument, declared in properties.items():
            yield [*before, (name, {k: v for k, v in arguments.items() if k != argument}), *after]
            for value in changed(arguments.get(argument, declared.get("default"))):
                yield [*before, (name, {**arguments, argument: value}), *after]


def without_gold(question: bfcl.Question) -> Iterator[Calls]:
    """Answers to a question that wants no call, or any: none, empty and unreadable ones, one and several."""
    name = bfcl.tool_name(question.functions[0]["name"]) if question.functions else "none"
    yield from ([], [(name, {})], [(name, {"a": 1})], [(name, None)], [(name, [])], [(name, "text")])
    yield from ([(name, {}), (name, {})], [(name, {}), (name, None)])


def recorded(path: Path, questions: dict[str, bfcl.Question]) -> Iterator[tuple[Calls, bfcl.Question]]:
    """Models' answers to those recorded questions that are still in BFCL as they were."""
    with gzip.open(path, "rt") as lines:
        for row in map(json.loads, lines):
            question = questions.get(f"{RECORDED[row['category']]}_{row['id'].rsplit('_', 1)[1]}")
            if question and list(question.messages) == row["request"]["messages"]:
                for answer in row["answers"].values():
                    yield [(call["name"], call["arguments"]) for call in answer["tool_calls"] or ()], question


def measure(wheel: Path, data: Path | None) -> dict[str, Tally]:
    judge = load_judge(wheel)
    questions = bfcl.load(wheel, CATEGORIES)
    tallies: dict[str, Tally] = {}
    for question in questions:
        kind = "live" if question.category.startswith("live") else "other"
        sets = {f"gold, {kind}": gold_answers, f"perturbed, {kind}": perturbations}
        for name, answers in sets.items() if question.gold else [(f"no gold, {kind}", without_gold)]:
            tally = tallies.setdefault(name, Tally())
            for calls in answers(question):
                tally.add(calls, question, judge)
    if data:
        tally = tallies.setdefault("recorded, 16 models", Tally())
        for calls, question in recorded(data, {q.id: q for q in questions}):
            tally.add(calls, question, judge)
    return tallies


def to_rows(tallies: dict[str, Tally]) -> list[dict[str, Any]]:
    return [
        {
            "answers": name,
            "n": tally.answers,
            "right by BFCL": wilson(tally.right, tally.answers),
            "disagreements": tally.disagreements,
            "agreement": wilson(tally.answers - tally.disagreements, tally.answers),
            "BFCL raised": tally.no_verdict,
        }
        for name, tally in tallies.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="recorded answers, replay/bfcl_2024-08-11.jsonl.gz")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {bfcl.REQUIREMENT}; by default it is fetched")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args()
    tallies = measure(given.wheel or bfcl.fetch(), given.data)
    rows = to_rows(tallies)
    if given.json:
        sys.stdout.write(json.dumps(rows, default=as_json, indent=1) + "\n")
        return
    table = Table(title="Agreement of smallfirst.bfcl.score with BFCL's checker, 95 % intervals")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "answers" else "right")
    for row in rows:
        table.add_row(*(as_text(cell) for cell in row.values()))
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    for name, tally in tallies.items():
        if tally.first:
            console.print(f"{name}: {tally.first}", markup=False)


def as_json(figure: Figure) -> dict[str, Any]:
    return {key: value for key, value in asdict(figure).items() if key != "method"}


def as_text(cell: Any) -> str:
    if isinstance(cell, Figure):
        return f"{cell.value:.4f} [{cell.low:.4f}, {cell.high:.4f}]"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


if __name__ == "__main__":
    main()
