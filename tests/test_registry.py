"""registry: what follows from a release, a decision and a withdrawal."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from smallfirst.registry import Release, decided, move_to, released, version_id, watched, withdrawn
from smallfirst.rollout import Abort, Decision, Hold, Promote, Rules

RULES = Rules(shares=(0.05, 0.25), live_share=0.9)
CLEAN = Release("t")


def put(release: Release, version: str, to, *, share: float | None = None, now: float = 1.0) -> Release:
    return released(release, version, to, share=share, rules=RULES, rollout_id=f"r-{version}", now=now, by="ann")


def test_an_id_is_that_of_the_content() -> None:
    """The same files are the same version wherever they lie; other files, another prompt or server are another."""
    there, here = {"backend": "llamacpp", "weights": "/a"}, {"backend": "llamacpp", "weights": "/b"}
    made = version_id("t", there, "base", "adapter", {"kind": "full"})
    assert made == version_id("t", here, "base", "adapter", {"kind": "full"})
    assert made.startswith("t@")
    assert len(made) == len("t@") + 12
    others = [
        version_id("u", there, "base", "adapter", {"kind": "full"}),
        version_id("t", there, "base2", "adapter", {"kind": "full"}),
        version_id("t", there, "base", "adapter2", {"kind": "full"}),
        version_id("t", there, "base", "adapter", {"kind": "pruned"}),
        version_id("t", there, "", "", {}),
        version_id("t", here, "", "", {}),
    ]
    assert len({made, *others}) == 7


def test_versions_and_configured_stages_are_watched_apart() -> None:
    """A version's calibration is its own, that of a configured stage the task's."""
    assert watched("t", "t@0123456789ab") == "t@0123456789ab"
    assert watched("t", "small") == "t"
    assert watched("t", "u@0123456789ab") == "t"


def test_a_version_goes_its_way() -> None:
    """Shadow, canary, live: one rollout with the same arms; the former live one becomes the previous one."""
    first = put(CLEAN, "t@1", "live")
    assert (first.aliases, first.changed_by) == ({"live": "t@1"}, "ann")
    shadow = put(first, "t@2", "shadow", now=2.0)
    canary = put(shadow, "t@2", "canary", now=3.0)
    live = put(canary, "t@2", "live", now=4.0)
    assert shadow.aliases == canary.aliases == {"live": "t@1", "candidate": "t@2"}
    assert live.aliases == {"live": "t@2", "previous": "t@1"}
    steps = [one.rollout for one in (shadow, canary, live)]
    assert [(r.id, r.step, r.share, r.since, r.incumbent) for r in steps if r] == [
        ("r-t@2", "shadow", 0.0, 2.0, "t@1"),
        ("r-t@2", "canary", 0.05, 3.0, "t@1"),
        ("r-t@2", "live", 0.9, 4.0, "t@1"),
    ]


def test_a_share_given_by_hand_is_the_rollouts() -> None:
    """A canary begins at it and goes on to the larger ones; live ends the comparison with 1; a live one can change."""
    canary = put(CLEAN, "t@1", "canary", share=0.1)
    assert canary.rollout is not None
    assert (canary.rollout.share, canary.rollout.rules.shares) == (0.1, (0.1, 0.25))
    live = put(canary, "t@1", "live", share=1.0)
    assert live.rollout is not None
    assert live.rollout.share == 1.0
    less = put(live, "t@1", "live", share=0.8)
    assert less.rollout is not None
    assert (less.rollout.share, less.aliases) == (0.8, {"live": "t@1"})


def test_what_is_live_is_not_tried_against_itself() -> None:
    """Releasing the live version into shadow or canary changes nothing."""
    live = put(CLEAN, "t@1", "live")
    assert put(live, "t@1", "shadow") == put(live, "t@1", "canary") == live


def test_another_candidate_takes_the_place_of_the_first() -> None:
    """It begins a rollout of its own, without the first one's evidence."""
    tried = replace(put(CLEAN, "t@1", "shadow"), evidence="seen")
    assert put(tried, "t@1", "canary").evidence == "seen"
    other = put(tried, "t@2", "shadow")
    assert (other.candidate, other.evidence) == ("t@2", "")


def test_decisions_move_pointers() -> None:
    """Promotion by evidence ends live, an abort goes back to where the rollout began, holding changes nothing."""
    first = put(CLEAN, "t@1", "live")
    canary = put(first, "t@2", "canary")
    assert decided(canary, Hold(""), now=5.0) == canary
    wider = decided(canary, Promote("canary", 0.25, ""), now=5.0)
    assert wider.rollout is not None
    assert (wider.rollout.share, wider.candidate) == (0.25, "t@2")
    live = decided(wider, Promote("live", 0.9, ""), now=6.0)
    assert (live.aliases, live.changed_by) == ({"live": "t@2", "previous": "t@1"}, "rollout")
    assert decided(canary, Abort("success", ""), now=6.0).aliases == {"live": "t@1"}
    back = decided(live, Abort("success", ""), now=7.0)
    assert back.aliases == {"live": "t@1"}
    assert back.trial is None
    assert decided(back, Promote("live", 0.9, ""), now=8.0) == back


def test_withdrawing_takes_back_what_came_last() -> None:
    """First what is on trial, then the live version for the previous one, at last for what is configured."""
    both = put(put(put(CLEAN, "t@1", "live"), "t@2", "live", share=1.0), "t@3", "canary")
    assert both.aliases == {"live": "t@2", "previous": "t@1", "candidate": "t@3"}
    found = []
    for n in range(4):
        both = withdrawn(both, now=float(n), by="bob")
        found.append(both.aliases)
    assert found == [{"live": "t@2", "previous": "t@1"}, {"live": "t@1"}, {}, {}]


DECISIONS = st.sampled_from(
    [
        Hold("h"),
        Abort("success", "a"),
        Promote("canary", 0.25, "p"),
        Promote("live", 0.9, "p"),
        Promote("live", 1.0, "p"),
    ]
)
CHANGES = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(["t@1", "t@2", "t@3"]), st.sampled_from(["shadow", "canary", "live"])),
    st.tuples(st.just("decide"), DECISIONS),
    st.tuples(st.just("withdraw")),
)


@given(st.lists(CHANGES, max_size=12))
def test_pointers_and_rollout_never_disagree(changes: list[tuple]) -> None:
    """Whatever is done in whatever order: a candidate is exactly what is in shadow or canary, what is live by a rollout
    is the live version, no alias names another's version, and a move stands for every change."""
    release = CLEAN
    for n, (kind, *given_) in enumerate(changes):
        before, now = release, float(n + 1)
        if kind == "put":
            release = put(before, *given_, now=now)
        elif kind == "decide":
            release = decided(before, _possible(before, given_[0]), now=now)
        else:
            release = withdrawn(before, now=now, by="bob")
        step = release.rollout.step if release.rollout else ""
        assert bool(release.candidate) == (step in {"shadow", "canary"})
        if release.rollout and release.candidate:
            assert release.candidate == release.rollout.candidate != release.live
        if release.rollout and step == "live":
            assert release.live == release.rollout.candidate
        assert not release.previous or release.previous != release.live
        assert (move_to(before, release, "why") is None) == (before == release)


def _possible(release: Release, decision: Decision) -> Decision:
    """Only the canary goes to a larger canary."""
    step = release.rollout.step if release.rollout else ""
    if isinstance(decision, Promote) and decision.step == "canary" and step not in {"shadow", "canary"}:
        return Hold("")
    if isinstance(decision, Promote) and step == "shadow" and decision.step == "live":
        return Hold("")
    return decision
