"""The estimator on channels of known information, and the report on compressors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from smallfirst.compress import cases as case_files
from smallfirst.compress import information as measured
from smallfirst.compress.base import Compressed, Empty, Identity, Lead, ModelShape, Random, count_tokens, sentences
from smallfirst.compress.cases import Case
from smallfirst.compress.estimate import estimate, pointwise_bits, rate
from smallfirst.compress.negatives import swapped
from smallfirst.compress.scoring import Ask, Cached, LexicalScorer, PromptScorer, Scored
from smallfirst.compress.tokens import Continuation
from smallfirst.errors import DataError
from smallfirst.types import Usage

LOGS = arrays(np.float64, (5, 2, 5), elements=st.floats(-300, 0))
SHIPS = "Alba 1911 Ann, Brio 1872 Bob, Cora 1950 Cyd, Dory 1933 Dot, Echo 1804 Eve, Gale 1862 Gus, Hera 1949 Hal"
CASES = [
    Case(f"The ship {name} left in {year}. It was raining. The captain was {captain} Ray.", "Who was the captain?")
    for name, year, captain in (ship.split() for ship in SHIPS.split(","))
]


def gauss(bits: float, seed: int, count: int = 20, summaries: int = 5) -> np.ndarray:
    """Log-probabilities of a Gaussian channel in four dimensions with `bits` of information."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, math.sqrt(2 ** (bits / 2) - 1), (count, 4))
    z = x[:, None] + rng.normal(size=(count, summaries, 4))
    return -0.5 * ((z[:, :, None] - x[None, None]) ** 2).sum(-1)


@pytest.mark.parametrize("bits", [0.68, 2.18, 4.43])
def test_both_forms_bracket_a_known_channel(bits: float) -> None:
    """From the lower form's lower end to the upper form's upper end lies the truth, for at least nine seeds of ten."""
    found = [estimate(gauss(bits, seed), resamples=40, seed=seed) for seed in range(10)]
    held = sum(e.information.low <= bits <= e.leave_one_out.high for e in found)
    assert held >= 9


def test_identical_contexts_give_zero_and_disjoint_ones_log_n() -> None:
    """Where every context says the same there are 0 bits, where each is certain log2 N, and the intervals say so."""
    same = estimate(np.full((8, 1, 8), -5.0)).information
    assert same.value == same.low == 0
    assert same.high == pytest.approx(0)
    apart = estimate(np.where(np.eye(8, dtype=bool)[:, None], -5.0, -2000.0))
    assert (apart.information.value, apart.information.low) == pytest.approx((3, 3))
    assert apart.saturated


def test_permuted_pairs_are_clipped_after_averaging() -> None:
    """Summaries paired with wrong contexts give 0 bits, and the mean below 0 is told beside it."""
    wrong = estimate(np.where(np.roll(np.eye(8, dtype=bool), 1, axis=0)[:, None], -5.0, -50.0))
    assert wrong.information.value == 0
    assert wrong.unclipped < -10


@given(LOGS)
@settings(max_examples=12, deadline=None)
def test_bounds(logs: np.ndarray) -> None:
    """Information is between 0 and log2 N, and never above its leave-one-out form."""
    found = estimate(logs, resamples=5)
    assert 0 <= found.information.value <= found.bound + 1e-9
    assert found.information.value <= found.leave_one_out.value + 1e-9
    assert found.tuned is not None
    assert 0 <= found.tuned.value <= found.bound + 1e-9


@given(LOGS, arrays(np.float64, (5, 2, 1), elements=st.floats(-100, 100)), st.permutations(range(5)))
@settings(max_examples=12, deadline=None)
def test_invariance(logs: np.ndarray, shift: np.ndarray, order: Sequence[int]) -> None:
    """What a scorer thinks of a summary as such, and the order of contexts, do not change its information."""
    value = estimate(logs, resamples=5).unclipped
    assert estimate(logs + shift, resamples=5).unclipped == pytest.approx(value, abs=1e-6)
    moved = logs[list(order)][:, :, list(order)]
    assert estimate(moved, resamples=5).unclipped == pytest.approx(value, abs=1e-6)


