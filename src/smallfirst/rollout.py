"""How a candidate comes into service: shadow, canary, live, or rolled back, by evidence that may be read at any time.

Episodes are split between candidate and incumbent by a keyed hash (`arm`). What became of their calls goes into an
`Evidence`; `decide` says whether the candidate moves on, waits or is withdrawn, and `moved` is the rollout after that.
The tests are bets (`betting`), so deciding after every call costs nothing of their level. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Literal

from smallfirst.betting import Bets

Arm = Literal["canary", "incumbent"]
Step = Literal["shadow", "canary", "live", "rolled_back"]
Measure = Literal["success", "valid", "in_time", "value"]
Asks = Literal["worse", "not worse", "better"]

_WORSE = ((0.04, 0.08), (0.11, 0.87), (0.3, 0.05))
"""(difference, weight) of the bets on a worse candidate: most of it on what shows 15 points soonest."""
_SUCCESS_LEVEL = 0.9
_BETTER = ((0.02, 0.3), (0.05, 0.4), (0.1, 0.3))


@dataclass(frozen=True, slots=True)
class Rules:
    """What a candidate has to show, and how sure one wants to be. Margins and shares are parts of 1.

    level: of each decision: the chance, per step, that a candidate that is no worse is withdrawn, and the chance that
    one that is worse by the margin or more is promoted. shares: the canary's share of episodes, as it grows.
    live_share: the candidate's share once live; the rest stays with the incumbent for comparison.
    margin, valid_margin: how much lower the rates of success and of valid answers may be; shadow_margin: how much
    lower that of success may be to leave the shadow. late_s: calls that take longer (seconds) are late, and
    the rate of calls in time may be lower by late_margin; usd_per_success: what a success is worth, namely the
    incumbent's cost per success, and a call's worth may be lower by value_margin of that. None: not looked at.
    known, known_n: the incumbent's success rate on `known_n` calls before; it sizes bets and cannot mislead them.
    labelled, labelled_incumbent: the least probability with which the arm's calls get a label.
    patience: calls at a step after which it is said that the evidence will hardly suffice; calls after which a live
    candidate is compared no more, and gets all episodes.
    settle_s: how long a call's label is waited for, in seconds; without one by then, its success counts as unknown.
    """

    level: float = 0.05
    shares: tuple[float, ...] = (0.05, 0.25)
    live_share: float = 0.95
    margin: float = 0.05
    shadow_margin: float = 0.1
    valid_margin: float = 0.02
    late_s: float | None = None
    late_margin: float = 0.05
    usd_per_success: float | None = None
    value_margin: float = 0.1
    known: float = 0.9
    known_n: int = 0
    labelled: float = 1.0
    labelled_incumbent: float = 1.0
    patience: int = 20_000
    settle_s: float = 20.0

    def __post_init__(self) -> None:
        """Raises ValueError for numbers outside what is allowed."""
        if not self.shares or list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"shares {self.shares!r}: allowed are growing shares, at least one")
        for name, value in [("level", self.level), *(("shares", share) for share in self.shares)]:
            if not 0 < value < 1:
                raise ValueError(f"{name} {value!r}: allowed is a number between 0 and 1, without both")
        for name in ("live_share", "labelled", "labelled_incumbent", "known"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)!r}: allowed is a number above 0, up to 1")
        for name in ("margin", "shadow_margin", "valid_margin", "late_margin", "value_margin"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)!r}: allowed is a number between 0 and 1, without both")

    def measures(self) -> tuple[Measure, ...]:
        """What is compared."""
        timed: tuple[Measure, ...] = () if self.late_s is None else ("in_time",)
        priced: tuple[Measure, ...] = () if self.usd_per_success is None else ("value",)
        return ("success", "valid", *timed, *priced)


@dataclass(frozen=True, slots=True)
class Answer:
    """One arm's answer to a call. `success` is None while nothing tells, `usd` None where the price is unknown."""

    success: bool | None
    valid: bool
    seconds: float
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call: `candidate` and `incumbent` are the arms' answers, both set where both were asked.

    `episode` is what `arm` was asked for, "" where that was the record. `share` is the canary's share in force then, so
    that the arm's probability is share or 1 - share; `observed` is the probability with which the call got its label,
    at least `Rules.labelled`.
    """

    episode: str
    candidate: Answer | None = None
    incumbent: Answer | None = None
    share: float = 0.0
    observed: float = 1.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """Where a task's candidate stands: `candidate` and `incumbent` name releases, `salt` splits the episodes.

    `share` of episodes goes to the candidate; `since` is when this step began, seconds since the epoch.
    """

    id: str
    task: str
    candidate: str
    incumbent: str
    salt: str
    since: float
    step: Step = "shadow"
    share: float = 0.0
    rules: Rules = Rules()

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Rollout:
        """The rollout that `to_json` wrote. Raises ValueError for anything else."""
        try:
            kept = json.loads(text)
            rules = kept.pop("rules")
            return cls(**kept, rules=Rules(**rules | {"shares": tuple(rules["shares"])}))
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"rollout {text[:80]!r}: allowed is what Rollout.to_json writes") from None


@dataclass(frozen=True, slots=True)
class Promote:
    """The candidate moves to `step` with `share` of the episodes. `better`: it was shown to be better, not only not
    worse by more than the margin."""

    step: Step
    share: float
    reason: str
    better: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """The candidate stays where it is."""

    reason: str


@dataclass(frozen=True, slots=True)
class Abort:
    """The candidate is withdrawn: it is worse than the incumbent in what `measure` tells."""

    measure: Measure
    reason: str


Decision = Promote | Hold | Abort


class Evidence:
    """What the calls of one step have shown. Its size does not grow with their number.

    Of each measure there is a test that the candidate is worse, and one that it is not worse by the margin or more; of
    success also one that it is better. Every test counts the calls of which its measure is known. `shown` are calls
    with a known success by arm ("pair": both).
    """

    def __init__(self, rollout: Rollout) -> None:
        """For `rollout`'s step and rules; nothing is known yet."""
        rules = rollout.rules
        self.rollout, self.step = rollout.id, rollout.step
        self.calls = 0
        self.shown = {"canary": 0, "incumbent": 0, "pair": 0}
        self._worse: dict[Measure, Bets] = {}
        self._fit: dict[Measure, Bets] = {}
        for measure in rules.measures():
            margin = _margin(rules, rollout.step, measure)
            self._worse[measure] = _bets(rules, measure, -1, 0.0, _WORSE)
            sizes = ((margin / 2, 0.2), (margin, 0.5), (2 * margin, 0.3))
            self._fit[measure] = _bets(rules, measure, 1, margin, sizes)
        self._better = _bets(rules, "success", 1, 0.0, _BETTER)

    def take(self, rules: Rules, outcome: Outcome) -> None:
        """Take in what became of a call; of a call that nothing is known of, only that it was."""
        self.calls += 1
        kind = _compared(outcome)
        answers = (outcome.candidate, outcome.incumbent)
        if kind and all(a is None or a.success is not None for a in answers):
            self.shown[kind] += 1
        for measure in self._worse:
            canary, incumbent = (_value(rules, measure, a) for a in answers)
            missing = [v is None and a is not None for v, a in zip((canary, incumbent), answers, strict=True)]
            if not kind or any(missing):
                continue
            observed = outcome.observed if measure in {"success", "value"} else 1.0
            for bets in self._of(measure):
                bets.take(outcome.episode, canary, incumbent, outcome.share, observed)

    def worse(self, measure: Measure) -> float:
        """The capital of the bets that the candidate is worse."""
        return self._worse[measure].capital

    def fit(self, measure: Measure) -> float:
        """The capital of the bets that the candidate is not worse by the margin or more."""
        return self._fit[measure].capital

    @property
    def better(self) -> float:
        """The capital of the bets that the candidate succeeds more often."""
        return self._better.capital

    def _of(self, measure: Measure) -> Iterator[Bets]:
        yield self._worse[measure]
        yield self._fit[measure]
        if measure == "success":
            yield self._better

    def to_json(self) -> str:
        """The whole state."""
        plain = {name: getattr(self, name) for name in ("rollout", "step", "calls", "shown")}
        tests = {m: [bets.state() for bets in self._of(m)] for m in self._worse}
        return json.dumps(plain | {"tests": tests}, separators=(",", ":"))

    @classmethod
    def from_json(cls, rollout: Rollout, text: str) -> Evidence:
        """What `to_json` wrote of this rollout's step; without any evidence where that is of another one, or "".

        Raises ValueError for anything else.
        """
        evidence = cls(rollout)
        try:
            kept = json.loads(text or "{}")
            if (kept.get("rollout"), kept.get("step")) != (rollout.id, rollout.step):
                return evidence
            evidence.calls, evidence.shown = kept["calls"], dict(kept["shown"])
            for measure in evidence._worse:
                for bets, state in zip(evidence._of(measure), kept["tests"][measure], strict=True):
                    bets.restore(state)
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"evidence {text[:80]!r}: allowed is what Evidence.to_json writes") from None
        return evidence


