"""What training on this machine gives: tokens/s beside a plain PEFT loop, and how an adapter gets better with time.

    speed   rounds of the same examples, interleaved so that a busy machine is unfair to all alike:
            padded (PEFT, float32 weights under bfloat16 autocast, padded batches, all logits), dense (PEFT, bfloat16
            weights, packed rows, logits only where there are labels) and ours (`learn.llama`)
    curve   trains on one SGD service, split by dialogue, and evaluates as served under constraint as it goes on

Tokens are those of the examples, padding not counted. CPU seconds are the process's own, also on a busy machine.

    python bench/train.py speed --data ../shared/data/sgd --service Restaurants_1
    python bench/train.py curve --data ../shared/data/sgd --service Restaurants_1 --minutes 10 --turns 8 --json
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smallfirst import models
from smallfirst.agreement import canonical_call
from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend
from smallfirst.backends.specialist import PromptTemplate, answer_text
from smallfirst.backends.toolprompt import constraint_schema
from smallfirst.learn.adapter import new_adapter, peft_logits
from smallfirst.learn.base import Base, find_base
from smallfirst.learn.export import export_adapter
from smallfirst.learn.llama import LoraLlama
from smallfirst.learn.packing import Encoded, Example, batches, encode, packed, to_tensors
from smallfirst.learn.progress import shown
from smallfirst.learn.train import TrainConfig, train
from smallfirst.stats import ratio, wilson
from smallfirst.types import Constraint, Request, Sampling, Tool, ToolCall, ToolChoice

ROUND_TOKENS = 2048
Json = dict[str, Any]


class Service:
    """The calls of one SGD service, as an agent would send them, with the right answers."""

    def __init__(self, data: Path, name: str, tests: int, seed: int) -> None:
        tools = json.loads((data / "tools_train.json").read_text())
        self.tools = {t["name"]: Tool(t["name"], t["description"], t["parameters"])
                      for t in tools.values() if t["service"] == name}  # fmt: skip
        with gzip.open(data / "calls_train.jsonl.gz", "rt") as lines:
            rows = [row for row in map(json.loads, lines) if row["service"] == name]
        dialogues = sorted({self.dialogue(row) for row in rows})
        random.Random(seed).shuffle(dialogues)
        by_dialogue = {d: [r for r in rows if self.dialogue(r) == d] for d in dialogues}
        self.test: list[Json] = []
        while len(self.test) < tests:
            self.test += by_dialogue.pop(dialogues.pop())
        self.train = [row for d in dialogues for row in by_dialogue[d]]

    @staticmethod
    def dialogue(row: Json) -> str:
        return str(row["id"]).rsplit("/", 1)[0]

    def request(self, row: Json, adapter: str | None = None) -> Request:
        roles = {"U": "user", "S": "assistant"}
        request = Request(
            wire="chat",
            body={},
            model="specialist",
            messages=tuple({"role": roles[who], "content": text} for who, text in row["history"]),
            tools=tuple(self.tools.values()),
            tool_choice=ToolChoice("required"),
            parallel_tool_calls=False,
            sampling=Sampling(max_tokens=200),
            adapter=adapter,
        )
        schema = constraint_schema(request)
        assert schema is not None
        return replace(request, constraint=Constraint(schema))

    def example(self, row: Json, template: PromptTemplate) -> Example:
        request = self.request(row)
        prompt = template.pruned(request)
        assert prompt is not None
        call = ToolCall("", row["method"], json.dumps(row["arguments"]))
        return Example(row["id"], self.dialogue(row), prompt, answer_text(request, [call]))

    async def right(self, weights: Path, adapter: Path, rows: Sequence[Json]) -> tuple[int, list[float]]:
        """How many of `rows` are answered with exactly the right call, and the machine seconds of each."""
        backend = LlamaCppBackend(EngineConfig(weights, context=1024, slots=1, adapters={"specialist": adapter}))
        await backend.start()
        right, seconds = 0, []
        try:
            for row in rows:
                deltas = [d async for d in backend.generate(self.request(row, "specialist"))]
                usage = deltas[-1].usage
                seconds.append((usage and usage.busy_seconds) or 0.0)
                schema = self.tools[row["method"]].parameters
                wanted = canonical_call(row["method"], json.dumps(row["arguments"]), schema)
                calls = [c for d in deltas for c in d.tool_calls]
                right += [canonical_call(c.name or "", c.arguments, schema) for c in calls] == [wanted]
        finally:
            await backend.close()
        return right, seconds


def speed(base: Base, examples: Sequence[Encoded], rounds: int) -> list[Json]:
    """Rounds of about 2,048 tokens forward, backward and step, one method after the other."""
    import torch

    dense = new_adapter(base, "lora", 16, 32)
    padded = new_adapter(base, "lora", 16, 32).float()
    of_peft, ours, plain = peft_logits(dense), LoraLlama(dense).logits, padded
    methods: dict[str, tuple[Any, Callable[[list[Encoded]], None]]] = {
        "padded": (padded, lambda part: _padded(plain, part)),
        "dense": (dense, lambda part: _packed(of_peft, part)),
        "ours": (dense, lambda part: _packed(ours, part)),
    }
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in methods}
    optimizers = {id(m): torch.optim.AdamW([p for p in m.parameters() if p.requires_grad]) for m, _ in methods.values()}
    for i in range(rounds + 1):
        part = _about(examples, ROUND_TOKENS, i)
        for name, (model, step) in methods.items():
            wall, busy = time.perf_counter(), time.process_time()
            step(part)
            optimizers[id(model)].step()
            optimizers[id(model)].zero_grad()
            if i:  # the first round warms up
                spent = (time.perf_counter() - wall, time.process_time() - busy, sum(map(len, part)))
                found[name].append(spent)
    slow = found["padded"]
    return [
        {
            "method": name,
            "tokens_per_s": sum(n for _, _, n in spent) / sum(w for w, _, _ in spent),
            "tokens_per_cpu_s": sum(n for _, _, n in spent) / sum(c for _, c, _ in spent),
            "times_padded": ratio([c for _, c, _ in slow], [c for _, c, _ in spent]),
        }
        for name, spent in found.items()
    ]


def _about(examples: Sequence[Encoded], tokens: int, seed: int) -> list[Encoded]:
    picked: list[Encoded] = []
    order = random.Random(seed)
    while sum(map(len, picked)) < tokens:
        picked.append(order.choice(examples))
    return picked


def _packed(run: Callable[..., Any], part: list[Encoded]) -> None:
    import torch

    for rows in batches(packed(part, 256), 1024):
        batch = to_tensors(rows)
        logits = run(batch.ids, batch.positions, batch.visible, batch.wanted)
        torch.nn.functional.cross_entropy(logits.float(), batch.targets[batch.wanted]).backward()


def _padded(model: Any, part: list[Encoded]) -> None:
    import torch

    for at in range(0, len(part), 8):
        some = part[at : at + 8]
        longest = max(map(len, some))
        ids = torch.tensor([[*e.prompt, *e.completion, *[0] * (longest - len(e))] for e in some])
        mask = torch.tensor([[1] * len(e) + [0] * (longest - len(e)) for e in some])
        labels = torch.tensor([[-100] * len(e.prompt) + [*e.completion] + [-100] * (longest - len(e)) for e in some])
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()


def curve(service: Service, weights: Path, base: Base, asked: argparse.Namespace) -> Json:
    """Trains, and evaluates as served on held-out dialogues each time the trainer asks."""
    template = PromptTemplate("pruned", turns=asked.turns)
    examples = [service.example(row, template) for row in service.train]
    random.Random(asked.seed).shuffle(examples)
    points: list[Json] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:

        def metric(candidate: Path) -> float:
            target = Path(folder) / "specialist.gguf"
            export_adapter(candidate, base, target, prompt=template)
            right, seconds = asyncio.run(service.right(weights, target, service.test))
            rate = wilson(right, len(service.test))
            points.append(
                {"minutes": (time.monotonic() - begin) / 60, "exact": rate, "call_s": sum(seconds) / len(seconds)}
            )
            return right / len(service.test)

        config = TrainConfig(
            max_minutes=asked.minutes, epochs=asked.epochs, evaluations=asked.evaluations, seed=asked.seed,
            learning_rate=asked.learning_rate, rank=asked.rank, alpha=2 * asked.rank,
        )  # fmt: skip
        with shown(Console(stderr=True), service.test[0]["service"]) as report:
            result = train(
                base, examples[: asked.calls or None], (), Path(folder) / "out", config, metric=metric, report=report
            )
    return {"points": points, "tokens": result.tokens, "tokens_per_s": result.tokens_per_s, "ended": result.ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "curve"))
    parser.add_argument("--data", type=Path, required=True, help="the folder of SGD's calls and tools")
    parser.add_argument("--service", default="Restaurants_1")
    parser.add_argument("--weights", default=models.DEFAULT_MODEL, help="a pulled model or a GGUF file")
    parser.add_argument("--tests", type=int, default=200, help="calls held out, by dialogue")
    parser.add_argument("--calls", type=int, default=0, help="calls to train on, 0 for all")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--evaluations", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    weights = models.locate(asked.weights)
    base, service = find_base(weights), Service(asked.data, asked.service, asked.tests, asked.seed)
    if asked.what == "curve":
        rows = [curve(service, weights, base, asked)]
    else:
        template = PromptTemplate("pruned", turns=asked.turns)
        some = [service.example(row, template) for row in service.train[:400]]
        rows = speed(base, encode(some, base.tokenizer(), 1024), asked.rounds)
    if asked.json:
        print(json.dumps(rows, default=str))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.0f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
