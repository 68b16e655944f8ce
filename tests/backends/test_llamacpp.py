"""The embedded backend with its real engine and real weights."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import pytest_asyncio
from msgspec.structs import replace

from smallfirst import models
from smallfirst.artifact import write_json
from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend, SharedClock
from smallfirst.backends.specialist import Manifest, PromptTemplate
from smallfirst.backends.toolprompt import constraint_schema
from smallfirst.backends.values import Passages, Values
from smallfirst.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConstraintUnsupported,
    ContextLengthExceeded,
    ModelFileError,
)
from smallfirst.types import (
    Constraint,
    Delta,
    Request,
    ResponseFormat,
    Sampling,
    Tool,
    ToolChoice,
    Usage,
)

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

WEATHER = Tool(
    "get_weather",
    "The weather now",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["c", "f"]}},
        "required": ["city"],
    },
)
CLOCK = Tool(
    "get_time",
    "The time now",
    {"type": "object", "properties": {"zone": {"enum": ["CET", "UTC"]}}, "required": ["zone"]},
)


def write_adapter(path: Path, seed: int = 0) -> Path:
    """A LoRA adapter of SmolLM2 that changes one matrix at random."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for side, shape in (("a", (4, 576)), ("b", (576, 4))):
        matrix = rng.normal(scale=0.5, size=shape).astype(np.float32)
        writer.add_tensor(f"blk.3.attn_output.weight.lora_{side}", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaCppBackend]:
    """An engine with two adapters; one thread, as two that wait for each other on a busy machine take far longer."""
    weights = await asyncio.to_thread(models.pull)
    folder = tmp_path_factory.mktemp("lora")
    adapters = {"noise": write_adapter(folder / "noise.gguf"), "bound": write_adapter(folder / "bound.gguf", 2)}
    values = {"get_time": {"place": Values(("Rome",), 2)}}
    manifest = Manifest(sha256="", base_sha256="", prompt=PromptTemplate("pruned"), values=values)
    write_json(manifest, folder / "bound.json")
    made = LlamaCppBackend(EngineConfig(weights, context=512, slots=2, batch_threads=1, adapters=adapters))
    await made.start()
    yield made
    await made.close()


BRIEF = Sampling(max_tokens=12)


def ask(text: str = "Say hello.", sampling: Sampling = BRIEF, **fields: Any) -> Request:
    return Request(
        wire="chat", body={}, model="m", messages=({"role": "user", "content": text},), sampling=sampling, **fields
    )


def held(request: Request, mode: Any = "constrained") -> Request:
    schema = constraint_schema(request)
    assert schema is not None
    return replace(request, constraint=Constraint(schema, mode))


async def answer(backend: LlamaCppBackend, request: Request) -> list[Delta]:
    return [delta async for delta in backend.generate(request)]


def text_of(deltas: list[Delta], choice: int = 0) -> str:
    return "".join(d.text for d in deltas if d.choice == choice)


def raw_of(deltas: list[Delta]) -> str:
    return "".join(token.token for d in deltas for token in d.logprobs)


def usage_of(deltas: list[Delta]) -> Usage:
    assert deltas[-1].usage is not None
    return deltas[-1].usage


async def test_a_plain_answer_has_text_logprobs_and_usage(backend: LlamaCppBackend) -> None:
    """Tokens joined are the text, each with its likeliest alternatives, and the machine time is counted."""
    deltas = await answer(backend, ask())
    assert text_of(deltas)
    assert raw_of(deltas) == text_of(deltas)
    assert all(t.logprob <= 0 and len(t.top) == 5 and t.top[0][1] >= t.top[-1][1] for d in deltas for t in d.logprobs)
    usage = usage_of(deltas)
    assert usage.input_tokens > 20
    assert 0 < usage.output_tokens <= 12
    assert usage.busy_seconds is not None
    assert usage.busy_seconds > 0


async def test_temperature_zero_is_deterministic_and_a_seed_fixes_samples(backend: LlamaCppBackend) -> None:
    """The likeliest answer repeats; so does a sample with the same seed."""
    assert text_of(await answer(backend, ask())) == text_of(await answer(backend, ask()))
    warm = ask(sampling=Sampling(max_tokens=12, temperature=1.5, seed=7))
    assert text_of(await answer(backend, warm)) == text_of(await answer(backend, warm))


