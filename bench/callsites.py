"""Public sets as call sites: what an agent asks there, again and again, and the right answer to each call.

`read` knows files of service calls as converted from SGD (with `tools_*.json` beside them), the folders of SNIPS and
CrossWOZ, that of CLINC150, whole or a domain of it (`clinc150/banking`), and trajectories of tau-bench
(`*-DOMAIN.json.gz` with `DOMAIN_tools.json` beside them).
"""

from __future__ import annotations

import gzip
import json
import random
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallfirst.errors import ConfigError, DataError
from smallfirst.learn.logs.files import items
from smallfirst.types import Json

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
CLINC, WOZ, TAU = "data_full.json", "*.json.zip", "*-*.json.gz"
SGD_ROW = {"id", "service", "method", "arguments", "history"}
SEARCHES = {"景点": "attraction", "餐馆": "restaurant", "酒店": "hotel", "地铁": "metro", "出租": "taxi"}
NAMES = "Ana Ben Chloe David Elif Farid Grace Hugo Ines Jun Karim Lena Mei Noah Olga Priya Quinn Rosa Sam Tariq".split()
LAST = "Adams Baker Chen Diaz Evans Fischer Garcia Haddad Ito Jansen Khan Lopez Meyer Novak Okafor Patel".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
Turns = tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A conversation up to a call, as chat messages, and the message that is the right answer. Calls of one episode
    belong together."""

    id: str
    episode: str
    turns: Turns
    answer: Json


@dataclass(frozen=True, slots=True)
class Site:
    """What the calls of a site share (`tools` and `response_format` as chat bodies have them), and the calls."""

    instructions: str
    calls: tuple[Said, ...]
    tools: tuple[Json, ...] = ()
    response_format: Json | None = None
    tool_choice: str = "required"

    def messages(self, turns: Turns, rng: random.Random) -> tuple[Json, ...]:
        """A conversation as an agent sends it: after a system prompt of its own, or else this site's with a date, a
        user's name and ids that `rng` draws."""
        own = bool(turns) and turns[0]["role"] == "system"
        return turns if own else ({"role": "system", "content": self._system(rng)}, *turns)

    def _system(self, rng: random.Random) -> str:
        who = f"{rng.choice(NAMES)} {rng.choice(LAST)}"
        date = f"{rng.choice(DAYS)}, 2025-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        opening = f"Today is {date}. You are talking to {who} (customer {rng.randrange(10**6):06}). "
        return opening + self.instructions + f" Session {rng.getrandbits(48):012x}."


def read(path: Path) -> dict[str, Site] | None:
    """The sites of a set by name; None for a file that is none of these sets, but may be a log.

    Raises ConfigError for a path that does not exist or a folder that holds none, DataError for what is no SGD row.
    """
    if (path.parent / CLINC).is_file() and path.name in DOMAINS:
        return {f"clinc:{path.name}": clinc(path.parent, path.name)}
    if path.is_file():
        return sgd(path) if _is_sgd(path) else None
    if (path / CLINC).is_file():
        return {f"clinc:{domain}": clinc(path, domain) for domain in DOMAINS}
    if any(path.glob("train_*_full.json")):
        return {"snips": snips(path)}
    if any(path.glob(WOZ)):
        return {"crosswoz": crosswoz(path)}
    if any(path.glob(TAU)):
        return {f"tau:{file.name.removesuffix('.json.gz')}": tau(file) for file in sorted(path.glob(TAU))}
    raise ConfigError(
        f"There are no calls at {str(path)!r}.",
        hint="Name a log, a file of SGD's calls, CLINC150/DOMAIN, or a folder of SNIPS, CLINC150, CrossWOZ, tau-bench.",
    )


