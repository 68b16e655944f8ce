"""Which task a call belongs to, which stages may answer it, and why. Pure: everything it needs is handed in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from smallfirst.acceptance import Costs
from smallfirst.config import Match, Policy
from smallfirst.errors import NotFoundError, UnsupportedError
from smallfirst.recurring import derived
from smallfirst.types import Calibrator, Request, Route, Stage, Tool

TASK_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
AUTO_NAMES = frozenset({"", "auto", "smallfirst"})


class Candidate(Struct, frozen=True):
    """A configured model as the router sees it: its stage, the name asked of it, and the client's names it hands on."""

    stage: Stage
    patterns: tuple[str, ...] = ()

    def named(self, model: str) -> bool:
        """Whether the client named exactly this model: by its name here, or by its server's where that is not handed on
        like any other of the server's names."""
        return model == self.stage.name or (model == self.stage.model and bool(model) and not self.hands_on(model))

    def hands_on(self, model: str) -> bool:
        """Whether the client's name is one that this model's server is asked for as it is."""
        return model not in AUTO_NAMES and any(fnmatchcase(model, pattern) for pattern in self.patterns)


def fingerprint(request: Request) -> str:
    """What recurring calls share: tools, response schema and system text; 12 hex digits of their SHA-256."""
    tools = derived(request.tools, _tools_json)
    system = [m.get("content") for m in request.messages if _is_system(m)]
    return hashlib.sha256(_encode((tools, request.response_format.schema, system))).hexdigest()[:12]


def _tools_json(tools: tuple[Tool, ...]) -> msgspec.Raw:
    return msgspec.Raw(_encode([(t.name, t.description, t.parameters) for t in tools]))


def identify(
    request: Request,
    matches: Mapping[str, Match],
    found: Callable[[Request, str], str | None] = lambda *_: None,
) -> str:
    """The call's task: the caller's own word, else the first configured match, else what `found` says of the call and
    its fingerprint, else `auto:<fingerprint>`."""
    if request.origin.task:
        return request.origin.task
    mark = fingerprint(request)
    for task, match in matches.items():
        if _holds(match, request, mark):
            return task
    return found(request, mark) or f"auto:{mark}"


def route(
    request: Request,
    task: str,
    policy: Policy,
    candidates: Sequence[Candidate],
    *,
    calibrator: Calibrator | None = None,
    alarm: bool = False,
    others: Sequence[Stage] = (),
    known_model: Callable[[str], bool] = lambda _: False,
) -> Route:
    """Choose the stages for `request`: `candidates` are those of the policy, cheapest first, the last one the large.

    `alarm`: audits have shown that accepted answers fail too often, so the large model answers whatever the policy is.
    `others` are the stages that `policy.others` names; with `policy.samples` they give evidence for small answers.
    A client that names one of the configured models gets that model and no other. Any name that a candidate hands on,
    "auto", "smallfirst" and names that `known_model` accepts are answered small-first.
    Raises NotFoundError for a model name nobody knows and UnsupportedError when no candidate is capable of the call.
    """
    for candidate in candidates:
        if candidate.named(request.model):
            return Route(task, policy.mode, _capable(request, [candidate.stage]), reason="model_named")
    stages = _asked(request.model, candidates)
    known = request.model in AUTO_NAMES or any(c.hands_on(request.model) for c in candidates)
    if not stages or not (known or known_model(request.model)):
        raise NotFoundError(
            f"The model {request.model!r} does not exist here.",
            hint=f"Use 'auto', one of {_names(candidates)}, or configure a model that hands this name on.",
            param="model",
        )
    usable = _capable(request, stages)
    small = tuple(_constrained(s, policy) for s in usable if s.small)
    large = tuple(s for s in usable if not s.small)[:1]
    plan = _plan(task, policy, small, large, calibrator, alarm, any(s.small for s in stages))
    judged = small if plan.shadow or len(plan.stages) > 1 else ()
    return replace(plan, others=_evidence(request, policy, judged, others))