def arm(key: str, share: float, salt: str) -> tuple[Arm, float]:
    """The arm of an episode (or of a record without one), and the probability of that arm.

    The same key has the same arm, and a canary stays one while `share` grows or stays. Raises ValueError for a share
    outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share!r}: allowed is a number from 0 to 1")
    keyed = blake2b(key.encode(), digest_size=8, key=blake2b(salt.encode(), digest_size=32).digest())
    if int.from_bytes(keyed.digest()) < share * 2**64:
        return "canary", share
    return "incumbent", 1 - share


def decide(rollout: Rollout, evidence: Evidence) -> Decision:
    """What the evidence of this step allows: worse by any measure is withdrawn, fit by every measure moves on.

    The canary's share grows with the evidence: of k shares the i-th is left when every test has the i-th part of the
    proof, level^(-i/k), and the last one, for live, with all of it.
    """
    rules = rollout.rules
    if rollout.step == "rolled_back":
        return Hold("withdrawn")
    measures = rules.measures()
    for measure in measures:
        capital, needed = evidence.worse(measure), 1 / _level(rules, measure)
        if capital >= needed:
            return Abort(measure, f"{measure}: worse than {_name(rollout)}; {_odds(capital, needed)}")
    if rollout.step == "live":
        if evidence.calls >= rules.patience and rollout.share < 1:
            return Promote("live", 1.0, f"not shown to be worse in {evidence.calls} calls")
        return Hold("live, and not shown to be worse")
    if not any(evidence.shown.values()):
        return Hold("no call has shown yet whether the candidate succeeds")
    needed = _proof(rollout)
    weakest = min(measures, key=evidence.fit)
    if evidence.fit(weakest) >= needed:
        better = evidence.better >= 1 / rules.level
        shown = "better" if better else "not worse by the margin or more"
        return Promote(*_next(rollout), f"shown: {shown}; {_odds(evidence.fit(weakest), needed)}", better)
    lacking = f"{weakest}: not shown to be within the margin; {_odds(evidence.fit(weakest), needed)}"
    if evidence.calls >= rules.patience:
        return Hold(f"{evidence.calls} calls were not enough: a person has to decide, or widen the margin; {lacking}")
    return Hold(lacking)


def capitals(rollout: Rollout, evidence: Evidence) -> list[tuple[Measure, Asks, float, float]]:
    """Every test of this step: its measure, what it asks, its capital, and the capital at which it has shown it."""
    rules, proof = rollout.rules, _proof(rollout) if rollout.step in ("shadow", "canary") else None
    found: list[tuple[Measure, Asks, float, float]] = []
    for measure in rules.measures():
        found.append((measure, "worse", evidence.worse(measure), 1 / _level(rules, measure)))
        if proof is not None:
            found.append((measure, "not worse", evidence.fit(measure), proof))
    return [*found, ("success", "better", evidence.better, 1 / rules.level)]


def moved(rollout: Rollout, decision: Decision, now: float) -> Rollout:
    """The rollout after `decision`, taken at `now` (seconds since the epoch)."""
    if isinstance(decision, Promote):
        since = rollout.since if decision.step == rollout.step else now
        return replace(rollout, step=decision.step, share=decision.share, since=since)
    if isinstance(decision, Abort):
        return replace(rollout, step="rolled_back", share=0.0, since=now)
    return rollout


def _bets(
    rules: Rules, measure: Measure, sign: Literal[1, -1], margin: float, sizes: tuple[tuple[float, float], ...]
) -> Bets:
    labelled = measure in {"success", "value"}
    return Bets(
        sign=sign,
        margin=margin,
        sizes=sizes,
        prior=rules.known if measure == "success" else 0.5 if measure == "value" else 0.98,
        prior_n=max(rules.known_n, 2) if measure == "success" else 2,
        least=(rules.labelled, rules.labelled_incumbent) if labelled else (1.0, 1.0),
    )


def _compared(outcome: Outcome) -> Literal["pair", "canary", "incumbent", ""]:
    """Which arms an outcome tells of; "" where nothing can be compared, because the other arm had no chance."""
    if outcome.candidate is not None and outcome.incumbent is not None:
        return "pair"
    if not 0 < outcome.share < 1 or (outcome.candidate is None and outcome.incumbent is None):
        return ""
    return "incumbent" if outcome.candidate is None else "canary"


def _value(rules: Rules, measure: Measure, answer: Answer | None) -> float | None:
    """The measure of an answer, from 0 to 1, higher being better; None where it is not known.

    "value" is (1 + success - usd / usd_per_success) / 2: on average 1/2 where a success costs usd_per_success, and
    higher where it costs less. Costs above twice a success's worth count as that.
    """
    if answer is None:
        return None
    if measure == "valid":
        return float(answer.valid)
    if measure == "in_time":
        return float(rules.late_s is None or answer.seconds <= rules.late_s)
    if measure == "success" or answer.success is None:
        return None if answer.success is None else float(answer.success)
    if answer.usd is None or rules.usd_per_success is None:
        return None
    return min(max((1 + answer.success - answer.usd / rules.usd_per_success) / 2, 0.0), 1.0)


def _margin(rules: Rules, step: Step, measure: Measure) -> float:
    success = rules.shadow_margin if step == "shadow" else rules.margin
    margins: dict[Measure, float] = {"valid": rules.valid_margin, "in_time": rules.late_margin}
    return margins.get(measure, success if measure == "success" else rules.value_margin / 2)


def _level(rules: Rules, measure: Measure) -> float:
    """The measure's part of the level at which a candidate is withdrawn: most for success, the rest in equal parts."""
    if measure == "success":
        return rules.level * _SUCCESS_LEVEL
    return rules.level * (1 - _SUCCESS_LEVEL) / (len(rules.measures()) - 1)


def _proof(rollout: Rollout) -> float:
    """The capital that every test needs for the next move."""
    shares = rollout.rules.shares
    part = 1.0 if rollout.step == "shadow" else (shares.index(rollout.share) + 1) / len(shares)
    proof: float = rollout.rules.level**-part
    return proof


def _next(rollout: Rollout) -> tuple[Step, float]:
    shares = rollout.rules.shares
    if rollout.step == "shadow":
        return "canary", shares[0]
    following = shares.index(rollout.share) + 1
    return ("canary", shares[following]) if following < len(shares) else ("live", rollout.rules.live_share)


def _name(rollout: Rollout) -> str:
    """The incumbent's name; none was released before where it is ""."""
    return rollout.incumbent or "what is configured"


def _odds(capital: float, needed: float) -> str:
    return f"evidence {capital:.3g} of {needed:.3g}"
