"""What can be released and what is: the versions of a task's small model, and which of them answers its calls.

A version takes the place of the small stages that are configured for its task: `live` for all calls, `candidate` for
those of its rollout, `previous` to go back to. Where no version is named, the configured stages stand. Pure: these
functions say what follows from a release, a decision or a withdrawal; `store.change_release` makes it so for all
gateways at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from smallfirst.rollout import Decision, Rollout, Rules, Step, moved
from smallfirst.types import Json

Target = Literal["shadow", "canary", "live"]
Alias = Literal["live", "previous", "candidate"]
_ON_TRIAL = frozenset({"shadow", "canary"})


@dataclass(frozen=True, slots=True)
class Version:
    """A small model that can answer a task's calls. Its id names its stage, on records and calibrations.

    `model` is what a `[models.NAME]` table says of it, without adapters; `adapter` the file that was learned for it, ""
    for none: a LoRA on the weights, or a compressor's guard.
    The sums are sha256, "" where there is no such file. `prompt` is how it is asked (`specialist.PromptTemplate`);
    `recipe` and `parents` (sha256, the material first) tell how it was made; `evaluation` how it did, if that is known.
    """

    id: str
    task: str
    created_at: float
    model: Json
    base_sha256: str = ""
    adapter: str = ""
    adapter_sha256: str = ""
    prompt: Json = field(default_factory=dict)
    recipe: Json = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    evaluation: Json | None = None

    @property
    def base(self) -> str:
        """The weights' name or path, the name asked of a server, or the model that a compressor stands before."""
        return str(next(filter(None, map(self.model.get, ("weights", "model", "predictor"))), ""))


def version_id(task: str, model: Json, base_sha256: str, adapter_sha256: str, asked: Json) -> str:
    """TASK@ and 12 hex digits of what decides its answers: the files wherever they lie, or which server is asked, and
    how it is `asked`."""
    base = base_sha256 or dict(model)
    text = msgspec.json.encode((base, adapter_sha256, dict(asked)), order="deterministic")
    return f"{task}@{hashlib.sha256(text).hexdigest()[:12]}"


def watched(task: str, stage: str) -> str:
    """The name under which calibration and audits of a task's small stage are kept apart: the version's, or the task's
    for what is configured."""
    return stage if stage.startswith(f"{task}@") else task


@dataclass(frozen=True, slots=True)
class Release:
    """What of a task is in service: version ids, "" for none.

    `rollout` is the last one; `evidence` is what its calls have shown (`rollout.Evidence` as JSON), "" while that is
    nothing. `changed_at` is in seconds since the epoch, `changed_by` who moved a version last: "rollout", or a person's
    word. `changes` counts every change of this value.
    """

    task: str
    live: str = ""
    previous: str = ""
    candidate: str = ""
    rollout: Rollout | None = None
    evidence: str = ""
    changed_at: float = 0.0
    changed_by: str = ""
    changes: int = 0

    @property
    def aliases(self) -> Mapping[Alias, str]:
        """The aliases that name a version."""
        named: dict[Alias, str] = {"live": self.live, "previous": self.previous, "candidate": self.candidate}
        return {alias: version for alias, version in named.items() if version}

    @property
    def trial(self) -> Rollout | None:
        """The rollout, as long as calls are compared for it."""
        return self.rollout if self.rollout and self.rollout.step != "rolled_back" else None


@dataclass(frozen=True, slots=True)
class Move:
    """An entry of the audit trail: what became of `version`, when, by whom and why. `share` of episodes is its."""

    task: str
    at: float
    by: str
    version: str
    step: Step
    share: float
    reason: str


def released(
    release: Release,
    version: str,
    to: Target,
    *,
    share: float | None,
    rules: Rules,
    rollout_id: str,
    now: float,
    by: str,
) -> Release:
    """`version` put where a person wants it; `rules` and `rollout_id` count where none goes on.

    `share` of episodes are the version's (None: as the rules have it). A version that is on trial keeps its rollout
    with its rules and arms. A version that is live cannot be tried against itself: then nothing changes.
    """
    going = release.trial if release.trial and release.trial.candidate == version else None
    if version == release.live and (to != "live" or going is None):
        return release
    rollout = going or Rollout(rollout_id, release.task, version, release.live, rollout_id, now, rules=rules)
    rules = _with_share(rollout.rules, to, share)
    shares = {"shadow": 0.0, "canary": rules.shares[0], "live": rules.live_share}
    moved_on = replace(rollout, step=to, share=shares[to], since=now, rules=rules)
    return _at(release, moved_on, now, by)


def decided(release: Release, decision: Decision, *, now: float) -> Release:
    """`release` after the rollout's own decision."""
    if release.trial is None or (rollout := moved(release.trial, decision, now)) == release.trial:
        return release
    return _at(release, rollout, now, "rollout")


def withdrawn(release: Release, *, now: float, by: str) -> Release:
    """What is on trial taken back; without such, the live version, in favour of the previous one."""
    trial = release.trial
    if trial is not None:
        return _at(release, replace(trial, step="rolled_back", share=0.0, since=now), now, by)
    if not release.live:
        return release
    return replace(
        release, live=release.previous, previous="", rollout=None, evidence="", changed_at=now, changed_by=by
    )


def move_to(before: Release, after: Release, reason: str) -> Move | None:
    """The entry for the audit trail of a change from `before` to `after`; None when no version moved."""
    old, new = before.rollout, after.rollout
    if new is not None and new != old:
        return Move(after.task, after.changed_at, after.changed_by, new.candidate, new.step, new.share, reason)
    if before.aliases != after.aliases:
        return Move(after.task, after.changed_at, after.changed_by, before.live, "rolled_back", 0.0, reason)
    return None


def _with_share(rules: Rules, to: Target, share: float | None) -> Rules:
    """The rules with a person's share in place of their own."""
    if share is None or to == "shadow":
        return rules
    if to == "live":
        return replace(rules, live_share=share)
    return replace(rules, shares=(share, *(larger for larger in rules.shares if larger > share)))


def _at(release: Release, rollout: Rollout, now: float, by: str) -> Release:
    """`release` with its rollout where `rollout` is; evidence is kept within one rollout."""
    before = release.rollout
    known = release.evidence if before is not None and before.id == rollout.id else ""
    changed = replace(release, rollout=rollout, evidence=known, changed_at=now, changed_by=by)
    if rollout.step in _ON_TRIAL:
        return replace(changed, candidate=rollout.candidate)
    if rollout.step == "live":
        previous = release.previous if release.live == rollout.candidate else rollout.incumbent
        return replace(changed, live=rollout.candidate, previous=previous, candidate="")
    if release.live == rollout.candidate:
        return replace(changed, live=rollout.incumbent, previous="", candidate="")
    return replace(changed, candidate="")