async def test_max_tokens_and_stop_end_an_answer(backend: LlamaCppBackend) -> None:
    """The finish reason tells which of them did; a stop word is in neither text nor tokens."""
    deltas = await answer(backend, ask(sampling=Sampling(max_tokens=3)))
    assert deltas[-2].finish_reason == "length"
    assert usage_of(deltas).output_tokens == 3
    whole = text_of(await answer(backend, ask()))
    middle = whole[5:9]
    deltas = await answer(backend, ask(sampling=Sampling(max_tokens=12, stop=(middle,))))
    assert deltas[-2].finish_reason == "stop"
    assert text_of(deltas) == raw_of(deltas) == whole.partition(middle)[0]


async def test_text_beyond_ascii_keeps_tokens_and_text_aligned(backend: LlamaCppBackend) -> None:
    """Characters made of several tokens appear whole, in text and tokens alike."""
    request = ask("Repeat: 你好 🎉", constraint=Constraint({"const": "你好 🎉é"}))
    deltas = await answer(backend, request)
    assert json.loads(text_of(deltas)) == "你好 🎉é"
    assert raw_of(deltas) == text_of(deltas)


@pytest.mark.parametrize("mode", ["constrained", "late"])
async def test_a_required_call_parses_and_fits_its_schema(backend: LlamaCppBackend, mode: str) -> None:
    """Under a constraint the model must call an offered tool with fitting arguments, as generated."""
    request = ask(
        "Weather in Oslo?", tools=(WEATHER, CLOCK), tool_choice=ToolChoice("required"), parallel_tool_calls=False
    )
    deltas = await answer(backend, held(replace(request, sampling=Sampling(max_tokens=250)), mode))
    (call,) = deltas[-2].tool_calls
    assert call.name in ("get_weather", "get_time")
    assert set(json.loads(call.arguments)) & {"city", "zone"}
    assert call.arguments in raw_of(deltas)
    assert text_of(deltas) == ""
    assert deltas[-2].finish_reason == "tool_calls"


async def test_a_named_choice_is_enforced(backend: LlamaCppBackend) -> None:
    """A named tool is called whatever the question is."""
    request = ask("Weather in Oslo?", tools=(WEATHER, CLOCK), tool_choice=ToolChoice("required", ("get_time",)))
    deltas = await answer(backend, held(replace(request, parallel_tool_calls=False, sampling=Sampling(max_tokens=60))))
    assert [c.name for c in deltas[-2].tool_calls] == ["get_time"]
    assert json.loads(deltas[-2].tool_calls[0].arguments)["zone"] in ("CET", "UTC")


async def test_no_call_is_an_answer_under_auto_and_the_only_one_under_none(backend: LlamaCppBackend) -> None:
    """Plain text streams when the model does not call, and tools that may not be called cost no prompt."""
    auto = await answer(backend, held(ask("Tell me a joke.", tools=(WEATHER,), parallel_tool_calls=False)))
    assert text_of(auto)
    assert sum(bool(d.text) for d in auto) > 1
    none = await answer(backend, ask("Weather in Oslo?", tools=(WEATHER,), tool_choice=ToolChoice("none")))
    assert not any(d.tool_calls for d in none)
    assert usage_of(none).input_tokens < usage_of(auto).input_tokens


async def test_a_json_schema_holds(backend: LlamaCppBackend) -> None:
    """An answer under a response format is JSON that fits it."""
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 3, "maximum": 9}},
        "required": ["ok", "n"],
    }
    deltas = await answer(
        backend, held(ask("Anything.", Sampling(max_tokens=40), response_format=ResponseFormat("json_schema", schema)))
    )
    value = json.loads(text_of(deltas))
    assert isinstance(value["ok"], bool)
    assert 3 <= value["n"] <= 9