def promising(costs: Costs | None, acceptance: float | None) -> bool:
    """Whether it pays to ask the small model first, when its answer is accepted with probability `acceptance`.

    It does when small_first(acceptance) <= large, that is, when acceptance x large >= small; and where either is not
    known, for only trying can tell.
    """
    return costs is None or acceptance is None or costs.small_first(acceptance) <= costs.large_usd


def without_small(plan: Route, probability: float | None = None) -> Route:
    """`plan` begun at its large model because the small one is not promising; `probability` of that choice."""
    large = plan.stages[-1:]
    return replace(plan, stages=large, others=(), calibrator=None, reason="unpromising", probability=probability)


def _plan(
    task: str,
    policy: Policy,
    small: tuple[Stage, ...],
    large: tuple[Stage, ...],
    calibrator: Calibrator | None,
    alarm: bool,
    small_configured: bool,
) -> Route:
    """The policy's mode applied to the stages that are capable of the call."""
    shadow = small if policy.shadow else ()
    if not small:
        return Route(task, policy.mode, large, reason="small_incapable" if small_configured else "no_small_model")
    if not large or policy.mode == "small_only":
        reason = "small_only" if policy.mode == "small_only" else "no_large_model"
        return Route(task, "small_only", small, reason=reason)
    if policy.mode == "observe":
        return Route(task, "observe", large, shadow=shadow, reason="observe")
    if alarm:
        return Route(task, "observe", large, shadow=shadow, reason="alarm")
    if calibrator is not None:
        return Route(task, "enforce", small + large, calibrator=calibrator, reason="calibrated")
    if policy.accept_uncalibrated:
        return Route(task, "enforce", small + large, reason="validity_only")
    return Route(task, "observe", large, shadow=shadow, reason="uncalibrated")


def _evidence(request: Request, policy: Policy, small: tuple[Stage, ...], others: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages whose agreement with the small one is looked at, as far as they are capable of the call."""
    if not small:
        return ()
    capable = [_constrained(s, policy) for s in others if not s.backend.capabilities.missing(request)]
    first, warmth = small[0], policy.sample_temperature
    samples = [replace(first, name=f"{first.name}~{n}", temperature=warmth) for n in range(1, policy.samples + 1)]
    return (*capable, *samples)


def _asked(model: str, candidates: Sequence[Candidate]) -> list[Stage]:
    """The stages that can be asked for a call to `model`, each with the name it will be asked for.

    Where a large model hands the name on, no other large model answers for it.
    """
    taken = any(not c.stage.small and c.hands_on(model) for c in candidates)
    asked = []
    for candidate in candidates:
        if candidate.hands_on(model):
            asked.append(replace(candidate.stage, model=model))
        elif candidate.stage.model and (candidate.stage.small or not taken):
            asked.append(candidate.stage)
    return asked


def _capable(request: Request, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    capable = tuple(s for s in stages if not s.backend.capabilities.missing(request))
    if not capable:
        lacks = "; ".join(f"{s.name}: {', '.join(sorted(s.backend.capabilities.missing(request)))}" for s in stages)
        raise UnsupportedError(
            f"No configured model can answer this call; missing are {lacks}.",
            hint="Configure a model with these capabilities, or leave them out of the request.",
        )
    return capable


def _constrained(stage: Stage, policy: Policy) -> Stage:
    return replace(stage, constraint=policy.constraint, repairs=policy.repairs)


def _holds(match: Match, request: Request, mark: str) -> bool:
    if match.tools and set(match.tools) != {t.name for t in request.tools}:
        return False
    if match.system and not any(match.system in _text(m) for m in request.messages if _is_system(m)):
        return False
    return not match.fingerprint or match.fingerprint == mark


def _is_system(message: Mapping[str, Any]) -> bool:
    return message.get("role") in {"system", "developer"}


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if isinstance(part, dict))


def _names(candidates: Sequence[Candidate]) -> str:
    return ", ".join(repr(n) for c in candidates for n in dict.fromkeys((c.stage.name, c.stage.model)) if n)


_encode = msgspec.json.Encoder(order="deterministic").encode
