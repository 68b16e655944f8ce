"""How well recurring tasks are found in a mixed log whose call sites are hidden.

    python bench/tasks.py --data DIR                    the calls as an agent sends them, and with parts left out
    python bench/tasks.py --data DIR --sites odd --seeds 5,6,7

DIR holds the folders sgd, snips and clinc150. A call site is a service of SGD (its tools, dialogues up to the call), an
intent of SNIPS (a response schema) or a domain of CLINC150 (an enum of intents). Each gets a system prompt of its own
with a date, a user's name and ids in it; tools come in any order, and half of the calls have another version of each
schema (a field less, another one more). Logs: "as sent"; "generic prompt" (one prompt for all sites, their tools and
schemas); "prompt only" (their prompts, no tools or schemas); "user text only". Every log holds at least 2,640 calls,
the same number of each site. `--sites` takes every site, or every second one, so that what was tuned on one half is
measured on the other; `--dialogues any` takes SGD's dialogues about several services too, where much of what the user
said is about others.

ARI is the adjusted Rand index (Hubert and Arabie 1985), V the V-measure (Rosenberg and Hirschberg 2007); calls in no
task count as one more. "unseen" are calls of the same sites that were not in the log, assigned online. `us` is the CPU
time of one assignment, its mean. Means over seeds with 95 % intervals. The reference gets the number of sites.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import callsites
from callsites import Site, Turns
from smallfirst import stats
from smallfirst.assignment import Assigner
from smallfirst.learn import tasks
from smallfirst.types import Json, Request, ResponseFormat, Tool

CALLS = 2640


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a site, as the log of a gateway has it."""

    id: str
    created_at: float
    messages: tuple[Json, ...]
    tools: tuple[Json, ...] = ()
    response_format: Json | None = None
    answer: Json | None = None
    task: str | None = None
    episode: str | None = None
    correct: bool | None = None
    input_tokens: int = 400
    output_tokens: int = 30
    cost_usd: float | None = 0.001


def sites(data: Path, dialogues: str) -> dict[str, Site]:
    services = callsites.sgd(data / "sgd" / "calls_train.jsonl.gz", alone=dialogues == "one")
    return {
        **{f"sgd:{name}": site for name, site in services.items() if len(site.calls) >= 150},
        **callsites.snips_intents(data / "snips"),
        **{f"clinc:{domain}": callsites.clinc(data / "clinc150", domain) for domain in callsites.DOMAINS},
    }


def draw(of: Mapping[str, Site], seed: int) -> tuple[list[Call], list[str], list[Call], list[str]]:
    """A log with the site of each of its calls, and as many calls that are not in it, in random order."""
    rng = random.Random(seed)
    each = -(-CALLS // len(of))
    log: list[tuple[Call, str]] = []
    unseen: list[tuple[Call, str]] = []
    for name, site in of.items():
        drawn = rng.sample(site.calls, min(2 * each, len(site.calls)))
        for n, said in enumerate(drawn):
            (log if n < each else unseen).append((sent(site, said.turns, rng), name))
    rng.shuffle(log)
    return [c for c, _ in log], [s for _, s in log], [c for c, _ in unseen], [s for _, s in unseen]


def sent(site: Site, turns: Turns, rng: random.Random) -> Call:
    """The call as an agent would send it."""
    messages = site.messages(turns, rng)
    tools, form = tuple(rng.sample(site.tools, len(site.tools))), site.response_format
    if rng.random() < 0.5:
        tools = tuple({**tool, "function": revised(tool["function"], "parameters")} for tool in tools)
        form = form and {**form, "json_schema": revised(form["json_schema"], "schema")}
    return Call("", 1.7e9, messages, tools, form)


def revised(holder: Json, key: str) -> Json:
    """Another version of a schema: its last field has gone, if it has several, and a new one has come."""
    fields = dict(holder[key]["properties"])
    kept = dict(list(fields.items())[: max(1, len(fields) - 1)])
    return {**holder, key: {**holder[key], "properties": {**kept, "locale": {"type": "string"}}}}


def with_generic_prompt(call: Call) -> Call:
    """The call with the same instructions as those of every other site."""
    opening, _, _ = call.messages[0]["content"].partition("). ")
    text = f"{opening}). You are a helpful assistant of our company. Answer with a tool or in the form asked for."
    return replace(call, messages=({"role": "system", "content": text}, *call.messages[1:]))


def with_prompt_only(call: Call) -> Call:
    return replace(call, tools=(), response_format=None)


def bare(call: Call) -> Call:
    """The call without system prompt, tools, schema and earlier answers."""
    said = tuple(message for message in call.messages if message["role"] == "user")
    return replace(call, messages=said, tools=(), response_format=None)


FORMS = {
    "as sent": lambda call: call,
    "generic prompt": with_generic_prompt,
    "prompt only": with_prompt_only,
    "user text only": bare,
}


def request_of(call: Call) -> Request:
    offered = tuple(Tool(t["function"]["name"], parameters=t["function"]["parameters"]) for t in call.tools)
    asked = (call.response_format or {}).get("json_schema", {}).get("schema")
    form = ResponseFormat("json_schema", asked) if asked else ResponseFormat()
    return Request("chat", {}, "auto", call.messages, offered, response_format=form)


def scores(truth: Sequence[str], found: Sequence[object]) -> tuple[float, float]:
    from sklearn.metrics import adjusted_rand_score, v_measure_score

    labels = [str(label) for label in found]
    return adjusted_rand_score(truth, labels), v_measure_score(truth, labels)


def reference(calls: Sequence[Call], truth: Sequence[str], seed: int) -> dict[str, float]:
    """TF-IDF of words and pairs of words, k-means with as many clusters as there are sites."""
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [" ".join(message["content"] for message in call.messages) for call in calls]
    weighted = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2)).fit_transform(texts)
    labels = KMeans(len(set(truth)), n_init=3, random_state=seed).fit_predict(weighted)
    ari, v = scores(truth, labels.tolist())
    return {"tasks": len(set(truth)), "ARI": ari, "V": v}


