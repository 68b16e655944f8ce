from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema_rs import validator_for

from smallfirst.assignment import Assigner
from smallfirst.errors import ConfigError, NotFoundError
from smallfirst.learn.answers import Answers
from smallfirst.learn.tasks import Task, count, find, merge, prompt_of_call, rename, row_of, split, task_of_row

DAY = 86400.0
NAMES = (
    "Ana",
    "Ben",
    "Chloe",
    "David",
    "Elif",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jun",
    "Karim",
    "Lena",
    "Mei",
    "Noah",
)
TOPICS = {
    "weather": "rain sun snow wind storm cloud forecast degrees cold hot umbrella tomorrow humid fog",
    "money": "transfer account savings checking rent balance bank statement card payment loan deposit fee credit",
    "music": "song album playlist singer band guitar concert melody jazz piano volume shuffle track lyrics",
    "food": "recipe oven onion garlic butter flour dinner vegan soup pasta grill spice sugar bake",
}
CHINESE = {"天气": "下雨晴天刮风温度雨伞寒冷炎热预报多云大雪", "银行": "转账余额账户存款贷款信用卡利息还款支票汇款"}


@dataclass(frozen=True)
class Call:
    """A recorded call."""

    id: str = "r"
    created_at: float = 0.0
    task: str | None = None
    episode: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    response_format: dict[str, Any] | None = None
    answer: dict[str, Any] | None = None
    correct: bool | None = None
    input_tokens: int = 100
    output_tokens: int = 10
    cost_usd: float | None = 0.01


