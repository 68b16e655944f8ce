"""Small models that could answer a task: those on this machine, and those that the configured servers list.

`models.CATALOGUE` and configuration say what is known of them before they are asked; memory is measured while they run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from smallfirst import models
from smallfirst.assemble import Assembly, assemble
from smallfirst.backends.llamacpp import EngineConfig, LlamaCppBackend
from smallfirst.config import Config, ModelConfig
from smallfirst.errors import BackendUnavailable, ConfigError
from smallfirst.types import Stage

_TIMEOUT_S = 5.0
_CONTEXT = EngineConfig(Path()).context


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model: where it runs, its licence ("" if that is not told), tokens that it reads at once."""

    source: str
    licence: str = ""
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may be selected. `start` runs it in an assembly whose only candidate has the same name."""

    name: str
    facts: Facts
    model: ModelConfig
    start: Callable[[], AbstractAsyncContextManager[Assembly]]


def on_disk(config: Config, env: Mapping[str, str]) -> list[Candidate]:
    """The catalogue's models that are on this machine."""
    return [named(found.name, config, env) for found in models.installed()]


def named(name: str, config: Config, env: Mapping[str, str]) -> Candidate:
    """The model of a `[models.NAME]` table, of the catalogue, or in a GGUF file at that path."""
    model = config.models.get(name) or ModelConfig(backend="llamacpp", weights=name, slots=1)
    if model.backend != "llamacpp":
        return _candidate(name, Facts(model.base_url or model.backend), model, config, env)
    known = models.CATALOGUE.get(model.weights)
    licence = known.licence if known else ""
    return _candidate(name, Facts("this machine", licence, model.context or _CONTEXT), model, config, env)


async def listed(config: Config, env: Mapping[str, str]) -> tuple[list[Candidate], dict[str, str]]:
    """The models that servers list which are configured as small (OpenAI's GET /v1/models), as "SERVER/MODEL"; and by
    name the servers that did not answer, with why."""
    found, silent = list[Candidate](), dict[str, str]()
    for server, model in config.models.items():
        if model.backend != "openai" or not model.is_small or not model.base_url:
            continue
        try:
            listing = await _list(model, env)
        except BackendUnavailable as error:
            silent[server] = error.message
            continue
        for one in listing:
            facts = Facts(server, context=one.max_model_len or one.meta.n_ctx_train)
            asked = msgspec.structs.replace(model, model=one.id, models=())
            found.append(_candidate(f"{server}/{one.id}", facts, asked, config, env))
    return found, silent


def identity(model: ModelConfig) -> dict[str, Any]:
    """What tells a model from others: how it is configured, and the size and time of its weights' file."""
    made: dict[str, Any] = msgspec.to_builtins(model)
    if model.backend == "llamacpp":
        stat = models.locate(model.weights).stat()
        made["file"] = (stat.st_size, stat.st_mtime_ns)
    return made


def memory_bytes(stage: Stage) -> int | None:
    """The most memory that the stage's engine has taken so far (peak resident set); None where that is not told."""
    pid = stage.backend.engine.pid if isinstance(stage.backend, LlamaCppBackend) else None
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if peak is None else 1024 * int(peak)


def chosen(
    names: Sequence[str], candidates: Sequence[Candidate], config: Config, env: Mapping[str, str]
) -> list[Candidate]:
    """Those of the names: listed ones, else tables, catalogue entries or files. Raises ConfigError for a server's."""
    known = {candidate.name: candidate for candidate in candidates}
    large = [name for name in names if name in config.models and not config.models[name].is_small]
    if large:
        raise ConfigError(f"{', '.join(large)} is configured as large.", hint="Set small = true, or leave it out.")
    return [known.get(name) or named(name, config, env) for name in names]


class _Meta(msgspec.Struct):
    n_ctx_train: int | None = None


class _Listed(msgspec.Struct):
    """An entry of /v1/models, with the fields in which servers tell the context (vLLM, llama-server)."""

    id: str
    max_model_len: int | None = None
    meta: _Meta = msgspec.field(default_factory=_Meta)


class _Listing(msgspec.Struct):
    data: list[_Listed] = []


async def _list(model: ModelConfig, env: Mapping[str, str]) -> list[_Listed]:
    key = env.get(model.api_key_env, "")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{model.base_url.rstrip('/')}/models"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S), headers=headers) as http,
            http.get(url, raise_for_status=True) as answer,
        ):
            return msgspec.json.decode(await answer.read(), type=_Listing).data
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, OSError) as error:
        raise BackendUnavailable(f"{url} does not list its models ({type(error).__name__}).") from error


def _candidate(name: str, facts: Facts, model: ModelConfig, config: Config, env: Mapping[str, str]) -> Candidate:
    alone = msgspec.structs.replace(model, small=True)
    start = partial(assemble, msgspec.structs.replace(config, models={name: alone}), env)
    return Candidate(name, facts, alone, start)
