"""What is released, read from the store and followed while the gateway runs; and what comes of a rollout's calls.

Pointers are followed within `follow.REFRESH_S` seconds. A version answers as soon as this gateway has loaded it; until
then what answered before goes on. Outcomes are read from durable records and taken once, in the order of the calls, by
whichever gateway on the store comes first; so nothing of a rollout is lost with a process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import structlog

from smallfirst.assemble import Versions
from smallfirst.config import Policy
from smallfirst.errors import SmallfirstError, StoreError
from smallfirst.registry import Release, Version, decided, withdrawn
from smallfirst.rollout import Decision, Evidence, Hold, Outcome, Rollout, arm, decide
from smallfirst.router import Candidate
from smallfirst.serve.telemetry import Telemetry
from smallfirst.store import RecordFilter, Store, StoredRecord
from smallfirst.trials import outcome_of
from smallfirst.types import Trial

log = structlog.get_logger("smallfirst.releases")
_KEEP_S = 150.0
"""How long a version stays loaded after its last alias: longer than calls to it take."""
_RETRY_S = 60.0
_BATCH = 200


@dataclass(frozen=True, slots=True)
class InService:
    """Who answers a call: `small` in place of the small stages that are configured (None: those), and `shadow` for the
    record only. `trial` is the rollout that it is part of; `audited` the least chance of an audit that this needs."""

    small: Candidate | None = None
    shadow: Candidate | None = None
    trial: Trial | None = None
    audited: float = 0.0

    def stages(self, configured: Sequence[Candidate]) -> list[Candidate]:
        """The call's stages."""
        if self.small is None:
            return list(configured)
        return [self.small, *(c for c in configured if not c.stage.small)]

    def policy(self, configured: Policy) -> Policy:
        """The call's policy: in a rollout every call is asked of its small stage, and labelled as often as agreed."""
        if self.trial is None:
            return configured
        audit = max(configured.audit, self.audited)
        return msgspec.structs.replace(configured, shadow=True, explore=1.0, audit=audit)

    def watched(self, task: str) -> str:
        """The name under which the small stage's calibration is found."""
        return self.small.stage.name if self.small else task


AS_CONFIGURED = InService()


class Releases:
    """By task, what is released and loaded here; and the judge of the rollouts that are under way."""

    def __init__(self, store: Store, versions: Versions, telemetry: Telemetry) -> None:
        self._store, self._versions, self._telemetry = store, versions, telemetry
        self._releases = dict[str, Release]()
        self._loaded = dict[str, Candidate]()
        self._loading = dict[str, asyncio.Task[None]]()
        self._refused = dict[str, float]()  # version: when it may be tried again
        self._unneeded = dict[str, float]()  # version: since when

    def of(self, task: str, key: str) -> InService:
        """Who answers a call of `task`; `key` is its episode, or the call itself where it has none."""
        release = self._releases.get(task)
        if release is None:
            return AS_CONFIGURED
        live = self._loaded.get(release.live) or self._loaded.get(release.previous)
        rollout = release.trial
        if rollout is None:
            return InService(live)
        candidate, incumbent = self._loaded.get(rollout.candidate), self._loaded.get(rollout.incumbent)
        if candidate is None or (rollout.incumbent and incumbent is None) or rollout.share == 1:
            return InService(live)
        rules = rollout.rules
        if rollout.step == "shadow":
            audited = min(rules.labelled, rules.labelled_incumbent)
            return InService(incumbent, candidate, Trial(rollout.id, "shadow"), audited)
        side, _ = arm(key, rollout.share, rollout.salt)
        trial = Trial(rollout.id, side, rollout.share)
        if side == "canary":
            return InService(candidate, None, trial, rules.labelled)
        return InService(incumbent, None, trial, rules.labelled_incumbent)

    async def refresh(self) -> None:
        """Read what has changed, begin to load what is needed, and judge. Raises StoreError."""
        changes = await self._store.release_changes()
        if any(task not in self._releases or self._releases[task].changes != n for task, n in changes.items()):
            for release in await self._store.releases():
                self._follow(release)
        await self._load()
        for release in list(self._releases.values()):
            if release.trial is not None:
                await self._judged(release.trial)

    async def loaded(self) -> None:
        """Returns when all that is needed was loaded, or refused."""
        await asyncio.gather(*self._loading.values())

    async def close(self) -> None:
        """Stop loading."""
        for task in self._loading.values():
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)

    def _follow(self, release: Release) -> None:
        before = self._releases.get(release.task, Release(release.task))
        if release.changes < before.changes:  # read before what is known here was written
            return
        self._releases[release.task] = release
        self._telemetry.rolled_out(release.task, release.trial.share if release.trial else 0.0)
        if before.aliases != release.aliases:
            log.info("released", task=release.task, by=release.changed_by, aliases=dict(release.aliases))

    async def _load(self) -> None:
        """Begin to load what aliases name, and let go of what none has named for a while."""
        now = time.monotonic()
        needed = {name for release in self._releases.values() for name in _needed(release)}
        self._refused = {name: at for name, at in self._refused.items() if name in needed}
        wanted = [n for n in needed - self._loaded.keys() - self._loading.keys() if self._refused.get(n, 0.0) <= now]
        for version in await self._store.versions(ids=wanted) if wanted else ():
            self._loading[version.id] = asyncio.create_task(self._bring(version))
        self._unneeded = {name: self._unneeded.get(name, now) for name in self._loaded.keys() - needed}
        for name in [name for name, since in self._unneeded.items() if now - since > _KEEP_S]:
            del self._loaded[name]
            await self._versions.retain(self._loaded)

    async def _bring(self, version: Version) -> None:
        """Load a version; one that cannot be served a second time either, and that no gateway asks, is withdrawn."""
        try:
            self._loaded[version.id] = await self._versions.load(version)
        except (SmallfirstError, OSError, msgspec.ValidationError) as err:
            again = version.id in self._refused
            self._refused[version.id] = time.monotonic() + _RETRY_S
            self._telemetry.version_refused(version.task)
            log.error("version refused", version=version.id, error=str(err))
            if again:
                await self._withdraw(version, str(err))
        finally:
            del self._loading[version.id]

    async def _withdraw(self, version: Version, why: str) -> None:
        """Withdraw a version that is on trial, unless another gateway serves it."""
        trial, change = self._releases[version.task].trial, partial(_refused, version.id, why, time.time())
        if trial is None or trial.candidate != version.id:
            return
        try:
            if not await self._asked(trial):
                self._follow(await self._store.change_release(version.task, change))
        except StoreError as err:
            log.warning("version not withdrawn", version=version.id, error=str(err))

    async def _asked(self, rollout: Rollout) -> bool:
        """Whether a call was asked of the rollout's candidate."""
        async for call in self._store.summaries(RecordFilter(task=rollout.task, since=rollout.since)):
            if any(attempt.stage == rollout.candidate for attempt in call.attempts):
                return True
        return False

    async def _judged(self, rollout: Rollout) -> None:
        """One rollout's judging; where it fails the others go on."""
        try:
            await self._judge(rollout)
        except SmallfirstError as err:
            log.warning("rollout not judged", task=rollout.task, rollout=rollout.id, error=str(err))

    async def _judge(self, rollout: Rollout) -> None:
        """Take what has settled of the rollout's calls, and do what follows from it."""
        records = await self._store.pending(rollout.id, _BATCH)
        outcomes = await asyncio.to_thread(_settled, records, rollout, time.time()) if records else {}
        if outcomes:
            change = partial(_judged, rollout.id, outcomes, time.time())
            self._follow(await self._store.change_release(rollout.task, change, list(outcomes)))


