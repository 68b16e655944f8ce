"""What gives log-probabilities of tokens that are already there: the embedded engine's server, vLLM, transformers.

`native` has a fourth, llama.cpp in this process. All are `TokenModel`s, of which `scoring.PromptScorer` makes scorers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import msgspec

from smallfirst.backends.engine import Engine
from smallfirst.compress.base import ModelShape
from smallfirst.errors import BackendGarbage, BackendUnavailable, ModelFileError, UpstreamError
from smallfirst.extra import need

_TIMEOUT_S = 300.0
_EVERY = 1 << 20  # more alternatives than any vocabulary has
_BATCH = 16  # sequences that transformers evaluates at once


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens behind a context. The first `given`, at least one, are conditioned on and not scored."""

    tokens: tuple[int, ...]
    given: int


class TokenModel(Protocol):
    """A causal language model. `window` is the most tokens of a context with its continuation; `shape` is None where
    it is not known; `begin` are the tokens that its every text begins with, known once `start` has returned."""

    @property
    def name(self) -> str: ...
    @property
    def window(self) -> int: ...
    @property
    def shape(self) -> ModelShape | None: ...
    @property
    def begin(self) -> list[int]: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        """The tokens of a piece of text; only with `special` are words such as <|im_end|> read as control tokens."""
        ...

    async def logprobs(self, context: Sequence[int], continuations: Sequence[Continuation]) -> list[float]:
        """For each continuation of `context` the summed log-probability of its scored tokens, in nats."""
        ...


@cache
def gguf_shape(weights: Path) -> ModelShape:
    """What a GGUF file's header says of the model's arithmetic. An embedding that is no output layer too is looked up,
    not multiplied, and does not count. Raises ModelFileError when the file is none."""
    import gguf

    try:
        reader = gguf.GGUFReader(weights)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{str(weights)!r} is not a GGUF file: {error}.") from error

    def said(key: str) -> int:
        field = reader.fields.get(f"{architecture}.{key}")
        return int(field.contents()) if field is not None else 0

    architecture = reader.fields["general.architecture"].contents()
    names = {tensor.name for tensor in reader.tensors}
    looked_up = {"token_embd.weight"} if "output.weight" in names else set()
    parameters = sum(int(t.n_elements) for t in reader.tensors if t.name not in looked_up)
    width = said("attention.head_count") * said("attention.key_length") or said("embedding_length")
    return ModelShape(parameters, said("block_count"), width)