async def test_an_impossible_constraint_and_a_long_prompt_are_clear_errors(backend: LlamaCppBackend) -> None:
    """What the engine cannot do is told as such, and the engine lives on."""
    with pytest.raises(ConstraintUnsupported):
        await answer(backend, ask(constraint=Constraint({"type": "string", "pattern": "^(?=a)b$"})))
    with pytest.raises(ContextLengthExceeded, match="512"):
        await answer(backend, ask("word " * 600))
    with pytest.raises(ContextLengthExceeded, match="bytes are more than 512 tokens can be"):
        await answer(backend, ask("word " * 30_000))
    with pytest.raises(BackendError, match="no adapter 'other'"):
        await answer(backend, ask(adapter="other"))
    assert text_of(await answer(backend, ask()))


async def test_several_choices_are_tagged_and_counted_once(backend: LlamaCppBackend) -> None:
    """n = 2 gives two finished choices that differ when sampled, one prompt, one usage."""
    deltas = await answer(backend, ask("Name a colour.", Sampling(max_tokens=6, temperature=1.5, seed=1, n=2)))
    assert sorted(d.choice for d in deltas if d.finish_reason) == [0, 1]
    assert text_of(deltas, 0) != text_of(deltas, 1)
    assert [d.usage for d in deltas[:-1]] == [None] * (len(deltas) - 1)


async def test_requests_run_beside_each_other(backend: LlamaCppBackend) -> None:
    """More requests than slots all get their own right answer."""
    alone = [text_of(await answer(backend, ask(f"Say {word}."))) for word in ("red", "blue", "green")]
    together = await asyncio.gather(*(answer(backend, ask(f"Say {word}.")) for word in ("red", "blue", "green")))
    assert all(map(text_of, together))
    assert len({text_of(t) for t in together}) == len(set(alone))


async def test_a_second_call_reuses_the_prefix(backend: LlamaCppBackend) -> None:
    """The second call with the same long prompt reads almost none of it again."""
    request = ask("word " * 300, sampling=Sampling(max_tokens=1))
    await answer(backend, request)
    usage = usage_of(await answer(backend, request))
    assert usage.cached_input_tokens > 0.9 * usage.input_tokens


async def test_closing_the_iterator_frees_the_slot(backend: LlamaCppBackend) -> None:
    """After abandoning as many long generations as there are slots, the next request is answered at once."""
    for _ in range(2):
        running = backend.generate(ask("Tell a very long story.", Sampling(max_tokens=400)))
        await anext(running)
        await running.aclose()
    request = replace(ask(sampling=Sampling(max_tokens=1)), timeout_s=10.0)
    assert usage_of(await answer(backend, request)).output_tokens == 1


async def test_a_deadline_is_kept(backend: LlamaCppBackend) -> None:
    """A request that takes longer than its timeout ends with BackendTimeout."""
    with pytest.raises(BackendTimeout, match=r"0\.2 s"):
        await answer(backend, replace(ask("Tell a story.", Sampling(max_tokens=400)), timeout_s=0.2))


async def test_an_adapter_is_chosen_per_request(backend: LlamaCppBackend) -> None:
    """The adapter changes the answer of the request that names it, and of no other, cached prompt or not."""
    plain = await answer(backend, ask())
    adapted = await answer(backend, ask(adapter="noise"))
    assert text_of(adapted) != text_of(plain)
    assert text_of(await answer(backend, ask())) == text_of(plain)
    assert text_of(await answer(backend, ask(adapter="noise"))) == text_of(adapted)


async def test_a_killed_engine_fails_the_request_in_flight_and_comes_back(backend: LlamaCppBackend) -> None:
    """kill -9 of the child: who was being answered gets BackendUnavailable, who asks next is answered."""
    running = backend.generate(ask("Tell a very long story.", Sampling(max_tokens=400)))
    await anext(running)
    assert backend.engine.pid is not None
    os.kill(backend.engine.pid, signal.SIGKILL)
    with pytest.raises(BackendUnavailable):
        async for _ in running:
            pass
    assert text_of(await answer(backend, ask()))


async def test_an_engine_that_stays_dead_fails_at_once(tmp_path: Path) -> None:
    """When the child cannot be started again, requests fail without waiting, so that a larger model answers."""
    weights = tmp_path / "weights.gguf"
    weights.symlink_to(await asyncio.to_thread(models.pull))
    dying = LlamaCppBackend(EngineConfig(weights, context=512, slots=1, batch_threads=1))
    await dying.start()
    weights.unlink()
    assert dying.engine.pid is not None
    os.kill(dying.engine.pid, signal.SIGKILL)
    await dying.engine.settle()
    with pytest.raises(BackendUnavailable, match=r"cannot be started again yet.*weights\.gguf"):
        await answer(dying, replace(ask(), timeout_s=60.0))
    await dying.close()


