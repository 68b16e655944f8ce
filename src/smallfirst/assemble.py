"""The composition root: a `Config` becomes the live parts that answer calls, the same online and offline."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from smallfirst import models
from smallfirst.backends.anthropic import AnthropicBackend
from smallfirst.backends.fake import FakeBackend
from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend
from smallfirst.backends.openai import PRESETS, OpenAIBackend
from smallfirst.backends.toolprompt import constraint_schema
from smallfirst.cascade import Cascade
from smallfirst.compress import guard
from smallfirst.compress.base import Compressor, Lead
from smallfirst.compress.compressor import CompressorBackend, Settings
from smallfirst.compress.extract import Bm25, Extract
from smallfirst.compress.summary import Summary
from smallfirst.config import Config, ModelConfig, Policy, askable
from smallfirst.errors import ConfigError, ModelFileError
from smallfirst.prices import Price, PriceList
from smallfirst.registry import Version
from smallfirst.router import Candidate
from smallfirst.store import Keyring, Store, open_store
from smallfirst.types import Backend, Capabilities, Completion, Request, Stage, Usage, Verdict
from smallfirst.validators import Validator, task_validator, validate

DEFAULT_OUTPUT_TOKENS = 1024
"""What an answer is expected to have where the request does not limit it."""


class StagePricing:
    """What stages cost: embedded models by machine time, hosted ones by the price list or the configuration."""

    def __init__(self, config: Config) -> None:
        self._default_usd_per_hour = config.machine_usd_per_hour
        self._machine = dict[str, Price]()
        self._fixed = dict[str, Price]()
        self._list = PriceList()
        self._models = config.models
        self._pairs = dict[str, tuple[str, str]]()  # compressor: predictor and the model that it is asked for
        self._compressing = Price(machine_usd_per_hour=config.machine_usd_per_hour)
        for name, model in config.models.items():
            self.add(name, model)

    def add(self, name: str, model: ModelConfig) -> None:
        """Price the stage `name`, which asks `model`."""
        usd = self._default_usd_per_hour if model.machine_usd_per_hour is None else model.machine_usd_per_hour
        if model.backend == "llamacpp" or model.machine_usd_per_hour is not None:
            self._machine[name] = Price(machine_usd_per_hour=usd)
        if model.predictor:
            self._pairs[name] = (model.predictor, self._models[model.predictor].model)
        if model.price:
            self._fixed[name] = Price(**msgspec.structs.asdict(model.price))

    def cost(self, stage: Stage, usage: Usage) -> tuple[float | None, float | None]:
        """(local machine time priced, local free), in USD; None where the price is unknown."""
        if stage.name in self._pairs:
            return self._cost_of_pair(stage, usage)
        if (machine := self._machine.get(stage.name)) is not None:
            return machine.cost(usage), 0.0
        fixed = self._fixed.get(stage.name)
        usd = fixed.cost(usage) if fixed else self._list.cost(stage.model, None, usage)
        return usd, usd

    def expected(self, stage: Stage, request: Request) -> float | None:
        """The most that a call costs, in USD: a token for each byte sent, at the dearer of the prices of fresh and of
        cache-written input, and an answer as long as allowed.

        A bound for text with `max_tokens`, since no token of a byte-level vocabulary is less than a byte. An estimate
        where the request leaves the answer's length open, and where it names content that is kept elsewhere.
        """
        if self._pairs.get(stage.name, (stage.name,))[0] in self._machine:
            return 0.0
        sent = len(msgspec.json.encode(request.body))
        wanted = (request.sampling.max_tokens or DEFAULT_OUTPUT_TOKENS) * request.sampling.n
        fresh, _ = self.cost(stage, Usage(sent, wanted))
        written, _ = self.cost(stage, Usage(sent, wanted, cache_write_tokens=sent))
        return None if fresh is None or written is None else max(fresh, written)

    def _cost_of_pair(self, stage: Stage, usage: Usage) -> tuple[float | None, float | None]:
        """The predictor's cost, and the compressor's machine time where that is not in it."""
        predictor, model = self._pairs[stage.name]
        asked = model if stage.model == stage.name else stage.model
        priced, free = self.cost(replace(stage, name=predictor, model=asked), usage)
        own = self._compressing.cost(usage) or 0.0
        return (priced if priced is None or predictor in self._machine else priced + own), free

    def cached_share(self, stage: Stage) -> float:
        """What a cached input token costs, as a share of a fresh one's price; 1 where that is not known."""
        fresh, _ = self.cost(stage, Usage(1_000_000))
        cached, _ = self.cost(stage, Usage(1_000_000, cached_input_tokens=1_000_000))
        return cached / fresh if fresh and cached is not None else 1.0

    def known(self, model: str) -> bool:
        """Whether the price list knows a model of this name."""
        return self._list.cost(model, None, Usage()) is not None


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts, started: `candidates` by model name, `cascades` by task ("" for all others)."""

    config: Config
    candidates: Mapping[str, Candidate]
    cascades: Mapping[str, Cascade]
    pricing: StagePricing
    store: Store
    versions: Versions


class Versions:
    """Brings released versions into service, and out of it, while calls go on.

    Embedded ones share the engine of the configured model with the same weights, or else one of their own; so an
    adapter is loaded beside those that answer. Compressors stand before a configured model. Each comes as a `Candidate`
    whose stage has the version's id.
    """

    def __init__(
        self, config: Config, env: Mapping[str, str], candidates: Mapping[str, Candidate], pricing: StagePricing
    ) -> None:
        self._config, self._env, self._candidates, self._pricing = config, env, candidates, pricing
        self._engines = dict[Path, tuple[ModelConfig, LlamaCppBackend]]()
        for name, candidate in candidates.items():
            if isinstance(backend := candidate.stage.backend, LlamaCppBackend):
                model = config.models[name]
                self._engines.setdefault(models.locate(model.weights).resolve(), (model, backend))
        self._own = dict[Path, LlamaCppBackend]()
        self._loaded = dict[str, tuple[Version, Candidate]]()
        self._lock = asyncio.Lock()

    async def load(self, version: Version) -> Candidate:
        """The candidate that asks `version`, ready to answer.

        Raises ModelFileError when files are missing, are not what was registered, or cannot be served, ConfigError for
        a key or a model that is not there. What is in service goes on in any case.
        """
        async with self._lock:
            if version.id not in self._loaded:
                self._loaded[version.id] = (version, await self._load(version))
            return self._loaded[version.id][1]

    async def retain(self, ids: Collection[str]) -> None:
        """Let go of all other versions; engines and connections that then have none are closed."""
        async with self._lock:
            for name in self._loaded.keys() - set(ids):
                backend = self._loaded.pop(name)[1].stage.backend
                if not isinstance(backend, LlamaCppBackend):
                    await backend.close()
            used = [candidate.stage.backend for _, candidate in self._loaded.values()]
            for weights in [weights for weights, engine in self._own.items() if engine not in used]:
                del self._engines[weights]
                await self._own.pop(weights).close()

    async def close(self) -> None:
        """Let go of them all."""
        await self.retain(())

    async def _load(self, version: Version) -> Candidate:
        model = msgspec.convert(version.model, ModelConfig)
        if model.backend == "compressor":
            return await self._paired(version, model)
        if model.backend != "llamacpp":
            backend = build_backend(version.id, model, self._env)
            await backend.start()
            self._pricing.add(version.id, model)
            return Candidate(Stage(version.id, backend, model.model, small=True, timeout_s=model.timeout_s))
        await asyncio.to_thread(_check_files, version)
        model, engine = await self._engine(version, model)
        if version.adapter:
            beside = [v for v, c in self._loaded.values() if c.stage.backend is engine and v.adapter]
            await engine.load({v.id: Path(v.adapter) for v in (*beside, version)})
        self._pricing.add(version.id, model)
        adapter = version.id if version.adapter else None
        return Candidate(Stage(version.id, engine, version.id, small=True, adapter=adapter, timeout_s=model.timeout_s))

    async def _paired(self, version: Version, model: ModelConfig) -> Candidate:
        able = askable(self._config.models)
        if missing := [name for name in model.asks if name not in able]:
            hint = f"Configured are: {', '.join(able)}. Add the table, or roll the version back."
            raise ConfigError(f"{version.id} asks the models {missing!r}, which are not configured here.", hint=hint)
        await asyncio.to_thread(_check_files, version)
        self._pricing.add(version.id, model)
        return _pair(version.id, replace(model, guard=version.adapter), self._candidates, self._pricing)

    async def _engine(self, version: Version, model: ModelConfig) -> tuple[ModelConfig, LlamaCppBackend]:
        weights = _weights(version)
        if weights not in self._engines:
            engine = _llamacpp(version.base, model, self._env)
            await engine.start()
            self._own[weights] = engine
            self._engines[weights] = (model, engine)
        return self._engines[weights]


def _weights(version: Version) -> Path:
    return models.locate(version.base).resolve()


def _check_files(version: Version) -> None:
    """Raises ModelFileError where a version's files are not those that were registered."""
    files = dict[Path, str]()
    if version.base_sha256:
        files[_weights(version)] = version.base_sha256
    if version.adapter:
        files[Path(version.adapter)] = version.adapter_sha256
    for path, sha256 in files.items():
        if (found := models.file_sha256(path)) != sha256:
            raise ModelFileError(
                f"{path} has sha256 {found}, not {sha256} as when {version.id} was registered.",
                hint="Put the file back, or train and release again.",
            )