def sgd(path: Path, *, alone: bool = False) -> dict[str, Site]:
    """The services of a file of SGD's calls, by name; `alone`: only dialogues about one service.

    Their tools stand beside it, in `tools_X.json` for `calls_X.jsonl.gz`, else in all `tools_*.json`."""
    own = path.with_name(f"tools_{path.name.partition('.')[0].removeprefix('calls_')}.json")
    offered: dict[str, list[Json]] = defaultdict(list)
    known = dict[str, str]()
    for file in [own] if own.is_file() else sorted(path.parent.glob("tools_*.json")):
        for tool in json.loads(file.read_bytes()).values():
            if known.setdefault(f"{tool['service']}.{tool['name']}", str(file)) == str(file):
                offered[tool["service"]].append(_tool(tool["name"], tool["description"], tool["parameters"]))
    said: dict[str, list[Said]] = defaultdict(list)
    for row in _rows(path):
        if f"{row['service']}.{row['method']}" not in known:
            raise DataError(
                f"{path}: no tool {row['method']!r} of {row['service']!r} stands in {own.name}.",
                hint='Put it there: {"SERVICE.NAME": {"name", "service", "description", "parameters"}, ...}.',
            )
        if not alone or len(row.get("services_in_dialogue", ())) == 1:
            said[row["service"]].append(_of_dialogue(row))
    return {
        name: Site(
            f"Help the user of our {name.split('_')[0]} service to get it done. Ask for what is missing. You can: "
            + "; ".join(tool["function"]["description"] for tool in offered[name]),
            tuple(calls),
            tuple(offered[name]),
        )
        for name, calls in said.items()
    }


def _is_sgd(path: Path) -> bool:
    first = next(items(path), None)
    return first is not None and isinstance(first.value, dict) and set(first.value) >= SGD_ROW


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    for item in items(path):
        if not isinstance(item.value, dict) or not set(item.value) >= SGD_ROW:
            wrong = item.wrong or "it lacks some of: " + ", ".join(sorted(SGD_ROW))
            raise DataError(f"{path}, line {item.line}: no call of a service, {wrong}.")
        yield item.value


def _of_dialogue(row: Mapping[str, Any]) -> Said:
    turns = tuple(_turn({"U": "user", "S": "assistant"}[who], text) for who, text in row["history"])
    answer = _answer(row["method"], row["arguments"])
    return Said(row["id"], str(row["id"]).rpartition("/")[0] or row["id"], turns, answer)