def test_temperature_mends_an_overconfident_scorer() -> None:
    """A scorer that is eight times too sure loses bits, and the temperature of the other half gives them back."""
    true, sure = (estimate(times * gauss(2.18, 0), resamples=5) for times in (1, 8))
    assert sure.information.value < true.information.value - 0.3
    assert sure.temperature == pytest.approx(8, rel=0.5)
    assert sure.tuned is not None
    assert sure.tuned.value == pytest.approx(true.information.value, abs=0.2)


def test_hard_negatives_raise_the_bound() -> None:
    """Told apart from three copies too, a context has two bits more; not told apart from them, none more."""
    logs = np.where(np.eye(8, dtype=bool)[:, None], -5.0, -2000.0)
    assert estimate(logs, np.full((8, 1, 3), -2000.0)).information.value == pytest.approx(5)
    assert estimate(logs, np.full((8, 1, 3), -5.0)).information.value == pytest.approx(3)
    missing = np.full((8, 1, 3), np.nan)
    assert estimate(logs, missing).bound == pytest.approx(3)


def test_one_context_can_be_told_from_its_copies() -> None:
    """A single document has information against its copies, without an interval."""
    found = estimate(np.array([[[-1.0]]]), np.array([[[-1000.0]]]))
    assert found.information.value == pytest.approx(1)
    assert found.information.low is None


IMPOSSIBLE = [np.zeros(shape) for shape in ((2, 1, 3), (2, 2), (1, 1, 1))]
IMPOSSIBLE += [np.full((2, 1, 2), value) for value in (-np.inf, np.nan)]


@pytest.mark.parametrize("logs", IMPOSSIBLE)
def test_impossible_scores_are_refused(logs: np.ndarray) -> None:
    """Wrong shapes, infinities, NaN and a lone context are errors that say what is allowed."""
    with pytest.raises(ValueError, match=r"allowed|finite|one context"):
        estimate(logs)


def test_rate_is_bits_over_tokens() -> None:
    """The rate is total bits over total tokens; of empty summaries there is none."""
    assert rate(np.array([2.0, 4.0]), np.array([10.0, 20.0])).value == pytest.approx(0.2)
    assert rate(np.zeros(2), np.zeros(2)).value is None


def test_pointwise_bits() -> None:
    """One summary has log2 of how many contexts it excludes: all of three others 2 bits, none 0."""
    assert pointwise_bits(-1.0, np.array([-900.0] * 3)) == pytest.approx(2)
    assert pointwise_bits(-1.0, np.array([-1.0] * 3)) == pytest.approx(0)


async def test_a_report_of_known_compressors() -> None:
    """All of a context keeps more than its beginning, boilerplate and nothing keep 0 bits; without a model no FLOPs."""
    scorer = LexicalScorer()
    reports = {}
    for compressor in (Identity(), Lead(), Empty()):
        made = await measured.summarise(compressor, CASES, 8)
        reports[compressor.name] = await measured.measure(
            CASES, made, scorer, copies=2, baseline=compressor.name == "lead", resamples=50
        )
    told = {name: report.estimate.information.value for name, report in reports.items()}
    assert told["identity"] > told["lead"] > told["empty"] == 0
    assert reports["identity"].decode_flops.value == 0
    assert reports["lead"].baseline is not None
    assert reports["empty"].rate.value is None
    assert any("empty" in note for note in reports["empty"].notes)
    fixed = measured.given(CASES, [["The ship left in rain."]] * len(CASES))
    assert (await measured.measure(CASES, fixed, scorer, resamples=20)).estimate.information.value == pytest.approx(
        0, abs=0.05
    )


