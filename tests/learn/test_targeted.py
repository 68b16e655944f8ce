"""What small models got wrong: in clusters, and with more weight."""

from __future__ import annotations

import json
from typing import Any

from smallfirst.learn.card import Folder
from smallfirst.learn.dataset import Row, WrongRow
from smallfirst.learn.targeted import ALIKE, FAILED, targets, weighted

TEXTS = {
    "cut": ("the tape was cut open", "opened"),
    "torn": ("the tape was torn open", "opened"),
    "wet": ("rain got into the box", "wet"),
    "soaked": ("the box is soaked by rain", "wet"),
    "flat": ("squashed flat by heavy parcels", "crushed"),
}


def row(name: str, text: str, damage: str) -> Row:
    completion = json.dumps({"damage": damage, "place": "door"})
    return Row(name, name, 0.0, "large", {}, {}, f"user: {text}\n", completion)


def folder(*wrong: WrongRow) -> Folder:
    rows = tuple(row(name, *said) for name, said in TEXTS.items())
    empty: Any = ()
    card: Any = None
    return Folder(card, {"train": rows, "calibration": empty, "test": empty}, wrong, "")


def answer(damage: str, place: str = "door") -> str:
    return json.dumps({"damage": damage, "place": place})


def test_without_failures_all_weigh_the_same() -> None:
    """Nothing is a target where nothing failed."""
    assert targets(folder()).clusters == ()
    assert {example.weight for example in weighted(folder())} == {1.0}


def test_failures_and_what_is_like_them_weigh_more() -> None:
    """A failed call weighs most, its nearest neighbours with the same right value too; others as before."""
    found = targets(folder(WrongRow("cut", answer("wet"))))
    assert [cluster.places for cluster in found.clusters] == [("damage",)]
    assert found.weights == {"cut": FAILED, "torn": ALIKE}
    assert {e.id: e.weight for e in weighted(folder(WrongRow("cut", answer("wet"))))}["flat"] == 1.0


def test_failures_are_gathered_by_where_they_differ() -> None:
    """Answers that are wrong in the same place are one cluster, the largest first; what is no JSON is its own."""
    found = targets(
        folder(
            WrongRow("cut", answer("wet")),
            WrongRow("wet", answer("opened")),
            WrongRow("flat", answer("crushed", "van")),
            WrongRow("soaked", "no idea"),
        )
    )
    assert [(c.places, c.examples) for c in found.clusters] == [
        (("damage",), ("cut", "wet")),
        (("",), ("soaked",)),
        (("place",), ("flat",)),
    ]


def test_failures_of_other_splits_do_not_count() -> None:
    """Only training examples are weighted, whatever failed."""
    assert targets(folder(WrongRow("elsewhere", answer("wet")))).weights == {}
