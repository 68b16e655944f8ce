"""What the embedded engine gives: speed by weights' format, beside the same library driven directly, and right answers.

    speed     prefill and decode in tokens/s: the library in its own process, and the backend as the gateway uses it
    prefix    seconds to the first token of the first and of the second call with the same long prefix
    accuracy  BFCL live questions answered right, by weights' format and constraint mode

Questions whose id hashes to an even number are for tuning prompts, the others for reporting (`--split`). Rounds of the
things compared are interleaved, so that a busy machine is unfair to all alike.

    python bench/engine.py speed --rounds 6
    python bench/engine.py accuracy --formats Q4_0 Q8_0 --modes free constrained --questions 40 --json
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from smallfirst import bfcl, models
from smallfirst.backends.engine import EngineSettings
from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend
from smallfirst.backends.toolprompt import constraint_schema, grammar
from smallfirst.stats import Figure, mean, ratio, wilson
from smallfirst.types import Constraint, Request, Sampling, Tool, ToolCall, ToolChoice

FORMATS = ("Q4_1", "Q8_0", "Q4_0")
Row = dict[str, Any]

DIRECT = """
import json, sys, time
from smallfirst.backends.engine import EngineSettings, serve
server = serve(EngineSettings(**json.loads(sys.stdin.readline())))
for line in sys.stdin:
    begin = time.perf_counter()
    answer = server.handle_completions(json.loads(line))
    print(json.dumps({"seconds": time.perf_counter() - begin, "error": answer.get("error")}), flush=True)
"""


class Direct:
    """The library in a process of its own, asked in that process: no HTTP, no gateway."""

    def __init__(self, config: EngineConfig) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", DIRECT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        settings = EngineSettings(
            str(config.weights), config.context, config.slots, config.threads, config.batch_threads, (), "unused"
        )
        self._send(asdict(settings))

    def _send(self, value: Mapping[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()

    def seconds(self, prompt: str, tokens: int, **fields: Any) -> float:
        """Wall time of one completion; `fields` are further ones of the engine's own request."""
        self._send({"prompt": prompt, "n_predict": tokens, "temperature": 0, **fields})
        assert self._process.stdout
        answer = json.loads(self._process.stdout.readline())
        if answer["error"]:
            raise RuntimeError(answer["error"])
        return float(answer["seconds"])

    def close(self) -> None:
        assert self._process.stdin
        self._process.kill()
        self._process.wait()


def ask(text: str, tokens: int) -> Request:
    digits = Constraint({"type": "string", "pattern": "^[0-9]{400}$"})  # so that every answer has as many tokens
    message = {"role": "user", "content": text}
    return Request(
        wire="chat", body={}, model="", messages=(message,), sampling=Sampling(max_tokens=tokens), constraint=digits
    )


async def timed(backend: LlamaCppBackend, request: Request) -> tuple[float, float, int]:
    """Seconds to the first token, seconds in all, tokens of the prompt."""
    begin, first, read = time.perf_counter(), 0.0, 0
    async for delta in backend.generate(request):
        first = first or time.perf_counter() - begin
        read = delta.usage.input_tokens if delta.usage else read
    return first, time.perf_counter() - begin, read


async def speed(weights: Mapping[str, Path], rounds: int, tokens: int) -> list[Row]:
    """Prefill is the prompt over the time of a one-token answer; decode is what more tokens take on the same prompt."""
    rows: list[Row] = []
    for name, path in weights.items():
        config = EngineConfig(path, slots=1)
        backend, direct = LlamaCppBackend(config), Direct(config)
        await backend.start()
        prompts: list[int] = []
        reads: dict[str, list[float]] = {"library": [], "library, same request": [], "backend": []}
        writes: dict[str, list[float]] = {who: [] for who in reads}
        for round_number in range(-1, rounds):
            text = f"Round {round_number}. " + "The quick brown fox jumps over the lazy dog. " * 30
            prompt = await backend.prompt(ask(text, 1))
            same = {"n_probs": config.top_logprobs, "grammar": grammar(ask(text, 1))}
            for who, fields in (("library", {"ignore_eos": True}), ("library, same request", same)):
                salted = prompt.replace("Round", f"{len(fields)} round", 1)  # no prompt is read twice
                read = await asyncio.to_thread(partial(direct.seconds, salted, 1, **fields))
                write = await asyncio.to_thread(partial(direct.seconds, salted, tokens, **fields))
                reads[who].append(read)
                writes[who].append(write)
            _, read, count = await timed(backend, ask(text, 1))
            _, write, _ = await timed(backend, ask(text, tokens))
            reads["backend"].append(read)
            writes["backend"].append(write)
            prompts.append(count)
        await backend.close()
        direct.close()
        rows += [
            {
                "format": name,
                "driven by": who,
                "prefill tok/s": ratio(prompts[1:], reads[who][1:]),
                "decode tok/s": ratio([tokens] * rounds, writes[who][1:]),
                "prefill / same": ratio(reads["library, same request"][1:], reads[who][1:]),
                "decode / same": ratio(writes["library, same request"][1:], writes[who][1:]),
            }
            for who in reads  # without the first round, which warms up
        ]
    return rows