class _Served:
    """What the two servers share: a session, and JSON in and out."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def _ask(self, url: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Any:
        """The server's JSON answer; `body` None asks with GET."""
        if self._session is None:
            raise BackendUnavailable("The scorer is not running.", hint="Start it first.")
        method, data = ("GET", None) if body is None else ("POST", msgspec.json.encode(body))
        head = {**headers, "Content-Type": "application/json"}
        try:
            async with self._session.request(method, url, data=data, headers=head) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BackendUnavailable(f"No answer from {url}: {type(error).__name__}.") from error
        if response.status != 200:
            text = raw[:300].decode("utf-8", "replace")
            raise UpstreamError(f"{url} answered {response.status}: {text}", upstream_status=response.status)
        try:
            return msgspec.json.decode(raw)
        except msgspec.DecodeError as error:
            raise BackendGarbage(f"{url} sent what is not JSON: {error}.") from error

    async def _open(self) -> None:
        # A connection each: the engine closes idle ones at a moment when the next request may be on its way.
        connector = aiohttp.TCPConnector(force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class EngineModel(_Served):
    """A GGUF file in the embedded engine's server: a grammar leaves it no choice but the given tokens, and it tells
    what it would have thought of them without. One generation a continuation: slow, and independent of the engine's
    inner structures. Raises ModelFileError when the weights cannot be loaded."""

    def __init__(self, weights: Path, *, window: int = 4096, threads: int = 1) -> None:
        super().__init__()
        self.name = f"{weights.stem} (engine)"
        self.window = window
        self.begin: list[int] = []
        self._weights = weights
        self._engine = Engine(
            weights=weights, context=window, slots=1, threads=threads, batch_threads=threads, adapters=()
        )

    @property
    def shape(self) -> ModelShape:
        return gguf_shape(self._weights)

    async def start(self) -> None:
        await self._engine.start()
        await self._open()
        with_begin = await self._post("/tokenize", {"content": "a", "add_special": True})
        self._plain = await self.tokenize("a", special=False)
        self.begin = with_begin["tokens"][: -len(self._plain)]

    async def close(self) -> None:
        await super().close()
        await self._engine.close()

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        answer = await self._post("/tokenize", {"content": text, "add_special": False, "parse_special": special})
        tokens: list[int] = answer["tokens"]
        return tokens

    async def logprobs(self, context: Sequence[int], continuations: Sequence[Continuation]) -> list[float]:
        return [await self._forced([*context, *c.tokens[: c.given]], c.tokens[c.given :]) for c in continuations]

    async def _forced(self, prompt: list[int], tokens: Sequence[int]) -> float:
        """The summed log-probability of `tokens` after `prompt`. The engine keeps what it read for the next prompt."""
        told = await self._held(prompt, tokens, 1)
        if [token["id"] for token in told] == list(tokens):
            return float(sum(token["logprob"] for token in told))
        # It tells nothing of a token that ends inside a character, but of all alternatives to a plain one.
        return sum([await self._among(prompt + list(tokens[:i]), token) for i, token in enumerate(tokens)])

    async def _among(self, prompt: list[int], token: int) -> float:
        """The log-probability of one token after `prompt`, out of those of the whole vocabulary."""
        (told,) = await self._held(prompt, self._plain, _EVERY)
        logprob = next((each["logprob"] for each in told["top_logprobs"] if each["id"] == token), None)
        if logprob is None:
            raise BackendGarbage(f"The engine did not tell of token {token}.")
        return float(logprob)

    async def _held(self, prompt: list[int], tokens: Sequence[int], top: int) -> list[Any]:
        """What the engine tells of each token of an answer that is held to be `tokens`, with `top` alternatives."""
        body = {
            "prompt": prompt,
            "n_predict": len(tokens),
            "n_probs": top,
            "temperature": 0.0,
            "cache_prompt": True,
            "grammar": "%llguidance {}\nstart: " + " ".join(f"<[{token}]>" for token in tokens),
        }
        answer = await self._post("/completion", body)
        told: list[Any] = answer["completion_probabilities"]
        return told

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        await self._engine.ready()
        return await self._ask(self._engine.url + path, body, self._engine.headers)


class VllmModel(_Served):
    """A vLLM server: `prompt_logprobs` of /v1/completions, and /tokenize. Every continuation is a request of its own
    that reads the context again: vLLM keeps no prefix for a request that wants its prompt's log-probabilities."""

    def __init__(self, base_url: str, model: str, *, api_key: str = "", parallel: int = 8) -> None:
        super().__init__()
        self.name = f"{model} (vLLM)"
        self.window = 0
        self.shape: ModelShape | None = None
        self.begin: list[int] = []
        self._root = base_url.rstrip("/").removesuffix("/v1")
        self._model, self._parallel = model, asyncio.Semaphore(parallel)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def start(self) -> None:
        await self._open()
        answer = await self._post("/tokenize", {"model": self._model, "prompt": "a", "add_special_tokens": True})
        self.window = int(answer["max_model_len"])
        self.begin = answer["tokens"][: -len(await self.tokenize("a", special=False))]

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        # The server always reads control words; a document's are broken up, so that they stay text.
        prompt = text if special else text.replace("<|", "< |")
        body = {"model": self._model, "prompt": prompt, "add_special_tokens": False}
        tokens: list[int] = (await self._post("/tokenize", body))["tokens"]
        return tokens

    async def logprobs(self, context: Sequence[int], continuations: Sequence[Continuation]) -> list[float]:
        return await asyncio.gather(*(self._one([*context, *c.tokens], len(c.tokens) - c.given) for c in continuations))

    async def _one(self, prompt: list[int], scored: int) -> float:
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        async with self._parallel:
            answer = await self._post("/v1/completions", body)
        try:
            told = answer["choices"][0]["prompt_logprobs"][-scored:]
            return float(sum(t[str(i)]["logprob"] for t, i in zip(told, prompt[-scored:], strict=True)))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BackendGarbage(f"{self._root} sent no prompt_logprobs of the prompt's tokens.") from error

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return await self._ask(self._root + path, body, self._headers)


class TransformersModel:
    """A model of transformers, from a folder or a name that it knows; needs torch (`pip install 'smallfirst[learn]'`).

    On a GPU where there is one. Continuations are evaluated together behind a context that is read once.
    """

    begin: list[int]

    def __init__(self, folder: str, *, window: int = 4096) -> None:
        self.name = f"{Path(folder).name} (transformers)"
        self.window = window
        self.shape: ModelShape | None = None
        self.begin = []
        self._folder = folder
        self._model: Any = None

    async def start(self) -> None:
        """Raises ConfigError without torch and transformers, ModelFileError when the model cannot be loaded."""
        await asyncio.to_thread(self._load)

    async def close(self) -> None:
        self._model = None

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        made = self._tokenizer(text, add_special_tokens=False, split_special_tokens=not special)
        tokens: list[int] = made["input_ids"]
        return tokens

    async def logprobs(self, context: Sequence[int], continuations: Sequence[Continuation]) -> list[float]:
        return await asyncio.to_thread(self._score, list(context), continuations)

    def _load(self) -> None:
        torch, transformers = need("torch"), need("transformers")
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder)
            model = transformers.AutoModelForCausalLM.from_pretrained(self._folder, dtype="auto")
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and not Path(self._folder).is_dir():  # the library speaks of the internet
                raise ModelFileError(
                    f"There is no model {self._folder!r} on this machine.",
                    hint="Name a folder that `save_pretrained` wrote, or a model that transformers has fetched before.",
                ) from error
            raise ModelFileError(f"transformers cannot load {self._folder!r}: {error}.") from error
        self._torch = torch
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        config = model.config
        self.window = min(self.window, getattr(config, "max_position_embeddings", self.window))
        self.begin = self._tokenizer("")["input_ids"]
        heads = config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        looked_up = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
        self.shape = ModelShape(model.num_parameters() - looked_up, config.num_hidden_layers, width)

    def _score(self, context: list[int], continuations: Sequence[Continuation]) -> list[float]:
        results: list[float] = []
        with self._torch.inference_mode():
            for start in range(0, len(continuations), _BATCH):
                results += self._group(context, continuations[start : start + _BATCH])
        return results

    def _group(self, context: list[int], group: Sequence[Continuation]) -> list[float]:
        torch = self._torch
        device = self._model.device
        past = None
        if context:
            read = self._model(torch.tensor([context], device=device), use_cache=True, logits_to_keep=1)
            past = read.past_key_values
            past.batch_repeat_interleave(len(group))
        longest = max(len(c.tokens) for c in group)
        padded = torch.tensor([[*c.tokens, *[0] * (longest - len(c.tokens))] for c in group], device=device)
        # Padding stands behind, where a causal model does not see it from the tokens that count.
        logits = self._model(padded, past_key_values=past, use_cache=past is not None).logits
        logs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
        told = logs.gather(2, padded[:, 1:, None])[..., 0]
        return [float(told[i, c.given - 1 : len(c.tokens) - 1].double().sum()) for i, c in enumerate(group)]
