"""smallfirst.toml -> frozen `Config`. Unknown keys and wrong types are refused with the place they stand at.

Secrets are never in the file: a model names the environment variable that holds its key (`api_key_env`), the store
names the one that holds its encryption keys. `Config.hash` goes on every record, so that a record can be read against
the settings that made it.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from smallfirst.errors import ConfigError, unreadable
from smallfirst.types import ConstraintMode, Mode

DEFAULT_FILE = Path("smallfirst.toml")

Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Duration = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the gateway listens and what it takes from a client. Sizes in MiB, times in seconds."""

    host: str = "127.0.0.1"
    port: int = 8787
    max_body_mb: Amount = 20
    body_timeout_s: Duration = 30
    write_timeout_s: Duration = 30
    max_concurrent: Count = 512


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where records go. `durability` "process" survives a killed process, "power" a power cut as well (an fsync for
    each group of records). `retention_days` 0 keeps everything."""

    url: str = "sqlite:///smallfirst.db"
    durability: Literal["process", "power"] = "process"
    encryption_key_env: str = "SMALLFIRST_ENCRYPTION_KEY"
    retention_days: Amount = 0


class PriceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """USD per million tokens, for a model that the price list does not know or prices otherwise."""

    input: Amount
    output: Amount
    cached_input: Amount | None = None
    cache_write: Amount | None = None


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model and the backend that runs it; which keys apply depends on `backend`.

    `model` is the name asked of a server; `models` are patterns (`gpt-*`) of names that clients may use and that are
    handed on as they are. For the embedded engine, `weights` is a name of `smallfirst models list` or a path of a GGUF
    file. 0 for threads and slots means: choose by the machine.

    A compressor shortens long texts, then asks `predictor`. Texts of at least `least` tokens are shortened, those that
    came together to the share `keep` of them and at most `budget` tokens (0: any); by `mode`, of which "summary" asks
    the model `compressor` for notes (of at most so many `sentences` on a chunk; 0: any). Where less than `coverage` of
    the question's words would be kept, twice as much is kept, and where that is too little, or `guard`, a file of
    `smallfirst guard`, advises against it, all is sent.
    """

    backend: Literal["llamacpp", "openai", "anthropic", "fake", "compressor"]
    model: str = ""
    models: tuple[str, ...] = ()
    # a server
    base_url: str = ""
    api_key_env: str = ""
    preset: str = ""
    modalities: tuple[Literal["text", "image", "audio", "file"], ...] = ()
    max_retries: Count = 2
    price: PriceConfig | None = None
    # the embedded engine
    weights: str = ""
    adapters: Mapping[str, str] = {}
    adapter: str = ""
    threads: Count = 0
    batch_threads: Count = 0
    slots: Count = 0
    context: Count = 0
    machine_usd_per_hour: Amount | None = None
    # a compressor before another model (docs/compression.md)
    predictor: str = ""
    mode: Literal["extract", "bm25", "lead", "summary"] = "extract"
    compressor: str = ""
    keep: Annotated[float, Meta(gt=0, le=1)] = 0.2
    budget: Count = 0
    sentences: Count = 0
    least: Annotated[int, Meta(ge=1)] = 400
    coverage: Share = 0.8
    guard: str = ""
    # all; `small` by default: is it embedded, or a compressor?
    small: bool | None = None
    timeout_s: Duration = 120

    @property
    def is_small(self) -> bool:
        """Whether its answers are checked and escalated, or final."""
        return self.backend in {"llamacpp", "compressor"} if self.small is None else self.small

    @property
    def asks(self) -> tuple[str, ...]:
        """The other models that it asks: a compressor's predictor, and its model for notes."""
        return tuple(filter(None, (self.predictor, self.compressor)))


class ValidatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A task's own check; see `validators.TASK_VALIDATORS` for kinds and what they take."""

    kind: str
    at: str = "text"
    pattern: str = ""
    dialect: str = ""
    function: str = ""


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Exact response cache of a task: only at temperature 0, or when the caller asks by `x-smallfirst-cache: use`."""

    ttl_s: Amount = 3600


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How calls are answered; `[cascade]` gives the default, a `[tasks.NAME]` table what differs for one task.

    stages: names of `[models.*]`, cheapest first; the last is the large model.
    mode: "observe" (large answers, small in shadow), "enforce" (small-first under the guarantee), "small_only".
    accept_uncalibrated: lets "enforce" accept a valid small answer before the task has a calibrator.
    others: names of `[models.*]` that are asked beside the small model: they agree with it or not, and where they do
    not and a calibration judges both, the surer answer is used;
    samples: so many more answers of the small model itself, at sample_temperature, for the same purpose.
    audit: the least share of accepted small answers that the large model answers too, after they were served (0: none,
    and nothing then tells when the promise is broken). adapt: accept more strictly while audits find too many wrong.
    explore: the share of calls that do not look worth a small attempt and get one all the same.
    """

    stages: tuple[str, ...] = ()
    mode: Mode = "enforce"
    constraint: ConstraintMode = "constrained"
    repairs: int = 1
    accept_uncalibrated: bool = False
    others: tuple[str, ...] = ()
    samples: Count = 0
    sample_temperature: Amount = 0.7
    audit: Share = 0.02
    adapt: bool = True
    explore: Share = 0.02
    shadow: bool = True
    capture: bool = True
    validators: tuple[ValidatorConfig, ...] = ()
    cache: CacheConfig | None = None
    max_usd: Amount | None = None
    max_seconds: Duration | None = None