@asynccontextmanager
async def assemble(config: Config, env: Mapping[str, str] | None = None) -> AsyncIterator[Assembly]:
    """Start the store and every configured backend; close them in reverse order.

    Raises ConfigError for settings that cannot work, ModelFileError for weights, StoreError for the database.
    """
    env = os.environ if env is None else env
    async with AsyncExitStack() as stack:
        store = await open_configured_store(config, env)
        stack.push_async_callback(store.close)
        pricing = StagePricing(config)
        candidates = await stack.enter_async_context(started(config, env, pricing))
        policies = {"": config.cascade, **config.tasks}
        cascades = {task: _cascade(policy, pricing) for task, policy in policies.items()}
        versions = Versions(config, env, candidates, pricing)
        stack.push_async_callback(versions.close)
        yield Assembly(config, candidates, cascades, pricing, store, versions)


@asynccontextmanager
async def started(config: Config, env: Mapping[str, str], pricing: StagePricing) -> AsyncIterator[dict[str, Candidate]]:
    """Start every configured backend, and close them in reverse order. Errors as `assemble`, but for the store's."""
    async with AsyncExitStack() as stack:
        candidates = {}
        for name, model in config.models.items():
            if model.backend != "compressor":
                backend = build_backend(name, model, env)
                await backend.start()
                stack.push_async_callback(backend.close)
                candidates[name] = _candidate(name, model, backend)
        yield _with_pairs(config, candidates, pricing)


