"""What training on this machine gives: tokens/s beside a plain PEFT loop, and what a specialist answers as served.

    speed   rounds of the same calls, interleaved so that a busy machine is unfair to all alike: padded (PEFT, float32
            weights under bfloat16 autocast, padded batches, all logits), dense (PEFT, bfloat16 weights, conversations
            read once, logits only where there are labels), ours (`learn.llama`) and abreast (ours, the parts of a step
            side by side, each on a core of its own, as `smallfirst train` does)
    served  trains with the settings that `smallfirst train` has, exports the adapter, and answers held-out calls under
            constraint in the embedded engine; an answer is right when the whole call is (`agreement.same_answer`)

Tasks are services of SGD ("sgd/Restaurants_1", split by dialogue), all intents of SNIPS as tools ("snips", tested on
its own validation files) and domains of CLINC150 as an enum ("clinc150/banking", on its own test split). `--tokens`
is a budget that does not depend on how busy the machine is. CPU seconds are the process's own, of all its threads.

    python bench/train.py speed --data ../shared/data --task sgd/Restaurants_1
    python bench/train.py served --data ../shared/data --task sgd/Restaurants_1 --minutes 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

import callsites
from callsites import Site
from smallfirst import models
from smallfirst.agreement import same_answer
from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend
from smallfirst.backends.specialist import PromptTemplate, answer_text
from smallfirst.backends.toolprompt import constraint_schema
from smallfirst.learn.adapter import new_adapter, peft_logits
from smallfirst.learn.base import Base, find_base
from smallfirst.learn.export import export_adapter
from smallfirst.learn.llama import LoraLlama
from smallfirst.learn.packing import Batch, Encoded, Example, Group, encode, to_tensors, together, tokens_of
from smallfirst.learn.progress import shown
from smallfirst.learn.train import TrainConfig, set_gradients, train
from smallfirst.learn.values import learn_values
from smallfirst.stats import ratio, wilson
from smallfirst.types import Choice, Constraint, Request, ResponseFormat, Sampling, Tool, ToolCall, ToolChoice

ROUND_TOKENS = 2048
CALIBRATION = 0.15
Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call as an agent would send it, and its right answer. Calls of one episode are never on two sides."""

    id: str
    episode: str
    request: Request
    right: Choice

    def example(self, template: PromptTemplate) -> Example:
        prompt = template.pruned(self.request)
        assert prompt is not None
        answer = answer_text(self.request, self.right.tool_calls, self.right.text)
        return Example(self.id, self.episode, prompt, answer)


def asked(site: Site) -> list[Call]:
    """The calls of a site, without its system prompt, which a specialist does not read."""
    functions = [tool["function"] for tool in site.tools]
    form = site.response_format and site.response_format["json_schema"]
    shared = Request(
        wire="chat",
        body={},
        model="specialist",
        messages=(),
        tools=tuple(Tool(each["name"], each["description"], each["parameters"]) for each in functions),
        tool_choice=ToolChoice("required" if functions else "auto"),
        response_format=ResponseFormat("json_schema", form["schema"], form["name"]) if form else ResponseFormat(),
        parallel_tool_calls=False,
        sampling=Sampling(max_tokens=200),
    )
    schema = constraint_schema(shared)
    assert schema is not None
    shared, found = replace(shared, constraint=Constraint(schema)), []
    for said in site.calls:
        called = [each["function"] for each in said.answer.get("tool_calls", ())]
        right = Choice(said.answer["content"] or "", tuple(ToolCall("", c["name"], c["arguments"]) for c in called))
        found.append(Call(said.id, said.episode, replace(shared, messages=said.turns), right))
    return found


def calls_of(data: Path, task: str) -> tuple[list[Call], list[Call]]:
    """The calls of a task; those that the data set itself keeps for testing, if it does, stand in the second list."""
    name, _, part = task.partition("/")
    if name == "sgd":
        return asked(callsites.sgd(data / "sgd" / "calls_train.jsonl.gz")[part]), []
    if name == "snips":
        folder = data / "snips"
        return asked(callsites.snips(folder, "train_*_full")), asked(callsites.snips(folder, "validate_*"))
    folder = data / "clinc150"
    return asked(callsites.clinc(folder, part, ("train", "val"))), asked(callsites.clinc(folder, part, ("test",)))