def tool(name: str, *fields: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {field: {"type": "string"} for field in fields}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def said(topic: str, rng: random.Random) -> tuple[dict[str, Any], ...]:
    words = rng.sample((TOPICS | {"": "one two three four five six seven eight"})[topic].split(), 6)
    return ({"role": "user", "content": f"please tell me about {' '.join(words)}"},)


def told(instructions: str, rng: random.Random) -> dict[str, Any]:
    head = f"Today is 2030-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}. You work for {rng.choice(NAMES)}. "
    return {"role": "system", "content": f"{head}{instructions} Session {rng.getrandbits(40):x}."}


def bare_log(calls: int = 60, seed: int = 0) -> tuple[list[Call], list[str]]:
    """Calls with user text only, `calls` of each topic in random order, and their topics."""
    rng = random.Random(seed)
    topics = [topic for topic in TOPICS for _ in range(calls)]
    rng.shuffle(topics)
    return [Call(id=str(n), messages=said(topic, rng)) for n, topic in enumerate(topics)], topics


def agree(found: tuple[str | None, ...], truth: list[str]) -> bool:
    """The labels are one to one with the truth."""
    pairs = set(zip(found, truth, strict=True))
    return len(pairs) == len(set(truth)) == len({label for label, _ in pairs})


def majority(found: tuple[str | None, ...], truth: list[str]) -> dict[str, str | None]:
    """The label that most calls of each true topic have."""
    return {t: Counter(f for f, y in zip(found, truth, strict=True) if y == t).most_common(1)[0][0] for t in set(truth)}


def test_tools_find_tasks_whatever_is_said():
    """Calls that offer different tools are different tasks, though their users talk about the same things."""
    rng = random.Random(0)
    truth = [rng.choice(["search", "pay", "book"]) for _ in range(90)]
    offered = {"search": (tool("search", "query"),), "pay": (tool("pay", "amount", "to"),)}
    offered["book"] = (tool("list_rooms", "day"), tool("book", "room", "day"))
    calls = [Call(messages=said(rng.choice([*TOPICS]), rng), tools=offered[site]) for site in truth]
    found = find(calls)
    assert agree(found.task_of, truth)
    assert found.outliers == 0.0


def test_versions_of_a_schema_are_one_task():
    """A tool whose parameters changed in the middle of the log stays one task, beside another one."""
    rng = random.Random(0)
    old, new, other = tool("find", "city", "day", "price"), tool("find", "city", "day", "stars"), tool("pay", "amount")
    calls = [Call(messages=said("food", rng), tools=(offered,)) for offered in [old] * 40 + [new] * 40 + [other] * 40]
    assert agree(find(calls).task_of, ["find"] * 80 + ["pay"] * 40)


def test_templates_are_mined_from_varying_instructions():
    """Instructions with dates, names and ids in them are one task each, and two different ones are two."""
    rng = random.Random(1)
    instructions = {
        "triage": "Read the ticket of a customer and decide which team has to deal with it, and how urgent it is.",
        "reply": "Write a friendly reply to the letter below. Offer a refund where the order came broken or too late.",
    }
    truth = [rng.choice([*instructions]) for _ in range(120)]
    calls = [Call(messages=(told(instructions[site], rng), *said(rng.choice([*TOPICS]), rng))) for site in truth]
    assert agree(find(calls).task_of, truth)


def test_words_find_tasks_and_their_number():
    """Calls with nothing but user text fall into their four topics, and the number is not given."""
    calls, truth = bare_log()
    found = find(calls)
    assert agree(found.task_of, truth)


def test_chinese_words_find_tasks():
    """User text without spaces between words is told apart as well."""
    rng = random.Random(0)
    truth = [topic for topic in CHINESE for _ in range(50)]
    calls = [Call(messages=({"role": "user", "content": "请问" + "".join(rng.sample(CHINESE[t], 8))},)) for t in truth]
    assert agree(find(calls).task_of, truth)


def test_outliers_are_left_out():
    """Calls of a kind that comes too seldom belong to no task, and their share is told."""
    rng = random.Random(0)
    calls = [Call(messages=said("food", rng), tools=(tool("cook", "dish"),)) for _ in range(96)]
    calls += [Call(messages=said("food", rng), tools=(tool(f"odd{n}", f"field{n}"),)) for n in range(4)]
    found = find(calls)
    assert found.task_of[96:] == (None,) * 4
    assert found.outliers == 0.04
    assert [f.task for f in found.figures][-1] is None


@pytest.mark.parametrize(
    "calls",
    [
        [],
        [Call(messages=({"role": "user", "content": "hello"},))],
        [Call()] * 50,
        [Call(messages=({"role": "user", "content": None},), tools=({"type": "function"},), response_format={})] * 20,
    ],
)
def test_logs_with_nothing_recurring_have_no_tasks(calls):
    """No call, one call, and calls without text or tools give no task and no error."""
    found = find(calls)
    assert found.tasks == ()
    assert found.task_of == (None,) * len(calls)


def test_identical_calls_are_one_task():
    """The same call again and again is a task."""
    found = find([Call(messages=({"role": "user", "content": "summarise the news of today for the board"},))] * 40)
    assert len(found.tasks) == 1
    assert found.outliers == 0.0


def test_a_huge_prompt_is_a_call_like_others():
    """Prompts of a million characters are read in part and fall into their tasks."""
    rng = random.Random(0)
    long = " ".join(rng.choices("alpha beta gamma delta epsilon".split(), k=160_000))
    calls = [Call(messages=({"role": "user", "content": long},), tools=(tool("sum", "text"),))] * 12
    assert len(find(calls).tasks) == 1


def test_the_same_log_gives_the_same_tasks():
    """A second run without knowledge of the first finds the same ids, names and labels."""
    calls, _ = bare_log()
    one, other = find(calls), find(calls)
    assert one.task_of == other.task_of
    assert [(t.id, t.name, t.cells) for t in one.tasks] == [(t.id, t.name, t.cells) for t in other.tasks]


def test_tasks_keep_id_and_name_while_the_log_grows():
    """With new calls and a new topic, the old tasks keep their ids and names, and one new task comes."""
    calls, truth = bare_log(seed=0)
    old = [n for n, topic in enumerate(truth) if topic != "food"]
    first = find([calls[n] for n in old])
    named = rename(first.tasks, first.tasks[0].id, "favourite")
    later, later_truth = bare_log(calls=80, seed=5)
    second = find([*calls, *later], named)
    before = majority(first.task_of, [truth[n] for n in old])
    after = majority(second.task_of, truth + later_truth)
    assert {topic: after[topic] for topic in before} == before
    assert after["food"] not in before.values()
    assert {t.id: t.name for t in second.tasks}[named[0].id] == "favourite"


def test_a_merge_persists():
    """Two tasks that a person made one stay one when tasks are found again, and keep the first one's id and name."""
    calls, truth = bare_log()
    first = find(calls)
    ids = majority(first.task_of, truth)
    merged = merge(first.tasks, [ids["food"], ids["music"]])
    again = find(calls, merged)
    after = majority(again.task_of, truth)
    assert after["food"] == after["music"] == ids["food"]
    assert after["money"] == ids["money"]
    assert len(again.tasks) == 3


def test_a_split_persists():
    """A task that a person took apart, although its tools are the same, stays so when tasks are found again."""
    calls, truth = bare_log()
    calls = [replace(call, tools=(tool("answer", "text"),)) for call in calls]
    first = find(calls)
    assert len(first.tasks) == 1
    parts = split(first.tasks, first.tasks[0].name, calls)
    again = find(calls, parts)
    assert agree(again.task_of, truth)
    assert first.tasks[0].id in {task.id for task in parts}
    assert {task.id for task in again.tasks} == {task.id for task in parts}


def test_a_merged_task_is_split_into_what_was_merged():
    """Taking a merged task apart gives back its parts."""
    calls, truth = bare_log()
    first = find(calls)
    ids = majority(first.task_of, truth)
    parts = split(merge(first.tasks, [ids["food"], ids["music"]]), ids["food"], calls)
    assert agree(count(parts, calls).task_of, truth)


def test_wrong_edits_say_what_is_wrong():
    """Unknown tasks, a merge of one task, a taken name, a task without parts and a least of one call are refused."""
    calls = [Call(messages=({"role": "user", "content": "the same words"},))] * 30
    tasks = (*find(calls).tasks, Task("t-2", "second", (), 0.0))
    with pytest.raises(NotFoundError, match="'nope'"):
        merge(tasks, ["nope", "second"])
    with pytest.raises(ConfigError, match="two different tasks"):
        merge(tasks, ["second", "second"])
    with pytest.raises(ConfigError, match="taken"):
        rename(tasks, tasks[0].id, "second")
    with pytest.raises(ConfigError, match="no parts"):
        split(tasks, tasks[0].id, calls)
    with pytest.raises(ConfigError, match="least_calls is 1"):
        find(calls, least_calls=1)


def test_a_callers_word_names_the_task():
    """Calls that name their task are its; calls without a word that look the same go to it too."""
    rng = random.Random(0)
    offered = (tool("cook", "dish"),)
    calls = [
        Call(task="kitchen" if n % 2 else "auto:12ab", messages=said("food", rng), tools=offered) for n in range(60)
    ]
    calls.append(Call(task="rare", messages=said("music", rng)))
    found = find(calls)
    assert found.task_of == ("kitchen",) * 60 + ("rare",)
    assert {task.id: len(task.cells) for task in found.tasks} == {"kitchen": 1, "rare": 0}


def test_figures_add_up():
    """Calls, episodes, tokens, costs, labels and shares are those of the task's calls; a month is 30.4 days."""
    rng = random.Random(0)
    calls = [
        Call(
            created_at=n * DAY / 10,
            episode=f"e{n // 4}",
            messages=said("food", rng),
            tools=(tool("cook" if n < 80 else "serve", f"dish{n < 80}"),),
            correct={0: True, 1: False}.get(n % 4),
        )
        for n in range(101)
    ]
    cook, serve = find(calls).figures
    assert (cook.calls, cook.episodes, cook.input_tokens, cook.output_tokens) == (80, 20, 8000, 800)
    assert (cook.labelled, cook.correct) == (40, 20)
    assert cook.cost_usd == pytest.approx(0.8)
    assert cook.cost_month_usd == pytest.approx(0.8 / 10 * 365.25 / 12)
    assert cook.share_calls + serve.share_calls == pytest.approx(1)
    assert cook.share_cost == pytest.approx(80 / 101)
    assert (cook.share_tokens, serve.calls) == (pytest.approx(80 / 101), 21)


def test_what_is_unknown_is_none():
    """A log of less than a day has no monthly cost, and a call of unknown price makes the cost unknown."""
    rng = random.Random(0)
    calls = [Call(created_at=60.0 * n, messages=said("food", rng), tools=(tool("cook", "dish"),)) for n in range(40)]
    assert find(calls).figures[0].cost_month_usd is None
    unknown = find([*calls, replace(calls[0], cost_usd=None)]).figures[0]
    assert (unknown.cost_usd, unknown.share_cost) == (None, None)


def test_a_schema_is_suggested_from_the_answers():
    """Fields always there are required, strings of few values are enums, and free strings are not."""
    answers = Answers()
    for n in range(60):
        arguments = {"city": f"city {n}", "size": n % 5, "meal": ("lunch", "dinner")[n % 2]}
        arguments |= {"note": "quiet"} if n == 3 else {}
        function = {"name": "book", "arguments": json.dumps(arguments)}
        answers.add({"content": None, "tool_calls": [{"type": "function", "function": function}]})
    schema = answers.schemas()["book"]
    assert sorted(schema["required"]) == ["city", "meal", "size"]
    assert schema["properties"]["size"] == {"type": "integer"}
    assert sorted(schema["properties"]["meal"]["enum"]) == ["dinner", "lunch"]
    assert "enum" not in schema["properties"]["city"]


def test_prose_suggests_no_schema():
    """Answers in text have no schema, and a rare JSON object among them gives none."""
    answers = Answers()
    for text in ["Sure, done."] * 9 + ['{"a": 1}', "{broken", None]:
        answers.add({"content": text})
    answers.add(None)
    assert answers.schemas() == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.sampled_from("abc"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from("pqr"), json_values, max_size=3), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_the_answers_satisfy_the_schema_they_suggest(objects):
    """Every answer that was seen is valid under the suggested schema."""
    answers = Answers()
    for value in objects:
        answers.add({"content": json.dumps(value)})
    schema = answers.schemas()[""]
    assert all(validator_for(schema).is_valid(value) for value in objects)


async def test_tasks_come_back_from_the_store(tmp_path):
    """Tasks kept in the store assign calls as before, and are replaced together."""
    from smallfirst.store import open_store

    calls, _ = bare_log()
    found = find(calls)
    store = await open_store(f"sqlite:///{tmp_path}/records.db")
    try:
        await store.replace_tasks([row_of(task) for task in found.tasks])
        kept = [task_of_row(row) for row in await store.tasks()]
        await store.replace_tasks([row_of(kept[0])])
        assert [row.id for row in await store.tasks()] == [kept[0].id]
    finally:
        await store.close()
    assert sorted(kept, key=lambda t: t.id) == sorted(found.tasks, key=lambda t: t.id)
    assigner = Assigner({task.id: task.cells for task in kept})
    assert tuple(assigner.task(prompt_of_call(call)) for call in calls) == found.task_of