async def prefix(weights: Mapping[str, Path], rounds: int) -> list[Row]:
    rows: list[Row] = []
    for name, path in weights.items():
        backend = LlamaCppBackend(EngineConfig(path))
        await backend.start()
        firsts, seconds = [], []
        for number in range(rounds):
            text = f"{number} " + "The quick brown fox jumps over the lazy dog. " * 60
            firsts.append((await timed(backend, ask(text + "First question?", 4)))[0])
            seconds.append((await timed(backend, ask(text + "Another question?", 4)))[0])
        await backend.close()
        rows.append(
            {
                "format": name,
                "first call s": mean(firsts),
                "second call s": mean(seconds),
                "times": ratio(firsts, seconds),
            }
        )
    return rows


def questions(count: int, split: str, tool_choice: str) -> tuple[bfcl.Question, ...]:
    def tuning(question: bfcl.Question) -> bool:
        return hashlib.sha256(question.id.encode()).digest()[-1] % 2 == 0

    categories = bfcl.WANTING_CALLS if tool_choice == "required" else bfcl.LIVE
    return bfcl.sample([q for q in bfcl.load(bfcl.fetch(), categories) if tuning(q) == (split == "tuning")], count)


def asked(question: bfcl.Question, mode: str, tool_choice: str) -> Request:
    functions = [t["function"] for t in bfcl.tools(question.functions)]
    tools = tuple(Tool(f["name"], f.get("description", ""), f["parameters"]) for f in functions)
    request = Request(
        wire="chat",
        body={},
        model="",
        messages=question.messages,
        tools=tools,
        tool_choice=ToolChoice(tool_choice),
        sampling=Sampling(max_tokens=120),
    )
    schema = constraint_schema(request)
    return request if mode == "free" or schema is None else replace(request, constraint=Constraint(schema, mode))


async def calls(backend: LlamaCppBackend, request: Request) -> list[ToolCall]:
    found = [c async for delta in backend.generate(request) for c in delta.tool_calls]
    return [ToolCall(c.id or "", c.name or "", c.arguments) for c in found]


async def accuracy(
    weights: Mapping[str, Path], modes: Sequence[str], count: int, split: str, tool_choice: str
) -> list[Row]:
    rows: list[Row] = []
    drawn = questions(count, split, tool_choice)
    for name, path in weights.items():
        backend = LlamaCppBackend(EngineConfig(path, slots=1))
        await backend.start()
        for mode in modes:
            right: dict[bool, list[bool]] = {True: [], False: []}  # by whether a call is wanted
            called = chosen = 0
            begin = time.perf_counter()
            for question in drawn:
                given = await calls(backend, asked(question, mode, tool_choice))
                verdict = bfcl.score(given, question.gold, question.functions, question.category)
                right[bool(question.gold)].append(verdict.correct)
                called += bool(given)
                wanted = sorted(bfcl.tool_name(name) for call in question.gold for name in call)
                chosen += sorted(call.name for call in given) == wanted
            rows.append(
                {
                    "format": name,
                    "mode": mode,
                    "right": wilson(sum(right[True]) + sum(right[False]), len(drawn)),
                    "right, call wanted": wilson(sum(right[True]), len(right[True])),
                    "right, none wanted": wilson(sum(right[False]), len(right[False])),
                    "right tools": wilson(chosen, len(drawn)),
                    "called": wilson(called, len(drawn)),
                    "s / question": (time.perf_counter() - begin) / len(drawn),
                }
            )
        await backend.close()
    return rows


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    plain = ("value", "low", "high", "n")
    if as_json:
        objects = [
            {k: {p: getattr(v, p) for p in plain} if isinstance(v, Figure) else v for k, v in row.items()}
            for row in rows
        ]
        print(json.dumps(objects, indent=2))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    Console().print(table)


def cell(value: Any) -> str:
    if isinstance(value, Figure) and value.value is not None:
        bounds = "".join(f" {'–' if i else '['}{b:.3g}" for i, b in enumerate((value.low, value.high)) if b is not None)
        return f"{value.value:.3g}{bounds}]" if bounds else f"{value.value:.3g}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "prefix", "accuracy"])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--weights", nargs="*", type=Path, default=[], help="other GGUF files instead of the formats")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64, help="answer length for speed")
    parser.add_argument("--modes", nargs="+", choices=["free", "constrained", "late"], default=["free", "constrained"])
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--tool-choice", choices=["auto", "required"], default="required")
    parser.add_argument("--split", choices=["tuning", "reporting"], default="reporting")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        weights = {path.stem: path for path in given.weights}
        if not weights:
            source = models.fetch_source(models.DEFAULT_MODEL, Path(scratch))
            weights = {name: Path(scratch) / f"{name}.gguf" for name in given.formats}
            for name, path in weights.items():
                models.convert(source, path, name)
        if given.what == "speed":
            rows = asyncio.run(speed(weights, given.rounds, given.tokens))
        elif given.what == "prefix":
            rows = asyncio.run(prefix(weights, given.rounds))
        else:
            rows = asyncio.run(accuracy(weights, given.modes, given.questions, given.split, given.tool_choice))
    show(rows, as_json=given.json)


if __name__ == "__main__":
    main()