class Splits:
    """Test, calibration and training calls, by episode, in an order drawn by the seed."""

    def __init__(self, data: Path, task: str, tests: int, seed: int) -> None:
        calls, kept = calls_of(data, task)
        order = random.Random(seed)
        order.shuffle(kept)
        episodes = sorted({call.episode for call in calls} - {call.episode for call in kept})
        order.shuffle(episodes)
        by_episode = defaultdict[str, list[Call]](list)
        for call in calls:
            by_episode[call.episode].append(call)
        self.test = kept[:tests]
        while len(self.test) < tests:
            self.test += by_episode[episodes.pop()]
        cut = round(CALIBRATION * len(episodes))
        self.calibration = [call for episode in episodes[:cut] for call in by_episode[episode]]
        self.train = [call for episode in episodes[cut:] for call in by_episode[episode]]


def told(answer: Choice) -> str:
    return " ".join([answer.text, *(f"{call.name} {call.arguments}" for call in answer.tool_calls)])


async def right(weights: Path, adapter: Path, calls: Sequence[Call]) -> tuple[list[bool], list[float]]:
    """Whether each call is answered right, and the machine seconds of each answer."""
    backend = LlamaCppBackend(EngineConfig(weights, context=2048, slots=1, adapters={"specialist": adapter}))
    await backend.start()
    found, seconds = [], []
    try:
        for call in calls:
            deltas = [d async for d in backend.generate(replace(call.request, adapter="specialist"))]
            usage = deltas[-1].usage
            seconds.append((usage and usage.busy_seconds) or 0.0)
            made = tuple(ToolCall("", c.name or "", c.arguments) for d in deltas for c in d.tool_calls)
            answer = Choice("".join(d.text for d in deltas), made)
            found.append(same_answer(call.request, answer, call.right) is True)
            if not found[-1]:
                print(f"{call.id}: {told(answer)} instead of {told(call.right)}", file=sys.stderr)
    finally:
        await backend.close()
    return found, seconds


def speed(base: Base, examples: Sequence[Encoded], rounds: int) -> list[Json]:
    """Rounds of about 2,048 tokens forward, backward and step, one method after the other."""
    import torch

    dense = new_adapter(base, "lora", 16, 32)
    padded = new_adapter(base, "lora", 16, 32).float()
    of_peft, ours, plain = peft_logits(dense), LoraLlama(dense).logits, padded
    groups = together(examples, ROUND_TOKENS)
    pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))
    methods: dict[str, tuple[Any, Callable[[list[Group]], None]]] = {
        "padded": (padded, lambda part: _padded(plain, part)),
        "dense": (dense, lambda part: _shared(of_peft, part)),
        "ours": (dense, lambda part: _shared(ours, part)),
        "abreast": (dense, lambda part: _abreast(ours, dense, part, pool)),
    }
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in methods}
    optimizers = {id(m): torch.optim.AdamW([p for p in m.parameters() if p.requires_grad]) for m, _ in methods.values()}
    for i in range(rounds + 1):
        part = _about(groups, i)
        for name, (model, step) in methods.items():
            wall, busy = time.perf_counter(), time.process_time()
            step(part)
            optimizers[id(model)].step()
            optimizers[id(model)].zero_grad()
            if i:  # the first round warms up
                spent = (
                    time.perf_counter() - wall,
                    time.process_time() - busy,
                    sum(len(e) for group in part for e in group),
                )
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


def _about(groups: Sequence[Group], seed: int) -> list[Group]:
    picked: list[Group] = []
    order = random.Random(seed)
    while sum(map(tokens_of, picked)) < ROUND_TOKENS:
        picked.append(order.choice(groups))
    return picked