async def test_an_adapter_does_not_read_with_anothers_eyes(backend: LlamaCppBackend) -> None:
    """A prompt that one adapter has read is read anew by the base, also after others came between."""
    texts = [f"{what} came home late in the evening and sat down " * 8 for what in ("Ships", "Cats", "Judges", "Rain")]
    for text in texts:
        await answer(backend, ask(text, adapter="noise"))
    for text in texts:
        usage = usage_of(await answer(backend, ask(text)))
        assert usage.cached_input_tokens < usage.input_tokens / 2


async def test_an_adapter_gives_values_that_it_may(backend: LlamaCppBackend) -> None:
    """A text is one that its manifest knows, or a passage of what it reads, however the answer is sampled."""
    place = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    tool = Tool("get_time", "The time at a place", place)
    sampling = Sampling(max_tokens=40, temperature=1.5, seed=1)
    request = ask("It is late, my friend", sampling, tools=(tool,), tool_choice=ToolChoice("required"))
    request = held(replace(request, parallel_tool_calls=False))
    allowed = {"Rome", *Passages("user: It is late, my friend\n").up_to(2)}
    for seed in range(3):
        warm = replace(request, adapter="bound", sampling=replace(sampling, seed=seed))
        [call] = [call for delta in await answer(backend, warm) for call in delta.tool_calls]
        assert json.loads(call.arguments)["place"] in allowed


async def test_an_adapter_is_loaded_while_the_engine_serves(backend: LlamaCppBackend, tmp_path: Path) -> None:
    """The engine with one more adapter takes over: an answer under way ends where it began, the next ones have all
    adapters, and the former engine ends with its last answer."""
    added = await asyncio.to_thread(write_adapter, tmp_path / "more.gguf", 1)
    former, long = backend.engine, backend.generate(ask(sampling=Sampling(max_tokens=60)))
    await anext(long)
    await backend.load({"more": added})
    assert backend.engine is not former
    assert former.pid is not None
    answers = [text_of(await answer(backend, ask(adapter=name))) for name in (None, "noise", "more")]
    assert len(set(answers)) == 3
    assert usage_of([delta async for delta in long]).output_tokens > 1
    async with asyncio.timeout(10):
        while former.pid is not None:  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(0.01)


async def test_an_adapter_that_cannot_be_loaded_changes_nothing(backend: LlamaCppBackend, tmp_path: Path) -> None:
    """A damaged file is an error that names it, and what served goes on with the adapters that it had."""
    broken = tmp_path / "broken.gguf"
    await asyncio.to_thread(broken.write_bytes, b"no adapter")
    before, engine = text_of(await answer(backend, ask(adapter="noise"))), backend.engine
    with pytest.raises(ModelFileError, match="cannot serve"):
        await backend.load({"broken": broken})
    assert backend.engine is engine
    assert text_of(await answer(backend, ask(adapter="noise"))) == before


async def test_unreadable_weights_are_a_clear_error(tmp_path: Path) -> None:
    """Weights that are none give a clear error, and nothing answers before start or after close."""
    (tmp_path / "no.gguf").write_bytes(b"not weights")
    broken = LlamaCppBackend(EngineConfig(tmp_path / "no.gguf"))
    with pytest.raises(BackendUnavailable, match="not running"):
        await answer(broken, ask())
    with pytest.raises(ModelFileError, match=r"no\.gguf"):
        await broken.start()
    await broken.close()
    assert broken.engine.pid is None


async def test_shared_time_adds_up_to_the_time_that_passed() -> None:
    """Two users at once are charged half each: together no more than the wall clock."""
    clock, loop = SharedClock(), asyncio.get_running_loop()
    begin = loop.time()
    with clock.share() as one:
        await asyncio.sleep(0.02)
        with clock.share() as two:
            await asyncio.sleep(0.02)
    assert 0 < two.seconds < one.seconds
    assert one.seconds + two.seconds == pytest.approx(loop.time() - begin, rel=0.05, abs=0.002)
