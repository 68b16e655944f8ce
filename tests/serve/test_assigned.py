"""Found tasks, online: calls are assigned to them while the gateway runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recording import TOOL, WEATHER
from running import Running, Start, until

from smallfirst.assignment import Cell, cells_to_json, prompt_of, prompt_of_request
from smallfirst.router import fingerprint
from smallfirst.serve.tasks import Tasks
from smallfirst.store import TaskRow, open_store
from smallfirst.types import Request, ResponseFormat

WEATHERS = [{"role": "user", "content": "will it rain or snow, is there wind or a storm, or sun"}]
MONEY = [{"role": "user", "content": "pay my rent from the savings account and transfer a balance to the bank"}]
TOOLS: list[dict[str, Any]] = [TOOL]


def row(task: str, *cells: Cell) -> TaskRow:
    return TaskRow(task, task.removeprefix("t-"), False, cells_to_json(cells), 1.0)


def spoken(name: str, messages: list[dict[str, str]]) -> Cell:
    """A cell of calls without tools, known by what users say."""
    words = prompt_of(messages, (), None).words
    return Cell(name, frozenset(), frozenset(), dict.fromkeys(words, 1.0), 0.1)


OFFERED = Cell("c0", prompt_of([], [("get_weather", WEATHER)], None).slots)


@pytest.fixture(autouse=True)
def brisk_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no second to wait for a change to be noticed."""
    monkeypatch.setattr("smallfirst.serve.follow.REFRESH_S", 0.02)


async def task_of(gateway: Running, **body: Any) -> str:
    return (await gateway.chat(body)).said("task")


async def test_found_tasks_are_followed_while_the_gateway_runs(start: Start):
    """A call is a fingerprint's before tasks are found, the found task's within moments after, and recorded so; the
    next set takes the place of the first; the caller's word and a configured match come first."""
    gateway = await start('[tasks.configured]\nmatch = {tools = ["other"]}\n')
    assert (await task_of(gateway, tools=TOOLS)).startswith("auto:")
    async with gateway.store() as store:
        await store.replace_tasks([row("t-weather", OFFERED)])
        await until(lambda: task_of(gateway, tools=TOOLS), lambda task: task == "t-weather")
        answer = await gateway.chat({"tools": TOOLS})
        assert (await gateway.record(answer)).task == "t-weather"
        assert (await gateway.chat({"tools": TOOLS}, x_smallfirst_task="mine")).said("task") == "mine"
        other = [{"type": "function", "function": {**TOOL["function"], "name": "other"}}]
        assert await task_of(gateway, tools=other) == "configured"
        assert (await task_of(gateway)).startswith("auto:")
        await store.replace_tasks([row("t-sky", OFFERED)])
        await until(lambda: task_of(gateway, tools=TOOLS), lambda task: task == "t-sky")


def request(messages: list[dict[str, str]], **more: Any) -> Request:
    return Request("chat", {}, "auto", tuple(messages), **more)


async def test_a_fingerprint_is_looked_at_once_where_it_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Calls that differ only in what the user says are looked at again only where that matters."""
    store = await open_store(f"sqlite:///{tmp_path}/calls.db")
    asked = request(WEATHERS, response_format=ResponseFormat("json_schema", WEATHER))
    formed = Cell("c1", prompt_of_request(asked).slots)
    await store.replace_tasks([row("t-a", formed), row("t-b", spoken("c2", WEATHERS)), row("t-c", spoken("c3", MONEY))])
    tasks = Tasks(store)
    await tasks.refresh()
    looked: list[Request] = []

    def counted(request: Request) -> Any:
        looked.append(request)
        return prompt_of_request(request)

    monkeypatch.setattr("smallfirst.serve.tasks.prompt_of_request", counted)
    again = request(MONEY, response_format=asked.response_format)
    assert [tasks.assign(one, fingerprint(one)) for one in (asked, again, asked)] == ["t-a"] * 3
    assert looked == [asked]
    said = [request(WEATHERS), request(MONEY), request([{"role": "user", "content": "zebra"}])]
    assert len({fingerprint(one) for one in said}) == 1
    assert [tasks.assign(one, fingerprint(one)) for one in said] == ["t-b", "t-c", None]
    await store.replace_tasks([])
    await tasks.refresh()
    assert tasks.assign(asked, fingerprint(asked)) is None
    await store.close()


def test_the_gateway_loads_no_heavy_library():
    """Serving with found tasks needs nothing of the learn extra."""
    heavy = "sys.modules.keys() & {'sklearn', 'scipy', 'networkx', 'torch', 'phonenumbers'}"
    code = f"import sys, smallfirst.serve.server; found = {heavy}; sys.exit(str(found) if found else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
