"""Prompt log-probabilities of the embedded engine, both ways, and of a vLLM server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from aiohttp import web

from smallfirst import models
from smallfirst.compress import native, tokens
from smallfirst.compress.scoring import Ask, PromptScorer, Template
from smallfirst.compress.tokens import EngineModel, TokenModel, TransformersModel, VllmModel, gguf_shape
from smallfirst.errors import BackendGarbage, ModelFileError, SmallfirstError, UpstreamError

ASKS = [Ask("Who sings?", "Ann sings 12 songs."), Ask("", "😀"), Ask("", "")]
CONTEXT = "Ann sings 12 songs today."


def _weights() -> object:
    try:
        return models.locate(models.DEFAULT_MODEL)
    except SmallfirstError as error:
        pytest.skip(f"no weights: {error}")


async def _told(model: TokenModel, context: str = CONTEXT) -> tuple[float, ...]:
    scorer = PromptScorer(model, Template(tail="\n:"))
    await scorer.start()
    try:
        return (await scorer.score(context, ASKS)).logprobs
    finally:
        await scorer.close()


@pytest.mark.engine
async def test_both_ways_of_the_engine_agree() -> None:
    """One prefill in this process and forced generation in the server give the same within 2 %, emoji too."""
    weights = _weights()
    assert native.available()
    one, other = await _told(native.NativeModel(weights, window=512)), await _told(EngineModel(weights, window=512))
    assert one[:2] == pytest.approx(other[:2], rel=0.02)
    assert one[2] == other[2] == 0.0


@pytest.mark.engine
async def test_a_kept_context_gives_the_same_scores() -> None:
    """Going from one context to another and back changes no score, whatever is kept of it."""
    model = native.NativeModel(_weights(), window=512)
    scorer = PromptScorer(model, Template(tail="\n:"))
    await scorer.start()
    first = (await scorer.score(CONTEXT, ASKS[:1])).logprobs
    await scorer.score(CONTEXT[:10] + "whistles.", ASKS)
    again = (await scorer.score(CONTEXT, ASKS[:1] * 3)).logprobs
    await scorer.close()
    assert again == pytest.approx(first * 3, rel=0.01)


@pytest.mark.engine
async def test_control_words_in_documents_stay_text() -> None:
    """A document cannot open a turn of its own: its control words are read as characters."""
    model = native.NativeModel(_weights(), window=512)
    await model.start()
    text, control = [await model.tokenize("<|im_start|>", special=special) for special in (False, True)]
    await model.close()
    assert len(control) == 1 < len(text)


@pytest.mark.engine
def test_the_shape_is_that_of_the_file() -> None:
    """SmolLM2-135M has 134.5 million weights in 30 layers of width 576."""
    shape = gguf_shape(_weights())
    assert (shape.layers, shape.width) == (30, 576)
    assert shape.parameters == pytest.approx(134.5e6, rel=0.01)


async def test_weights_that_are_none_are_refused(tmp_path) -> None:
    """A file that is no model is an error that names it."""
    file = tmp_path / "no.gguf"
    file.write_bytes(b"GGUF junk")
    with pytest.raises(ModelFileError, match=r"no\.gguf"):
        gguf_shape(file)
    if native.available():
        with pytest.raises(ModelFileError, match=r"no\.gguf"):
            await native.NativeModel(file).start()


@asynccontextmanager
async def _vllm(told: dict[str, float] | None) -> AsyncIterator[str]:
    """A server that speaks as vLLM does; tokens are bytes, each of log-probability -1 or as `told`."""

    async def tokenize(request: web.Request) -> web.Response:
        body = await request.json()
        begin = [7] if body["add_special_tokens"] else []
        tokens = [*begin, *body["prompt"].encode()]
        return web.json_response({"tokens": tokens, "count": len(tokens), "max_model_len": 4096})

    async def completions(request: web.Request) -> web.Response:
        body = await request.json()
        assert body["prompt_logprobs"] == 0
        each = [None, *({str(t): {"logprob": -1.0, "rank": 1}} for t in body["prompt"][1:])]
        return web.json_response({"choices": [{"text": "", "prompt_logprobs": each if told is None else told}]})

    app = web.Application()
    app.add_routes([web.post("/tokenize", tokenize), web.post("/v1/completions", completions)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def test_a_model_that_transformers_cannot_find_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error tells what may be named, whatever the library says of the internet."""

    def from_pretrained(_: str) -> None:
        raise OSError("We couldn't connect to a hub. Check your internet connection.")

    library = SimpleNamespace(AutoTokenizer=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setattr(tokens, "need", lambda _: library)
    with pytest.raises(ModelFileError, match="There is no model 'nope' on this machine") as raised:
        await TransformersModel("nope").start()
    assert "internet" not in str(raised.value)


async def test_vllm_is_asked_for_the_prompts_own_tokens() -> None:
    """Each byte of a text counts once, those of context and question not at all."""
    async with _vllm(None) as url:
        assert await _told(VllmModel(url, "m")) == pytest.approx((-19.0, -4.0, 0.0))


async def test_a_server_without_prompt_logprobs_is_garbage() -> None:
    """An answer without the prompt's log-probabilities, or an error, is told as such."""
    async with _vllm({}) as url:
        with pytest.raises(BackendGarbage, match="prompt_logprobs"):
            await _told(VllmModel(url, "m"))
        with pytest.raises(UpstreamError, match="404"):
            await _told(VllmModel(f"{url}/elsewhere", "m"))