def _needed(release: Release) -> set[str]:
    """The versions that may answer: those of the aliases, and both sides of the rollout."""
    sides = {release.trial.candidate, release.trial.incumbent} if release.trial else set[str]()
    return {*release.aliases.values(), *sides} - {""}


def _settled(records: Sequence[StoredRecord], rollout: Rollout, now: float) -> dict[str, Outcome | None]:
    """By record, the outcomes that can be taken: in the order of the calls, up to the first whose label may yet come.

    So calls of both sides are taken at the same age, however long the label of either takes.
    """
    outcomes = dict[str, Outcome | None]()
    for record in records:
        outcome = outcome_of(record, rollout)
        if now - record.created_at < rollout.rules.settle_s and not _told(record, outcome):
            break
        outcomes[record.id] = outcome
    return outcomes


def _told(record: StoredRecord, outcome: Outcome | None) -> bool:
    """Whether all is known that will be."""
    if outcome is None:
        return False
    answers = [answer for answer in (outcome.candidate, outcome.incumbent) if answer is not None]
    expected = 2 if record.trial and record.trial.arm == "shadow" else 1
    return len(answers) == expected and all(answer.success is not None for answer in answers)


def _judged(
    rollout_id: str, outcomes: Mapping[str, Outcome | None], now: float, release: Release, taken: frozenset[str]
) -> tuple[Release, str]:
    """`release` with the outcomes of the records `taken`, moved on if they suffice."""
    rollout = release.trial
    if rollout is None or rollout.id != rollout_id:
        return release, ""
    evidence = _evidence(rollout, release.evidence)
    known = (outcomes[record] for record in outcomes if record in taken)
    found = _decision(rollout, evidence, [outcome for outcome in known if outcome is not None])
    return decided(replace(release, evidence=evidence.to_json()), found, now=now), found.reason


def _decision(rollout: Rollout, evidence: Evidence, outcomes: Sequence[Outcome]) -> Decision:
    """Take the outcomes, up to the first with which something is decided."""
    for outcome in outcomes:
        evidence.take(rollout.rules, outcome)
        if not isinstance(found := decide(rollout, evidence), Hold):
            return found
    return Hold("")


def _evidence(rollout: Rollout, kept: str) -> Evidence:
    """The evidence so far; none where another version of this software kept it otherwise."""
    try:
        return Evidence.from_json(rollout, kept)
    except ValueError as err:
        log.warning("evidence begins anew", task=rollout.task, error=str(err))
        return Evidence(rollout)


def _refused(version: str, reason: str, now: float, release: Release, _: frozenset[str]) -> tuple[Release, str]:
    """`release` without a version that no call was ever compared for."""
    trial = release.trial
    if trial is None or trial.candidate != version or release.evidence:
        return release, ""
    return withdrawn(release, now=now, by="gateway"), f"cannot be served: {reason}"
