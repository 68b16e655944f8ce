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
import gzip
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

from smallfirst import stats
from smallfirst.assignment import Assigner
from smallfirst.learn import tasks
from smallfirst.types import Request, ResponseFormat, Tool

CALLS = 2640
DOMAINS = {
    "banking": "freeze_account routing pin_change bill_due pay_bill account_blocked interest_rate min_payment "
    "bill_balance transfer order_checks balance spending_history transactions report_fraud",
    "cards": "replacement_card_duration expiration_date damaged_card improve_credit_score report_lost_card "
    "card_declined credit_limit_change apr redeem_rewards credit_limit rewards_balance application_status "
    "credit_score new_card international_fees",
    "home": "what_song play_music todo_list_update reminder reminder_update calendar_update order_status "
    "update_playlist shopping_list calendar next_song order todo_list shopping_list_update smart_home",
    "commute": "current_location oil_change_when oil_change_how uber traffic tire_pressure schedule_maintenance gas "
    "mpg distance directions last_maintenance gas_type tire_change jump_start",
    "utility": "weather alarm date find_phone share_location timer make_call calculator definition "
    "measurement_conversion flip_coin spelling time roll_dice text",
    "work": "pto_request_status next_holiday insurance_change insurance meeting_schedule payday taxes income "
    "rollover_401k pto_balance pto_request w2 schedule_meeting direct_deposit pto_used",
}
NAMES = "Ana Ben Chloe David Elif Farid Grace Hugo Ines Jun Karim Lena Mei Noah Olga Priya Quinn Rosa Sam Tariq".split()
LAST = "Adams Baker Chen Diaz Evans Fischer Garcia Haddad Ito Jansen Khan Lopez Meyer Novak Okafor Patel".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a site, as the log of a gateway has it."""

    id: str
    created_at: float
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    response_format: dict[str, Any] | None = None
    answer: dict[str, Any] | None = None
    task: str | None = None
    episode: str | None = None
    correct: bool | None = None
    input_tokens: int = 400
    output_tokens: int = 30
    cost_usd: float | None = 0.001


@dataclass(frozen=True, slots=True)
class Site:
    """What a site's calls share, and its conversations: (role, text) each."""

    instructions: str
    conversations: tuple[tuple[tuple[str, str], ...], ...]
    tools: tuple[dict[str, Any], ...] = ()
    response_format: dict[str, Any] | None = None


def sites(data: Path, dialogues: str) -> dict[str, Site]:
    return {**sgd(data / "sgd", dialogues), **snips(data / "snips"), **clinc(data / "clinc150")}


def sgd(folder: Path, dialogues: str) -> dict[str, Site]:
    offered: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for tool in json.loads((folder / "tools_train.json").read_text()).values():
        function = {key: tool[key] for key in ("name", "description", "parameters")}
        offered[tool["service"]].append({"type": "function", "function": function})
    said: dict[str, list[tuple[tuple[str, str], ...]]] = defaultdict(list)
    with gzip.open(folder / "calls_train.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            if dialogues == "any" or len(row["services_in_dialogue"]) == 1:
                roles = {"U": "user", "S": "assistant"}
                said[row["service"]].append(tuple((roles[who], text) for who, text in row["history"]))
    return {
        f"sgd:{service}": Site(
            f"Help the user of our {service.split('_')[0]} service to get it done. Ask for what is missing. You can: "
            + "; ".join(tool["function"]["description"] for tool in offered[service]),
            tuple(turns),
            tuple(offered[service]),
        )
        for service, turns in said.items()
        if len(turns) >= 150
    }


def snips(folder: Path) -> dict[str, Site]:
    found = {}
    for path in sorted(folder.glob("train_*_full.json")):
        [(intent, rows)] = json.loads(path.read_bytes().decode("utf-8", "replace")).items()
        slots = sorted({part["entity"] for row in rows for part in row["data"] if "entity" in part})
        schema = {"type": "object", "properties": {slot: {"type": "string"} for slot in slots}}
        texts = ["".join(part["text"] for part in row["data"]).strip() for row in rows]
        found[f"snips:{intent}"] = Site(
            f"The user's utterance has the intent {intent}. Extract its slots word for word: {', '.join(slots)}.",
            tuple((("user", text),) for text in texts if text),
            response_format={"type": "json_schema", "json_schema": {"name": "slots", "schema": schema}},
        )
    return found


def clinc(folder: Path) -> dict[str, Site]:
    rows = json.loads((folder / "data_full.json").read_text())
    found = {}
    for domain, names in DOMAINS.items():
        intents = names.split()
        texts = [text for part in ("train", "val", "test") for text, intent in rows[part] if intent in intents]
        schema = {"type": "object", "properties": {"intent": {"enum": intents}}, "required": ["intent"]}
        found[f"clinc:{domain}"] = Site(
            f"Classify the message of a user about {domain} into one of: {', '.join(intents)}.",
            tuple((("user", text),) for text in texts),
            response_format={"type": "json_schema", "json_schema": {"name": "intent", "schema": schema}},
        )
    return found


def draw(of: Mapping[str, Site], seed: int) -> tuple[list[Call], list[str], list[Call], list[str]]:
    """A log with the site of each of its calls, and as many calls that are not in it, in random order."""
    rng = random.Random(seed)
    each = -(-CALLS // len(of))
    log: list[tuple[Call, str]] = []
    unseen: list[tuple[Call, str]] = []
    for name, site in of.items():
        drawn = rng.sample(site.conversations, min(2 * each, len(site.conversations)))
        for n, turns in enumerate(drawn):
            (log if n < each else unseen).append((sent(site, turns, rng), name))
    rng.shuffle(log)
    return [c for c, _ in log], [s for _, s in log], [c for c, _ in unseen], [s for _, s in unseen]


def sent(site: Site, turns: Sequence[tuple[str, str]], rng: random.Random) -> Call:
    """The call as an agent would send it."""
    who = f"{rng.choice(NAMES)} {rng.choice(LAST)}"
    date = f"{rng.choice(DAYS)}, 2025-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    opening = f"Today is {date}. You are talking to {who} (customer {rng.randrange(10**6):06}). "
    closing = f" Session {rng.getrandbits(48):012x}."
    system = {"role": "system", "content": opening + site.instructions + closing}
    messages = (system, *({"role": role, "content": text} for role, text in turns))
    tools, form = tuple(rng.sample(site.tools, len(site.tools))), site.response_format
    if rng.random() < 0.5:
        tools = tuple(tool | {"function": revised(tool["function"], "parameters")} for tool in tools)
        form = form and form | {"json_schema": revised(form["json_schema"], "schema")}
    return Call("", 1.7e9, messages, tools, form)


def revised(holder: dict[str, Any], key: str) -> dict[str, Any]:
    """Another version of a schema: its last field has gone, if it has several, and a new one has come."""
    fields = dict(holder[key]["properties"])
    kept = dict(list(fields.items())[: max(1, len(fields) - 1)])
    return holder | {key: holder[key] | {"properties": kept | {"locale": {"type": "string"}}}}


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
