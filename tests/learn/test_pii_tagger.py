"""The tagger: how it is trained, and what the shipped one finds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.learn.pii.corpus import Corpus, Example, held_out_value, pools, templates
from smallfirst.learn.pii.tagger import ARTIFACT, KINDS, Tagger, spans, tokenise, viterbi
from smallfirst.learn.pii.train import gradients, labelled, save, train


@pytest.fixture(scope="module")
def shipped() -> Tagger:
    return Tagger.load()


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Sixty sentences with a person and a place each."""
    made = []
    for number in range(60):
        name, town = f"{'ABCDEF'[number % 6]}nna Berg{number % 7 * 's'}", f"{'KLMNO'[number % 5]}orton"
        text = f"My name is {name} and I live in {town}, thanks for your help with the order."
        spans = [(text.index(value), text.index(value) + len(value)) for value in (name, town)]
        made.append(Example(text, ((*spans[0], "PERSON"), (*spans[1], "LOCATION"))))
    return made


def test_the_artifact_is_small() -> None:
    """What ships with the package stays below three megabytes."""
    assert ARTIFACT.stat().st_size < 3_000_000


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("My name is Ludmila Harrowgate and I need help.", "PERSON", "Ludmila Harrowgate"),
        ('{"customer_name": "Ludmila Harrowgate", "total": 12}', "PERSON", "Ludmila Harrowgate"),
        (
            "Please ship it to 48 Quillan Street, Bradville, OR 97201.",
            "ADDRESS",
            "48 Quillan Street, Bradville, OR 97201",
        ),
        ("She works at Brindlewood Logistics Ltd as a driver.", "ORG", "Brindlewood Logistics Ltd"),
        ('{"origin": "Lisbon", "nights": 3}', "LOCATION", "Lisbon"),
        ("您好，我叫王晓丽，想查询订单。", "PERSON", "王晓丽"),
        ("请寄到杭州市西湖区文三路90号，谢谢。", "ADDRESS", "杭州市西湖区文三路90号"),
    ],
)
def test_the_shipped_tagger_knows_plain_cases(shipped: Tagger, text: str, kind: str, value: str) -> None:
    """Names, addresses, organisations and places in usual places are found in full."""
    assert (kind, value) in [(finding.kind, finding.text) for finding in shipped(text)]


@pytest.mark.parametrize(
    "text",
    [
        "You are a helpful assistant. Use the tools below and never make up details.",
        '{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}',
        "SELECT status, COUNT(*) FROM orders WHERE price > 10 GROUP BY status;",
        "The order was shipped on Monday and will arrive by Friday.",
        "ERROR ConnectionTimeout: request to /api/v2/items failed after 30 s",
        "请调用工具查询订单状态，并返回JSON。",
    ],
)
def test_the_shipped_tagger_leaves_technical_text(shipped: Tagger, text: str) -> None:
    """Prompts, schemas, code and logs without names stay whole."""
    assert shipped(text) == []


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(deadline=None)
def test_findings_are_clean_slices(shipped: Tagger, text: str) -> None:
    """Whatever the text, findings are apart, in order, of a known kind, and hold no quote or bracket."""
    last = 0
    for finding in shipped(text):
        assert finding.start >= last
        assert finding.text == text[finding.start : finding.end]
        assert finding.kind in KINDS
        assert not set(finding.text) & set('"{}[]<>\\')
        last = finding.end


def test_tokens_know_the_label_that_they_stand_under() -> None:
    """Keys of JSON, words before a colon and markup name what follows on the line."""
    tokens = tokenise('{"customer_name": "Ann"}\nCity: Rome\nfree text <town>Bath</town>')
    near = dict(zip(tokens.texts, tokens.far, strict=True))
    assert near["Ann"] == "customer name"
    assert near["Rome"].endswith("city")
    assert near["free"] == ""
    assert near["Bath"].endswith("town")


def test_training_is_reproducible_and_survives_storing(tmp_path: Path, examples: list[Example]) -> None:
    """The same examples and seed give the same weights, and the stored tagger tags as the fitted one."""
    one, other = (train(examples, epochs=1, seed=1) for _ in range(2))
    assert np.array_equal(one.weights, other.weights)
    save(one, tmp_path / "tagger.npz")
    loaded = Tagger.load(tmp_path / "tagger.npz")
    tokens = [tokenise(example.text) for example in examples]
    alike = [a == b for t in tokens for a, b in zip(one.labels(t), loaded.labels(t), strict=True)]
    assert np.mean(alike) > 0.99


def test_training_fits_its_examples(examples: list[Example]) -> None:
    """After a few epochs most labels of the training examples are right."""
    tagger = train(examples, epochs=6)
    right = []
    for example in examples:
        tokens = tokenise(example.text)
        gold = labelled(tokens.starts, example)
        right += [a == b for a, b in zip(tagger.labels(tokens), gold, strict=True) if b]
    assert np.mean(right) > 0.9


def test_gradients_are_those_of_the_likelihood() -> None:
    """Finite differences of the loss agree with the analytic gradients."""
    rng = np.random.default_rng(0)
    scores, transitions = rng.normal(size=(2, 4, 3)), rng.normal(size=(3, 3))
    gold = rng.integers(0, 3, (2, 4)).astype(np.int8)
    loss, by_score, by_transition = gradients(scores, transitions, gold)
    moved = scores.copy()
    moved[1, 2, 0] += 1e-6
    assert (gradients(moved, transitions, gold)[0] - loss) / 1e-6 == pytest.approx(by_score[1, 2, 0] * 8, abs=1e-4)
    bent = transitions.copy()
    bent[2, 1] += 1e-6
    assert (gradients(scores, bent, gold)[0] - loss) / 1e-6 == pytest.approx(by_transition[2, 1] * 8, abs=1e-4)


def test_the_best_path_is_found() -> None:
    """Viterbi's path scores as much as the best of all paths."""
    rng = np.random.default_rng(1)
    scores, transitions = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(3, 3)).astype(np.float32)

    def value(path: tuple[int, ...]) -> float:
        steps = sum(transitions[a, b] for a, b in pairwise(path))
        return float(sum(scores[at, label] for at, label in enumerate(path)) + steps)

    best = max(value(path) for path in np.ndindex(*(3,) * 5))
    assert value(tuple(viterbi(scores, transitions))) == pytest.approx(best)


def test_labels_make_spans() -> None:
    """B begins an entity, I continues one of its kind, an I without one begins too."""
    assert spans([0, 1, 2, 0, 4, 1, 1]) == [(1, 2, "PERSON"), (4, 4, "ADDRESS"), (5, 5, "PERSON"), (6, 6, "PERSON")]


def test_training_and_held_out_parts_share_nothing() -> None:
    """Templates and names are in one part only; examples label exactly what their spans cut out."""
    for name in ("en", "zh"):
        assert not set(templates(name, True)) & set(templates(name, False))
    for name in ("first", "last", "city", "org"):
        assert all(held_out_value(value) for value in pools(True, 3)[name])
        assert not any(held_out_value(value) for value in pools(False, 3)[name])
    for example in Corpus(1, held_out=True, pool=3).examples(200):
        last = 0
        for start, end, kind in example.spans:
            assert last <= start < end <= len(example.text)
            assert kind in KINDS
            last = end