def smallfirst(
    calls: Sequence[Call], truth: Sequence[str], unseen: Sequence[Call], where: Sequence[str]
) -> dict[str, float]:
    started = time.perf_counter()
    found = tasks.find(calls)
    seconds = time.perf_counter() - started
    ari, v = scores(truth, found.task_of)
    assigner = Assigner({task.id: task.cells for task in found.tasks})
    requests = [request_of(call) for call in unseen]
    started = time.thread_time()
    online = [assigner.assign(request) for request in requests]
    each = (time.thread_time() - started) / len(requests) * 1e6
    later = scores(where, online)
    count = {"tasks": len(found.tasks), "outliers": found.outliers}
    return count | {"ARI": ari, "V": v, "ARI unseen": later[0], "V unseen": later[1], "seconds": seconds, "us": each}


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    of = sites(arguments.data, arguments.dialogues)
    names = sorted(of)
    random.Random(99).shuffle(names)
    chosen = {"all": names, "even": names[::2], "odd": names[1::2]}[arguments.sites]
    of = {name: of[name] for name in chosen}
    rows: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    size = 0
    for seed in arguments.seeds:
        calls, truth, unseen, where = draw(of, seed)
        size = len(calls)
        for log, form in FORMS.items():
            shown, later = [form(call) for call in calls], [form(call) for call in unseen]
            rows[log, "smallfirst"].append(smallfirst(shown, truth, later, where))
        rows["user text only", "reference"].append(reference(shown, truth, seed))
    for (log, method), measured in rows.items():
        head = {"log": log, "method": method, "calls": size, "sites": len(of), "seeds": len(measured)}
        yield head | {key: stats.mean([one[key] for one in measured]) for key in measured[0]}


def as_json(figure: stats.Figure) -> dict[str, float | None]:
    return {"value": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}


def as_text(value: object) -> str:
    if not isinstance(value, stats.Figure):
        return str(value)
    interval = "" if value.low is None else f" [{value.low:.3g}, {value.high:.3g}]"
    return f"{value.value:.3g}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sgd, snips and clinc150")
    parser.add_argument("--sites", choices=("all", "even", "odd"), default="all")
    parser.add_argument("--dialogues", choices=("one", "any"), default="one", help="SGD's: about one service, or any")
    parser.add_argument("--seeds", type=lambda s: [int(n) for n in s.split(",")], default=[10, 11, 12], metavar="N,N")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    rows = list(measure(arguments))
    if arguments.json:
        json.dump(rows, sys.stdout, default=as_json)
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(as_text(row.get(key, "")) for key in rows[0]))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
