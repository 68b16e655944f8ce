"""`bench/bfcl.py` with models that are scripts, on invented questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import bfcl as bench
from live.recorded import Energy, Meter, Recorder, Unasked
from smallfirst.backends.fake import FakeBackend, Script
from smallfirst.bfcl import Question
from smallfirst.errors import BackendUnavailable, ContextLengthExceeded
from smallfirst.types import Capabilities, Choice, Completion, Request, TokenLogprob, ToolCall, Usage
from smallfirst.wire.accumulate import Accumulator

WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CAPABILITIES = Capabilities(constraint=True, top_logprobs=20)


def question(n: int) -> Question:
    """Every third question is hard to read."""
    city = f"{'muddle' if n % 3 == 0 else 'town'} {n}"
    message = {"role": "user", "content": f"What is the weather in {city}?"}
    return Question(f"live_simple_{n}", "live_simple", (message,), (WEATHER,), ({"weather": {"city": [city]}},))


def caller(seconds: float, misses: Callable[[str], bool]) -> Script:
    """A model that calls with the city asked about, or, where it misses, unsurely with another."""

    def script(request: Request) -> Completion:
        asked = request.messages[0]["content"].removeprefix("What is the weather in ").removesuffix("?")
        city, sure = ("elsewhere", -0.7) if misses(asked) else (asked, -0.01)
        call = ToolCall("c", "weather", json.dumps({"city": city}))
        text = json.dumps({"name": "weather", "arguments": {"city": city}})
        pieces = text.partition(city)
        tokens = tuple(TokenLogprob(t, sure, ((t, sure), ("no", -0.71 if sure < -0.5 else -5.0))) for t in pieces)
        return Completion((Choice(tool_calls=(call,), logprobs=tokens),), Usage(50, 20, busy_seconds=seconds))

    return script


def models() -> dict[str, FakeBackend]:
    scripts = {
        "tiny": caller(0.1, lambda city: "muddle" in city),
        "small": caller(0.3, lambda city: city.startswith("muddle 3")),
        "large": caller(9.0, lambda city: city.endswith("7")),
    }
    return {name: FakeBackend(name, script, CAPABILITIES) for name, script in scripts.items()}


async def tables(work: Path, capsys: pytest.CaptureFixture[str], backends: dict[str, FakeBackend], n: int) -> Any:
    said = ["--work", str(work), "--compared", "6", "--alpha", "0.2", "--splits", "1", "--samples", "1", "--json"]
    await bench.run(backends, [question(i) for i in range(n)], bench.options().parse_args(said))
    return json.loads(capsys.readouterr().out)


async def test_all_tables_come_of_answers_that_are_asked_for_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run gives every table with figures that fit the models; run again it gives the same and asks no model."""
    backends = models()
    found = await tables(tmp_path, capsys, backends, 100)
    assert {row["mode"]: row["accuracy"]["n"] for row in found["models"] if row["model"] == "tiny"} == {
        "free": 6,
        "constrained": 100,
        "late": 6,
    }
    by_feature = {row["feature"]: row["AUROC"]["value"] for row in found["features"] if row["model"] == "tiny"}
    assert by_feature["margin_mean"] == 1.0
    assert by_feature["calibrator"] > 0.9
    for row in found["cascade"]:
        if row["small"] == "tiny" and row["threshold"] == "alpha 0.2":
            assert row["certified"]["value"] == 1.0
            assert row["CPS / large"]["high"] < 0.8
            assert row["accuracy"]["value"] > row["large alone"]["low"]
    arms = {row["arm"]: row for row in found["ablation"] if row["small"] == "tiny"}
    assert arms["small"]["accuracy"]["n"] == 6
    assert arms["small + schema + repair"]["accuracy"]["value"] == pytest.approx(0.66)
    assert arms["small + schema + calibrated, alpha 0.2"]["wrong given"]["value"] < 0.2
    again = models()
    assert await tables(tmp_path, capsys, again, 100) == found
    assert not any(backend.seen for backend in again.values())


