"""The policy file of `smallfirst whatif`: what another policy does otherwise than the recorded one, by task."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from smallfirst.config import Amount, Count, Duration, Share
from smallfirst.errors import ConfigError, unreadable
from smallfirst.types import ConstraintMode, Mode

Risk = Annotated[float, Meta(gt=0, lt=1)]


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of a policy that records can judge; None means: as recorded.

    A small answer is accepted when it is valid and its confidence is at least `threshold` (0 accepts every valid one).
    `alpha` asks for the threshold that would be certified for it, with `delta`. `stages` are the names of recorded
    stages, cheapest first, the last one the large model. Money in USD, time in seconds, each for one call.
    """

    stages: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    mode: Mode | None = None
    constraint: ConstraintMode | None = None
    repairs: Count | None = None
    threshold: Share | None = None
    alpha: Risk | None = None
    delta: Risk = 0.05
    max_usd: Amount | None = None
    max_seconds: Duration | None = None

    @property
    def changes(self) -> Mapping[str, Any]:
        """What is given, by key."""
        return {key: value for key, value in msgspec.structs.asdict(self).items() if value is not None}


AS_RECORDED = Target()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cascade: Target = AS_RECORDED
    tasks: Mapping[str, Target] = {}


class Targets(msgspec.Struct, frozen=True):
    """A target for every task: its own, or the default."""

    default: Target = AS_RECORDED
    tasks: Mapping[str, Target] = {}

    def of(self, task: str) -> Target:
        return self.tasks.get(task, self.default)


def load(path: Path) -> Targets:
    """Read a TOML file with `[cascade]` for all tasks and `[tasks.NAME]` for what one of them does otherwise.

    Raises ConfigError for a file that cannot be read, bad TOML, unknown keys, wrong values, and a file without changes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(unreadable(path, err), hint="Give a TOML file with a policy.") from None
    return parse(text, source=str(path))


def parse(text: str, *, source: str) -> Targets:
    """`load` for a text already read; `source` names it in errors."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{source} is not valid TOML: {err}.") from None
    tasks, default = table.get("tasks", {}), table.get("cascade", {})
    if isinstance(tasks, dict) and isinstance(default, dict):
        laid = {name: _laid_over(default, one) if isinstance(one, dict) else one for name, one in tasks.items()}
        table = {**table, "tasks": laid} if laid else table
    try:
        file = msgspec.convert(table, _File)
    except msgspec.ValidationError as err:
        known = ", ".join(Target.__struct_fields__)
        hint = f"[cascade] and [tasks.NAME] take {known}. Of other keys, records cannot tell what they would change."
        raise ConfigError(f"{source}: {err}.", hint=hint) from None
    for where, target in [("cascade", file.cascade), *((f"tasks.{name}", one) for name, one in file.tasks.items())]:
        _check(f"{source}: {where}", target)
    if not any(target != AS_RECORDED for target in (file.cascade, *file.tasks.values())):
        raise ConfigError(f"{source} changes nothing.", hint="Write, for instance, [cascade] and threshold = 0.9.")
    return Targets(file.cascade, file.tasks)


def _laid_over(default: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    """The task's keys over the default's; how answers are accepted is one setting, so one way replaces the other."""
    replaced = {"threshold": "alpha", "alpha": "threshold"}
    dropped = {replaced[key] for key in task if key in replaced}
    return {**{key: value for key, value in default.items() if key not in dropped}, **task}


def _check(where: str, target: Target) -> None:
    if target.threshold is not None and target.alpha is not None:
        raise ConfigError(f"{where} has both `threshold` and `alpha`.", hint="Give one; alpha asks for a threshold.")
    if target.stages is not None and len(set(target.stages)) != len(target.stages):
        raise ConfigError(f"{where}.stages names a stage twice: {list(target.stages)!r}.")
