"""Calibration from records: each task's labelled small answers become an `Acceptance`, or a stated refusal.

Records are read once, newest first. Of each the small model's answer is taken as it was decided on, labelled by the
best evidence there is (`labels`). The promise is made from the calls whose label was come by without regard to the
answer: those that were observed, and of those served under an earlier calibration an even share of the escalated and
the audited ones (each is kept with the least probability of an audit over its own). All other labels only teach.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from smallfirst import calibration
from smallfirst.acceptance import Acceptance, Beside, Costs, certify
from smallfirst.calibration import Model
from smallfirst.errors import CalibrationError
from smallfirst.guarantee import Certificate
from smallfirst.labels import Kind, Label, Outcomes, label_of, referred, request_of
from smallfirst.monitor import Monitor
from smallfirst.registry import watched
from smallfirst.store import RecordFilter, Store, StoredRecord
from smallfirst.types import Attempt, Decision, Request, evidence_of, total_usd

MOST = 5000
"""Labelled calls of a task that are used, the newest; more make no better calibrator."""
FEW = 200
"""Labelled calls below which a task's calibrator starts from that of the other tasks."""

_JUDGED = frozenset({"accept", "escalate", "abstain", "shadow"})
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Other:
    """What another stage answered beside a small one; of an answer of which nothing is known, `correct` is false."""

    stage: str
    model: str
    features: Mapping[str, float]
    correct: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled small answer, with those beside it. `chance` is how likely it came to be compared with a large
    model's: 1 when observed or escalated by a calibrator, None when that is not known. Costs in USD, None where
    unknown."""

    record: str
    features: Mapping[str, float]
    label: Label
    valid: bool
    episode: str
    decided: Decision
    chance: float | None
    small_usd: float | None
    large_usd: float | None
    others: tuple[Other, ...] = ()


@dataclass(slots=True)
class Sample:
    """What was found of a stage's answers to a task's calls; `model` is the one that gives them, `unlabelled` counts
    the answers about which nothing is known."""

    task: str
    stage: str
    model: str
    rows: list[Row] = field(default_factory=list)
    unlabelled: int = 0

    @property
    def kinds(self) -> Counter[Kind]:
        return Counter(row.label.kind for row in self.rows)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a sample: an acceptance, which may itself be a refusal, or the reason why there is none. `needed` is
    how many more labels it would take by estimate, None where that is not known."""

    sample: Sample
    acceptance: Acceptance | None
    refused: str
    needed: int | None = None

    @property
    def certificate(self) -> Certificate | None:
        outcome = None if self.acceptance is None else self.acceptance.outcome
        return outcome if isinstance(outcome, Certificate) else None