async def test_a_small_model_that_cannot_be_certified_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With too few labels nothing is accepted, everything is the large model's, and the reason is in the table."""
    found = await tables(tmp_path, capsys, models(), 20)
    for row in found["cascade"]:
        assert row["accepted"]["value"] == 0
        assert row["CPS / large"]["value"] == 1
        assert "too few" in row["why not"]


async def test_a_time_limit_leaves_tables_of_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any time nothing is asked, and there are tables without figures rather than an error."""
    backends = models()
    said = ["--work", str(tmp_path), "--minutes", "0", "--json"]
    await bench.run(backends, [question(i) for i in range(4)], bench.options().parse_args(said))
    assert json.loads(capsys.readouterr().out)["models"] == []
    assert not any(backend.seen for backend in backends.values())


def request(text: str = "hi") -> Request:
    return Request(wire="chat", body={}, model="", messages=({"role": "user", "content": text},))


async def answer(recorder: Recorder, asked: Request) -> Completion:
    found = Accumulator()
    async for delta in recorder.generate(asked):
        found.feed(delta)
    return found.completion()


async def test_an_answer_is_kept_with_the_time_it_took(tmp_path: Path) -> None:
    """A second recorder over the same file gives the same answer in the same time, without a model."""
    path, meters = tmp_path / "a.jsonl", (Meter(), Meter())
    live = FakeBackend("live", caller(1.0, lambda _: False))
    first = Recorder("m", path, CAPABILITIES, meters[0])
    await live.start()
    first.live = live
    given = await answer(first, request())
    second = Recorder("m", path, CAPABILITIES, meters[1])
    assert await answer(second, request()) == given
    assert meters[0].log == meters[1].log
    with pytest.raises(Unasked):
        await answer(second, request("something else"))


async def test_only_errors_of_the_question_are_kept(tmp_path: Path) -> None:
    """A question too long for the model stays so; a model that was not there is asked again."""
    recorder = Recorder("m", tmp_path / "a.jsonl", CAPABILITIES, Meter())
    recorder.live = FakeBackend("off")
    with pytest.raises(BackendUnavailable):
        await answer(recorder, request())
    recorder.live = FakeBackend("on", lambda _: ContextLengthExceeded("too long"))
    await recorder.live.start()
    with pytest.raises(ContextLengthExceeded):
        await answer(recorder, request())
    kept = Recorder("m", tmp_path / "a.jsonl", CAPABILITIES, Meter())
    with pytest.raises(ContextLengthExceeded, match="too long"):
        await answer(kept, request())


async def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path: Path) -> None:
    """What was whole is kept, and what is asked next stands on a line of its own."""
    path = tmp_path / "a.jsonl"
    live = FakeBackend("live")
    await live.start()
    for text in ("one", "two"):
        recorder = Recorder("m", path, CAPABILITIES, Meter())
        recorder.live = live
        await answer(recorder, request(text))
        path.write_bytes(path.read_bytes() + b'{"question": "cut')
    whole = Recorder("m", path, CAPABILITIES, Meter())
    for text in ("one", "two"):
        assert await answer(whole, replace(request(text)))
    assert len(path.read_bytes().splitlines()) == 2


def test_joules_are_read_over_a_wrap_and_never_made_up(tmp_path: Path) -> None:
    """Packages add up, a counter that wrapped around counts on, and without counters there are no joules."""
    assert Energy(tmp_path).joules() is None
    for package, before in enumerate((1_000_000, 9_000_000)):
        domain = tmp_path / f"intel-rapl:{package}"
        domain.mkdir()
        (domain / "energy_uj").write_text(str(before))
        (domain / "max_energy_range_uj").write_text("10000000")
    energy = Energy(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500000")
    assert energy.joules() == pytest.approx(2.0 + 1.5)
