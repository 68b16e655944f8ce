"""What runs in this process, as only the gateway itself can tell: models, queues, versions."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from smallfirst import __version__
from smallfirst.serve.gateway import Gateway
from smallfirst.types import Capabilities

_LIBRARIES = ("xllamacpp", "starlette", "uvicorn", "vl-convert-python")


@dataclass(frozen=True, slots=True)
class Model:
    """A configured model; `able` says in words what its backend can do."""

    name: str
    backend: str
    model: str
    small: bool
    able: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """`running` calls of `places` that there are; `waiting` shadows and audits."""

    models: tuple[Model, ...]
    running: int
    places: int
    waiting: int
    versions: tuple[tuple[str, str], ...]


def machine(gateway: Gateway) -> Machine:
    """The gateway's state now."""
    models = tuple(
        Model(
            name,
            gateway.config.models[name].backend,
            candidate.stage.model or ", ".join(candidate.patterns),
            candidate.stage.small,
            _able(candidate.stage.backend.capabilities),
        )
        for name, candidate in gateway.candidates.items()
    )
    places = gateway.config.server.max_concurrent
    return Machine(models, gateway.admission.running, places, gateway.shadows.waiting, _versions())


def _able(capabilities: Capabilities) -> tuple[str, ...]:
    found = {
        "tools": capabilities.tools,
        "constrained decoding": capabilities.constraint,
        f"log-probabilities (top {capabilities.top_logprobs})": capabilities.top_logprobs > 0,
        "embeddings": capabilities.embeddings,
    }
    return (*sorted(capabilities.modalities), *(name for name, is_so in found.items() if is_so))


def _versions() -> tuple[tuple[str, str], ...]:
    found = [("smallfirst", __version__), ("Python", platform.python_version()), ("System", platform.platform())]
    for name in _LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return tuple(found)