async def test_flops_are_those_of_the_formula() -> None:
    """2 P + 2 layers x context x width for every token, those read and those written apart."""
    shape = ModelShape(parameters=100, layers=2, width=10)
    made = Compressed("x", 3, 1, usage=Usage(input_tokens=3, output_tokens=2))
    summaries = measured.Summaries("model", 5, ((made,),) * len(CASES), 0.0, None)
    report = await measured.measure(CASES, summaries, LexicalScorer(), shape=shape, baseline=False, resamples=20)
    assert report.prefill_flops.value == 200 * 3 + 40 * (1 + 2 + 3)
    assert report.decode_flops.value == 200 * 2 + 40 * (4 + 5)
    unknown = await measured.measure(CASES, summaries, LexicalScorer(), baseline=False, resamples=20)
    assert unknown.decode_flops is None


async def test_information_of_one_summary() -> None:
    """A summary with the names of its context tells it from swapped copies; one without them does not."""
    case = CASES[0]
    others = swapped(case.context, 3)
    whole = await measured.pointwise(LexicalScorer(), case.context, case.question, case.context, others)
    vague = await measured.pointwise(LexicalScorer(), case.context, case.question, "It was raining.", others)
    assert whole > 1.5 > 0.2 > vague
    with pytest.raises(DataError, match="other contexts"):
        await measured.pointwise(LexicalScorer(), case.context, "", "x", [])


async def test_one_document_alone_is_refused_without_copies() -> None:
    """One document has nothing to be told from, unless hard negatives of it are made."""
    made = measured.given(CASES[:1], [[CASES[0].context]])
    with pytest.raises(DataError, match="two contexts"):
        await measured.measure(CASES[:1], made, LexicalScorer())
    report = await measured.measure(CASES[:1], made, LexicalScorer(), copies=3, baseline=False, resamples=20)
    assert report.estimate.information.value > 1.5


def test_hard_negatives_change_what_the_question_asks_about() -> None:
    """Copies differ from the document and each other, change the asked sentence first, keep the question's names."""
    text = "The bridge of Ann Smith opened in 1987. Rain fell. It was paid for by Carl Jung with 300 dollars."
    first, *_ = copies = swapped(text, 4, question="When did the bridge of Ann Smith open?")
    assert len({text, *copies}) == 5
    assert "1987" not in first
    assert "Ann Smith" in first
    assert "300" in first
    assert swapped(text, 4) == swapped(text, 4)
    assert swapped("nothing here changes", 3) == []


@given(st.text(), st.integers(1, 3))
def test_copies_of_any_text_differ(text: str, count: int) -> None:
    """Whatever a document holds, its copies are others, and no more than asked for."""
    copies = swapped(text, count)
    assert text not in copies
    assert len(copies) == len(set(copies)) <= count


@given(st.text())
def test_sentences_lose_nothing(text: str) -> None:
    """Pieces joined are the text, unless it is blank; none of them is blank."""
    pieces = sentences(text)
    assert "".join(pieces) == (text if text.strip() else "")
    assert all(piece.strip() for piece in pieces)


@given(st.text(min_size=1), st.integers(1, 50))
async def test_selections_are_parts_of_the_text(text: str, budget: int) -> None:
    """What lead-k and random-k return stands in the text, and is within the budget where one sentence is."""
    for compressor in (Lead(), Random()):
        made = await compressor.compress(text, "", budget)
        assert all(piece.strip() in text for piece in sentences(made.text))
        assert made.tokens_out <= max(budget, *map(count_tokens, sentences(text) or [""]))


class Letters:
    """A token model that reads bytes and likes those it has read in the context."""

    name, window, shape, begin = "letters", 40, ModelShape(10, 1, 4), [0]

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    async def logprobs(self, context: Sequence[int], continuations: Sequence[Continuation]) -> list[float]:
        return [
            sum(math.log(0.5 / 256 + 0.5 * context.count(t) / len(context)) for t in c.tokens[c.given :])
            for c in continuations
        ]