class Match(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which calls belong to a task when the caller does not say: all given conditions must hold.

    tools: exactly these tool names. system: this text stands in a system message. fingerprint: as in `records list`.
    """

    tools: tuple[str, ...] = ()
    system: str = ""
    fingerprint: str = ""


class Telemetry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`otlp_endpoint`: where OpenTelemetry GenAI spans go (empty: nowhere). Spans never carry message text."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    otlp_endpoint: str = ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that shapes behaviour, resolved: `tasks` are complete policies."""

    server: Server = Server()
    store: StoreConfig = StoreConfig()
    models: Mapping[str, ModelConfig] = {}
    cascade: Policy = Policy()
    tasks: Mapping[str, Policy] = {}
    matches: Mapping[str, Match] = {}
    telemetry: Telemetry = Telemetry()
    machine_usd_per_hour: Amount = 0.10

    @property
    def hash(self) -> str:
        """First 12 hex digits of the SHA-256 of the settings, in a fixed order."""
        text = msgspec.json.encode(self, order="deterministic")
        return hashlib.sha256(text).hexdigest()[:12]

    def policy(self, task: str) -> Policy:
        """The policy of `task`: its own, or the default."""
        return self.tasks.get(task, self.cascade)


def load(path: Path | None, env: Mapping[str, str]) -> Config:
    """Read `path` (None: `smallfirst.toml` here if there is one) and complete it from `env`.

    Raises ConfigError for a missing or unreadable file, bad TOML, unknown keys, wrong types or names that do not exist.
    """
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    if path is None:
        return parse("", env, source="the defaults")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(unreadable(path, err), hint="`smallfirst init` writes one.") from None
    return parse(text, env, source=str(path))


def parse(text: str, env: Mapping[str, str], *, source: str = "smallfirst.toml") -> Config:
    """`load` for a text already read; `source` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{source} is not valid TOML: {err}.") from None
    table = _with_tasks(table, source)
    try:
        config = msgspec.convert(table, Config)
    except msgspec.ValidationError as err:
        hint = "`smallfirst init --print` shows every key."
        raise ConfigError(f"{source}: {err}.", hint=hint) from None
    config = _with_models(config, env)
    _check(config, source)
    return config


def _with_tasks(table: dict[str, Any], source: str) -> dict[str, Any]:
    """Each `[tasks.NAME]` table laid over `[cascade]`, with its `match` taken out."""
    tasks, default = table.get("tasks", {}), table.get("cascade", {})
    if not isinstance(tasks, dict) or not all(isinstance(t, dict) for t in tasks.values()):
        raise ConfigError(f"{source}: `tasks` is not a table of tables.", hint="Write [tasks.NAME] sections.")
    if "matches" in table:
        raise ConfigError(f"{source}: unknown key `matches`.", hint="Write `match = {...}` inside [tasks.NAME].")
    merged = {name: {**default, **{k: v for k, v in task.items() if k != "match"}} for name, task in tasks.items()}
    matches = {name: task["match"] for name, task in tasks.items() if "match" in task}
    return {**table, "tasks": merged, "matches": matches}


class Provider(NamedTuple):
    """A provider whose key in the environment is all that it needs: the variables of its key and base URL, the names
    that are handed on to it, and the model that answers `auto`."""

    key_env: str
    base_url_env: str
    models: tuple[str, ...]
    auto: str


HOSTED: Mapping[Literal["openai", "anthropic"], Provider] = {
    "openai": Provider(
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        ("gpt-*", "chatgpt-*", "o1*", "o3*", "o4*", "ft:*"),
        auto="gpt-5.4-mini",  # its successors refuse function tools on chat completions unless told not to reason
    ),
    "anthropic": Provider("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", ("claude-*",), auto="claude-sonnet-5-5"),
}


def _with_models(config: Config, env: Mapping[str, str]) -> Config:
    """The embedded small model, and a large one for each provider whose key is in `env`, where the file names none."""
    models = dict(config.models)
    if not models:
        models["small"] = ModelConfig(backend="llamacpp", weights="smollm2-135m")
        for name, provider in HOSTED.items():
            if env.get(provider.key_env):
                elsewhere = env.get(provider.base_url_env, "")  # a server whose models are not known here
                models[name] = ModelConfig(
                    backend=name,
                    api_key_env=provider.key_env,
                    base_url=elsewhere,
                    model="" if elsewhere else provider.auto,
                    models=("*",) if elsewhere else provider.models,
                )
    default = config.cascade if config.cascade.stages else msgspec.structs.replace(config.cascade, stages=tuple(models))
    tasks = {
        name: task if task.stages else msgspec.structs.replace(task, stages=default.stages)
        for name, task in config.tasks.items()
    }
    return msgspec.structs.replace(config, models=models, cascade=default, tasks=tasks)


def _check(config: Config, source: str) -> None:
    """Names that must exist, numbers that must make sense, files that belong together."""
    for where, policy in [("cascade", config.cascade), *((f"tasks.{n}", p) for n, p in config.tasks.items())]:
        if unknown := [s for s in policy.stages if s not in config.models]:
            allowed = ", ".join(config.models)
            raise ConfigError(f"{source}: {where}.stages names {unknown!r}.", hint=f"Defined models: {allowed}.")
        if len(set(policy.stages)) != len(policy.stages):
            raise ConfigError(f"{source}: {where}.stages names a model twice: {list(policy.stages)!r}.")
        if unknown := [s for s in policy.others if s not in config.models]:
            allowed = ", ".join(config.models)
            raise ConfigError(f"{source}: {where}.others names {unknown!r}.", hint=f"Defined models: {allowed}.")
        if not 0 <= policy.repairs <= 5:
            raise ConfigError(f"{source}: {where}.repairs is {policy.repairs}; allowed are 0 to 5.")
    for name, model in config.models.items():
        if "~" in name:
            raise ConfigError(
                f"{source}: models.{name} has a '~' in its name.", hint="Samples of a model are named so."
            )
        _check_model(f"{source}: models.{name}", model)
        _check_pair(f"{source}: models.{name}", model, config.models)
    if not 0 <= config.server.port <= 65535:
        raise ConfigError(f"{source}: server.port is {config.server.port}; allowed are 0 to 65535.")


def askable(models: Mapping[str, ModelConfig]) -> list[str]:
    """The models that a compressor may ask: those that shorten nothing themselves."""
    return [name for name, model in models.items() if model.backend != "compressor"]


def _check_pair(where: str, model: ModelConfig, models: Mapping[str, ModelConfig]) -> None:
    """The models that a compressor asks: they exist, and shorten nothing themselves."""
    if model.backend != "compressor":
        return
    asked = {"predictor": model.predictor}
    if model.mode == "summary":
        asked["compressor"] = model.compressor
    elif model.compressor or model.sentences:
        hint = 'Write mode = "summary", or leave `compressor` and `sentences` out.'
        raise ConfigError(f"{where} has mode {model.mode!r}, which asks no model for notes.", hint=hint)
    allowed = askable(models)
    for key, name in asked.items():
        if name not in allowed:
            known = f"Allowed is one of: {', '.join(allowed)}." if allowed else "Add a table of another model."
            raise ConfigError(f"{where}.{key} is {name!r}.", hint=known)


def _check_model(where: str, model: ModelConfig) -> None:
    if model.backend == "llamacpp" and not model.weights:
        raise ConfigError(f"{where} has no `weights`.", hint="Give a name of `smallfirst models list` or a GGUF path.")
    if model.adapter and model.backend == "llamacpp" and model.adapter not in model.adapters:
        raise ConfigError(f"{where}.adapter is {model.adapter!r}.", hint=f"Listed adapters: {list(model.adapters)}.")
    if model.backend in {"openai", "anthropic"} and not (model.model or model.models):
        hint = 'Give `model = "..."` (asked of the server) or `models = ["*"]` (names that clients use, handed on).'
        raise ConfigError(f"{where} names no model.", hint=hint)