async def open_configured_store(config: Config, env: Mapping[str, str]) -> Store:
    """The store that `config` names, with the encryption keys that `env` holds."""
    secret = env.get(config.store.encryption_key_env, "")
    keyring = Keyring.parse(secret) if secret else None
    return await open_store(config.store.url, keyring=keyring, durability=config.store.durability)


def build_backend(name: str, model: ModelConfig, env: Mapping[str, str]) -> Backend:
    """The backend of one `[models.NAME]` table, not started."""
    return _BUILDERS[model.backend](name, model, env)


def _llamacpp(name: str, model: ModelConfig, env: Mapping[str, str]) -> LlamaCppBackend:
    del env
    adapters = {n: Path(p).expanduser() for n, p in model.adapters.items()}
    settings = EngineConfig(weights=models.locate(model.weights), name=name, adapters=adapters)
    given = {field: getattr(model, field) for field in ("context", "slots", "threads", "batch_threads")}
    return LlamaCppBackend(dataclasses.replace(settings, **{k: v for k, v in given.items() if v}))


def _openai(name: str, model: ModelConfig, env: Mapping[str, str]) -> Backend:
    preset = model.preset or ("openai" if not model.base_url else "compatible")
    if preset not in PRESETS:
        raise ConfigError(f"models.{name}.preset is {preset!r}.", hint=f"Allowed: {', '.join(PRESETS)}.")
    return OpenAIBackend(
        name=name,
        base_url=model.base_url or "https://api.openai.com/v1",
        api_key=_api_key(name, model, env),
        capabilities=_capabilities(PRESETS[preset], model),
        max_retries=model.max_retries,
    )