async def test_long_contexts_are_read_in_pieces() -> None:
    """A context over the window gives the mean probability of its pieces, and the report says so."""
    scorer = PromptScorer(Letters(), template=None)
    scorer._template = type(scorer._template)(tail=">")  # a short prompt for a short window
    scored = await scorer.score("a" * 30 + "b" * 30, [Ask("", "ab"), Ask("", "")])
    assert scored.chunks == 2
    assert scored.logprobs[1] == 0.0
    pieces = [(await scorer.score(part, [Ask("", "ab")])).logprobs[0] for part in ("a" * 30, "b" * 30)]
    assert scored.logprobs[0] == pytest.approx(np.log(np.exp(pieces).mean()))
    texts = [Case("a" * 60), Case("b" * 60)]
    report = await measured.measure(
        texts, measured.given(texts, [["aa"], ["bb"]]), scorer, baseline=False, resamples=20
    )
    assert any("in pieces" in note for note in report.notes)
    with pytest.raises(DataError, match="room for its context"):
        await scorer.score("a", [Ask("", "a" * 39)])


class Counting(LexicalScorer):
    """Counts what it is asked."""

    asked = 0

    async def score(self, context: str, asks: Sequence[Ask]) -> Scored:
        self.asked += len(asks)
        return await super().score(context, asks)


async def test_scores_are_kept_and_gone_on_from(tmp_path: Path) -> None:
    """A second run asks nothing again, one with a broken last line only what is missing; other files are refused."""
    file, inner = tmp_path / "scores.jsonl", Counting()
    made = measured.given(CASES, [[case.context] for case in CASES])

    async def run() -> float:
        scorer = Cached(inner, file)
        await scorer.start()
        report = await measured.measure(CASES, made, scorer, baseline=False, resamples=20)
        await scorer.close()
        return report.estimate.unclipped

    first = await run()
    inner.asked = 0
    assert await run() == first
    assert inner.asked == 0
    file.write_bytes(file.read_bytes()[:-9])
    assert await run() == first
    assert inner.asked == 1
    file.write_text("hello\n")
    with pytest.raises(DataError, match="no file of scores"):
        await run()


def test_bad_files_are_named(tmp_path: Path) -> None:
    """Binary junk, a wrong line and a file without documents are errors; odd documents are told of."""
    file = tmp_path / "cases.jsonl"
    file.write_bytes(b"\xff\xfe\x00junk")
    with pytest.raises(DataError, match="line 1"):
        case_files.read(file)
    with pytest.raises(DataError, match="There is no file"):
        case_files.read(tmp_path / "none")
    file.write_text('{"context": "a"}\n{"question": "b"}\n')
    with pytest.raises(DataError, match="line 2"):
        case_files.read(file)
    file.write_text("\n")
    with pytest.raises(DataError, match="holds no document"):
        case_files.read(file)
    rows = [
        {"context": " "},
        {"context": ["一", "二"]},
        {"context": "x"},
        {"context": "x"},
        {"context": "\x00\x01\x02a"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = case_files.read(file)
    assert [case.context for case in found.cases][:2] == ["一\n\n二", "x"]
    assert len(found.notes) == 3


def test_lines_end_where_json_lines_end(tmp_path: Path) -> None:
    """Separators of Unicode inside a document, unescaped, do not break its line."""
    file = tmp_path / "cases.jsonl"
    file.write_text(json.dumps({"context": "a\u2028b\x85c"}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert [case.context for case in case_files.read(file).cases] == ["a\u2028b\x85c"]


async def test_the_lexical_scorer_reads_every_script() -> None:
    """Chinese text is likelier after the Chinese document that it quotes; junk gets a finite score."""
    scorer = LexicalScorer()
    asks = [Ask("", "人口是1400万"), Ask("", "\x00\x01")]
    right = await scorer.score("东京的人口是1400万。", asks)
    wrong = await scorer.score("The population is 14 million.", asks)
    assert right.logprobs[0] > wrong.logprobs[0] + 5
    assert all(map(math.isfinite, right.logprobs))