def _shared(run: Callable[[Batch], Any], part: Sequence[Group]) -> None:
    import torch

    batch = to_tensors(part)
    torch.nn.functional.cross_entropy(run(batch).float(), batch.targets).backward()


def _abreast(run: Callable[[Batch], Any], model: Any, part: Sequence[Group], pool: ThreadPoolExecutor) -> None:
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(some: Sequence[Group]) -> Sequence[Any]:
        batch = to_tensors(some)
        loss = torch.nn.functional.cross_entropy(run(batch).float(), batch.targets)
        return torch.autograd.grad(loss, parameters)

    cores = torch.get_num_threads()
    set_gradients(parameters, list(pool.map(gradients, [part[core::cores] for core in range(cores)])), cores)


def _padded(model: Any, part: Sequence[Group]) -> None:
    import torch

    examples = [e for group in part for e in group]
    for at in range(0, len(examples), 8):
        some = examples[at : at + 8]
        longest = max(map(len, some))
        ids = torch.tensor([[*e.prompt, *e.completion, *[0] * (longest - len(e))] for e in some])
        mask = torch.tensor([[1] * len(e) + [0] * (longest - len(e)) for e in some])
        labels = torch.tensor([[-100] * len(e.prompt) + [*e.completion] + [-100] * (longest - len(e)) for e in some])
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()


def served(splits: Splits, weights: Path, base: Base, given: argparse.Namespace) -> Json:
    """Trains, exports, and answers the test calls."""
    template = PromptTemplate("pruned", turns=given.turns)
    examples = [call.example(template) for call in splits.train]
    size = sum(map(tokens_of, together(encode(examples, base.tokenizer(), 2048), 2048)))
    config = TrainConfig(
        max_minutes=given.minutes,
        epochs=given.tokens / size if given.tokens else given.epochs,
        learning_rate=given.learning_rate,
        rank=given.rank,
        alpha=2 * given.rank,
        seed=given.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        target, begun = Path(folder) / "specialist.gguf", time.process_time()
        validation = [call.example(template) for call in splits.calibration]
        with shown(Console(stderr=True), given.task) as report:
            made = train(base, examples, validation, Path(folder) / "out", config, report=report)
        busy = time.process_time() - begun
        export_adapter(made.folder, base, target, prompt=template, values=learn_values(examples))
        found, seconds = asyncio.run(right(weights, target, splits.test))
    return {
        "task": given.task,
        "n": len(found),
        "exact": wilson(sum(found), len(found)),
        "call_s": sum(seconds) / len(seconds),
        "tokens": made.tokens,
        "epochs": made.tokens / size,
        "minutes": made.seconds / 60,
        "cpu_minutes": busy / 60,
        "tokens_per_cpu_s": made.tokens / busy,
        "calibration_loss": -made.score,
    }


def main() -> None:
    usual = TrainConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "served"))
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds sgd, snips and clinc150")
    parser.add_argument("--task", default="sgd/Restaurants_1")
    parser.add_argument("--weights", default=models.DEFAULT_MODEL, help="a pulled model or a GGUF file")
    parser.add_argument("--tests", type=int, default=200, help="calls to answer, held out by episode")
    parser.add_argument("--turns", type=int, default=0, help="messages of the prompt, 0 for all")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--tokens", type=int, default=0, help="tokens to train on, instead of epochs")
    parser.add_argument("--epochs", type=float, default=usual.epochs)
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    parser.add_argument("--rank", type=int, default=usual.rank)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    weights = models.locate(given.weights)
    base, splits = find_base(weights), Splits(given.data, given.task, given.tests, given.seed)
    if given.what == "served":
        rows = [served(splits, weights, base, given)]
    else:
        some = [call.example(PromptTemplate("pruned", turns=given.turns)) for call in splits.train[:400]]
        rows = speed(base, encode(some, base.tokenizer(), 1024), given.rounds)
    if given.json:
        print(json.dumps(rows, default=str))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