def _anthropic(name: str, model: ModelConfig, env: Mapping[str, str]) -> Backend:
    return AnthropicBackend(
        name=name,
        base_url=model.base_url or "https://api.anthropic.com",
        api_key=_api_key(name, model, env),
        max_retries=model.max_retries,
    )


def _fake(name: str, model: ModelConfig, env: Mapping[str, str]) -> Backend:
    del env, model
    return FakeBackend(name)


_BUILDERS = {"llamacpp": _llamacpp, "openai": _openai, "anthropic": _anthropic, "fake": _fake}


def _api_key(name: str, model: ModelConfig, env: Mapping[str, str]) -> str:
    if not model.api_key_env:
        return ""
    if not (key := env.get(model.api_key_env)):
        raise ConfigError(
            f"models.{name}.api_key_env names {model.api_key_env!r}, which is not set.",
            hint=f"export {model.api_key_env}=..., or remove the model.",
        )
    return key


def _capabilities(preset: Capabilities, model: ModelConfig) -> Capabilities:
    return replace(preset, modalities=frozenset(model.modalities)) if model.modalities else preset


def _candidate(name: str, model: ModelConfig, backend: Backend) -> Candidate:
    asked = model.model
    if not asked and model.backend in {"llamacpp", "fake"}:  # clients see this name, and no path of this machine
        asked = model.weights if model.weights in models.CATALOGUE else Path(model.weights).stem or name
    stage = Stage(
        name,
        backend,
        asked,
        small=model.is_small,
        adapter=model.adapter or None,
        timeout_s=model.timeout_s,
    )
    return Candidate(stage, model.models)


def _with_pairs(config: Config, candidates: Mapping[str, Candidate], pricing: StagePricing) -> dict[str, Candidate]:
    """All models in the order of the configuration, compressors before their predictors among them."""
    pairs = {n: _pair(n, m, candidates, pricing) for n, m in config.models.items() if m.backend == "compressor"}
    return {name: pairs[name] if name in pairs else candidates[name] for name in config.models}


def _pair(name: str, model: ModelConfig, candidates: Mapping[str, Candidate], pricing: StagePricing) -> Candidate:
    predictor = candidates[model.predictor].stage
    settings = Settings(model.keep, model.budget, model.least, pricing.cached_share(predictor))
    checked = guard.load(Path(model.guard).expanduser(), model.coverage) if model.guard else guard.Guard(model.coverage)
    can = predictor.backend.capabilities
    backend = CompressorBackend(
        name,
        predictor.backend,
        _compressor(model, candidates),
        settings,
        checked,
        model=predictor.model,
        capabilities=can if predictor.small else replace(can, top_logprobs=0),  # many refuse to give them
    )
    stage = replace(predictor, name=name, backend=backend, model=name, small=model.is_small, timeout_s=model.timeout_s)
    return Candidate(stage, model.models)


def _compressor(model: ModelConfig, candidates: Mapping[str, Candidate]) -> Compressor:
    if model.mode == "summary":
        asked = candidates[model.compressor].stage
        return Summary(asked.backend, asked.model, sentences=model.sentences, timeout_s=asked.timeout_s)
    return _SELECTING[model.mode]


_SELECTING: Mapping[str, Compressor] = {"extract": Extract(), "bm25": Bm25(), "lead": Lead()}


def _cascade(policy: Policy, pricing: StagePricing) -> Cascade:
    """A cascade that checks answers as `policy` says."""
    extra = tuple(task_validator(_spec(v)) for v in policy.validators)
    return Cascade(partial(_check, extra), constraint_schema, pricing, time.monotonic)


def _check(extra: tuple[Validator, ...], request: Request, completion: Completion) -> Verdict:
    return validate(completion, request, extra)


def _spec(validator: msgspec.Struct) -> dict[str, str]:
    """A validator's table without the keys that were not given."""
    return {k: v for k, v in msgspec.structs.asdict(validator).items() if v}