async def run(
    store: Store,
    *,
    task: str | None,
    alpha: float,
    delta: float,
    since: float | None = None,
    now: float,
    save: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """Calibrate a task, or all (None), and put what came of it in force, refusals too: a result for each small stage.

    Calls before the last alarm of a task are left out. A task with few labels starts from a model of the other tasks.
    """
    monitors = {name: Monitor.from_json(state) for name, state in (await store.monitors()).items()}
    alarms = {name: monitor.since for name, monitor in monitors.items() if monitor is not None}
    samples = await gather(store, task=task, since=since, alarms=alarms, progress=progress)
    every = samples
    if task is not None and any(len(sample.rows) < FEW for sample in samples.values()):
        every = await gather(store, since=since, alarms=alarms)
    results = []
    for sample in samples.values():
        prior = prior_of(every, sample) if len(sample.rows) < FEW else None
        result = result_of(sample, alpha=alpha, delta=delta, now=now, prior=prior)
        results.append(result)
        if save and result.acceptance is not None:
            payload = json.dumps(result.acceptance.to_json())
            await store.save_calibration(sample.task, sample.stage, payload)
    return sorted(results, key=lambda result: (result.sample.task, result.sample.stage))


def result_of(sample: Sample, *, alpha: float, delta: float, now: float, prior: Model | None = None) -> Result:
    """What comes of the sample: an acceptance, or why there is none."""
    try:
        acceptance = calibrate(sample, alpha=alpha, delta=delta, now=now, prior=prior)
    except CalibrationError as err:
        return Result(sample, None, str(err), max(calibration.MIN_LABELS - len(sample.rows), 0) or None)
    outcome = acceptance.outcome
    if isinstance(outcome, Certificate):
        return Result(sample, acceptance, "")
    return Result(sample, acceptance, outcome.reason, outcome.needed)


async def gather(
    store: Store,
    *,
    task: str | None = None,
    since: float | None = None,
    alarms: Mapping[str, float] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[Key, Sample]:
    """The samples of a task, or of all, by (task, stage). `alarms` tells by the name that a stage is watched
    under before when its calls are left out.

    Answers of another model than the newest one behind a stage are left out: they say nothing of its answers.
    """
    samples: dict[Key, Sample] = {}
    outcomes, done = Outcomes(), 0
    async for record in store.export(RecordFilter(task=task, since=since)):
        _take(record, outcomes, samples, alarms or {})
        outcomes.learn(record)
        done += 1
        progress(done)
    return samples


def calibrate(sample: Sample, *, alpha: float, delta: float, now: float, prior: Model | None = None) -> Acceptance:
    """The sample's acceptance, certified or refused. Raises CalibrationError when there are too few labels to fit."""
    rows = sample.rows
    return certify(
        [row.features for row in rows],
        [row.label.correct for row in rows],
        task=sample.task,
        stage=sample.stage,
        label=", ".join(f"{n} by {kind}" for kind, n in sample.kinds.most_common()),
        alpha=alpha,
        delta=delta,
        made_at=now,
        groups=[row.episode for row in rows],
        valid=[row.valid for row in rows],
        representative=representative(rows),
        costs=_costs(rows),
        others=_beside(rows),
        prior=prior,
    )


def _beside(rows: Sequence[Row]) -> list[Beside]:
    """By stage what stood beside the rows, of the newest model behind each."""
    newest: dict[str, str] = {}
    found: dict[str, list[tuple[int, Other]]] = {}
    for n, row in enumerate(rows):
        for other in row.others:
            if newest.setdefault(other.stage, other.model) == other.model:
                found.setdefault(other.stage, []).append((n, other))
    return [
        Beside(stage, [other.features for _, other in of], [other.correct for _, other in of], [n for n, _ in of])
        for stage, of in found.items()
    ]


def prior_of(samples: Mapping[Key, Sample], wanted: Sample) -> Model | None:
    """A calibrator of the same model's answers to all other tasks; None where they have too few labels."""
    others = [s for s in samples.values() if s.model == wanted.model and s.task != wanted.task]
    rows = [row for sample in others for row in sample.rows[: MOST // len(others)]]
    right = [row.label.correct for row in rows]
    try:
        return calibration.fit([row.features for row in rows], right, groups=[row.episode for row in rows]).model
    except CalibrationError:
        return None


def representative(rows: Sequence[Row]) -> list[bool]:
    """Which rows are to each other as the calls are, whatever their answers (see the module's docstring).

    Where no large model ever answered there is no such draw, and every label counts for what it is.
    """
    if all(row.chance is None for row in rows):
        return [True] * len(rows)
    least = min((row.chance for row in rows if row.decided == "accept" and row.chance is not None), default=0.0)
    return [_kept(row, least) for row in rows]


def _kept(row: Row, least: float) -> bool:
    if row.chance is None or row.decided == "shadow":
        return row.chance is not None
    draw = int.from_bytes(hashlib.sha256(row.record.encode()).digest()[:8], "big") / 2**64
    return draw < least / row.chance


def _take(record: StoredRecord, outcomes: Outcomes, samples: dict[Key, Sample], alarms: Mapping[str, float]) -> None:
    request = request_of(record)
    for n in _judged(record):
        attempt = record.attempts[n]
        if record.created_at < alarms.get(watched(record.task, attempt.stage), 0.0):
            continue
        sample = samples.setdefault((record.task, attempt.stage), Sample(record.task, attempt.stage, attempt.model))
        if attempt.model != sample.model or len(sample.rows) >= MOST:
            continue
        label = label_of(record, request, n, outcomes)
        if label is None:
            sample.unlabelled += 1
        else:
            others = tuple(_others(record, request, n, outcomes))
            sample.rows.append(replace(_row(record, attempt, label), others=others))


def _others(record: StoredRecord, request: Request | None, n: int, outcomes: Outcomes) -> Iterator[Other]:
    """The valid answers of other models that stand beside the n-th attempt."""
    for m in evidence_of(record.attempts, n):
        attempt = record.attempts[m]
        if attempt.features and attempt.model != record.attempts[n].model:
            label = label_of(record, request, m, outcomes)
            yield Other(attempt.stage, attempt.model, attempt.features, label is not None and label.correct)


def _judged(record: StoredRecord) -> list[int]:
    """Of each small stage the attempt that was decided on last."""
    last = {
        attempt.stage: n
        for n, attempt in enumerate(record.attempts)
        if attempt.small and attempt.decision in _JUDGED and attempt.kind != "cache" and attempt.features
    }
    return list(last.values())


def _row(record: StoredRecord, attempt: Attempt, label: Label) -> Row:
    n = referred(record)
    reference = None if n is None else record.attempts[n]
    asked = [a for a in record.attempts if (a.reason if a.decision == "evidence" else a.stage) == attempt.stage]
    chance = None
    if reference is not None and (attempt.decision == "shadow" or attempt.confidence is not None):
        chance = 1.0 if attempt.decision != "accept" else reference.probability
    return Row(
        record=record.id,
        features=attempt.features,
        label=label,
        valid=attempt.verdict.ok,
        episode=record.episode or record.id,
        decided=attempt.decision,
        chance=chance,
        small_usd=total_usd(a.cost_usd for a in asked),
        large_usd=None if reference is None else reference.cost_usd,
    )


def _costs(rows: Sequence[Row]) -> Costs | None:
    small = [row.small_usd for row in rows if row.small_usd is not None]
    large = [row.large_usd for row in rows if row.large_usd is not None]
    return Costs(float(np.mean(small)), float(np.mean(large))) if small and large else None