def _snips_rows(folder: Path, files: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Intent, utterance, and the slots' values."""
    for path in sorted(folder.glob(f"{files}.json")):
        [(intent, rows)] = json.loads(path.read_bytes().decode("utf-8", "replace")).items()
        for row in rows:
            slots = {part["entity"]: part["text"].strip() for part in row["data"] if "entity" in part}
            yield intent, "".join(part["text"] for part in row["data"]).strip(), slots


def _slots(rows: Collection[tuple[str, str, dict[str, str]]]) -> dict[str, Json]:
    """The schema of each intent's slots."""
    names: dict[str, set[str]] = defaultdict(set)
    for intent, _, slots in rows:
        names[intent] |= set(slots)
    return {intent: _texts(known) for intent, known in names.items()}


def snips(folder: Path, files: str = "*") -> Site:
    """All intents as the tools of one site; `files` are those to read, without their suffix."""
    rows = list(_snips_rows(folder, files))
    tools = tuple(_tool(intent, "", schema) for intent, schema in _slots(rows).items())
    calls = tuple(
        Said(f"{files}{n}", text, (_turn("user", text),), _answer(intent, slots))
        for n, (intent, text, slots) in enumerate(rows)
        if text
    )
    return Site("Do what the user asks for, with the words that the user has.", calls, tools)


def snips_intents(folder: Path) -> dict[str, Site]:
    """Each intent as a site of its own, which asks for its slots as JSON."""
    rows = list(_snips_rows(folder, "train_*_full"))
    return {
        f"snips:{intent}": Site(
            f"The user's utterance has the intent {intent}. Extract its slots word for word: "
            f"{', '.join(schema['properties'])}.",
            tuple(
                Said("", text, (_turn("user", text),), _answer("", slots))
                for its, text, slots in rows
                if its == intent and text
            ),
            response_format=_form("slots", schema),
        )
        for intent, schema in _slots(rows).items()
    }


def clinc(folder: Path, domain: str, parts: Collection[str] = ("train", "val", "test")) -> Site:
    """A domain whose intents are an enum; `parts` are the set's own splits."""
    rows, intents = json.loads((folder / CLINC).read_bytes()), DOMAINS[domain].split()
    schema = {"type": "object", "properties": {"intent": {"enum": intents}}, "required": ["intent"]}
    calls = tuple(
        Said(f"{part}{n}", text, (_turn("user", text),), _answer("", {"intent": intent}))
        for part in parts
        for n, (text, intent) in enumerate(rows[part])
        if intent in intents
    )
    asks = f"Classify the message of a user about {domain} into one of: {', '.join(intents)}."
    return Site(asks, calls, response_format=_form("intent", schema))


def crosswoz(folder: Path) -> Site:
    """The queries of CrossWOZ's wizards, as they were before results made them ask again."""
    calls = list[Said]()
    for path in sorted(folder.glob(WOZ)):
        with zipfile.ZipFile(path) as packed:
            for name, dialogue in json.loads(packed.read(packed.namelist()[0])).items():
                calls += _queries(name, dialogue["messages"])
    slots: dict[str, set[str]] = defaultdict(set)
    for said in calls:
        [call] = said.answer["tool_calls"]
        slots[call["function"]["name"]] |= set(json.loads(call["function"]["arguments"]))
    tools = tuple(
        _tool(f"search_{name}", f"查询{place}", _texts(slots[f"search_{name}"])) for place, name in SEARCHES.items()
    )
    return Site("你是北京旅游助手。按照用户的要求查询景点、餐馆、酒店、地铁和出租车。", tuple(calls), tools)


def _queries(dialogue: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[Said]:
    turns, before = list[Json](), dict[str, dict[str, str]]()
    for message in messages:
        if message["role"] == "sys":
            for place, wanted in _searched(message["sys_state_init"]).items():
                if wanted and wanted != before.get(place):
                    answer = _answer(f"search_{SEARCHES[place]}", wanted)
                    yield Said(f"{dialogue}/{len(turns)}", dialogue, tuple(turns), answer)
            before = _searched(message["sys_state"])
        turns.append(_turn({"usr": "user", "sys": "assistant"}[message["role"]], message["content"]))


def _searched(state: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The slots filled, by place."""
    return {
        place: {slot: value for slot, value in form.items() if value and slot != "selectedResults"}
        for place, form in state.items()
    }


def tau(path: Path) -> Site:
    """All that an agent said in recorded trajectories, tool calls and replies, right or not, after its own prompt.

    Raises DataError without the domain's tools.
    """
    domain = path.name.removesuffix(".json.gz").rpartition("-")[2]
    tools = path.with_name(f"{domain}_tools.json")
    if not tools.is_file():
        raise DataError(f"{path}: its tools are not there.", hint=f"Put them into {tools.name}, as a list of tools.")
    calls = tuple(
        Said(f"{episode}/{n}", f"{path.name}/{episode}", tuple(messages[:n]), message)
        for episode, messages in enumerate(each["traj"] for each in json.loads(gzip.decompress(path.read_bytes())))
        for n, message in enumerate(messages)
        if message["role"] == "assistant"
    )
    return Site("", calls, tuple(json.loads(tools.read_bytes())), tool_choice="auto")


def _turn(role: str, text: str) -> Json:
    return {"role": role, "content": text}


def _answer(tool: str, value: Json) -> Json:
    """The call of `tool` with the arguments `value`; without a tool `value` as JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not tool:
        return _turn("assistant", text)
    call = {"id": "call_1", "type": "function", "function": {"name": tool, "arguments": text}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _texts(slots: Collection[str]) -> Json:
    return {"type": "object", "properties": {slot: {"type": "string"} for slot in sorted(slots)}}


def _tool(name: str, description: str, parameters: Json) -> Json:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _form(name: str, schema: Json) -> Json:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
