"""From a configuration to live parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.assemble import StagePricing, assemble
from smallfirst.backends.fake import FakeBackend
from smallfirst.config import parse
from smallfirst.types import Request, Sampling, Stage, Usage


@pytest.mark.parametrize(("given", "usd"), [("", 2.0), ("machine_usd_per_hour = 0", 0.0)])
def test_machine_time_is_priced_by_the_model_then_by_default(given: str, usd: float) -> None:
    """A model's own price of its machine goes first, and 0 is a price."""
    text = f"machine_usd_per_hour = 2.0\n[models.m]\nbackend = 'llamacpp'\nweights = 'x.gguf'\n{given}"
    cost = StagePricing(parse(text, {})).cost(Stage("m", FakeBackend(), "m"), Usage(busy_seconds=3600.0))
    assert cost == (usd, 0.0)


@given(text=st.text(), answer=st.integers(0, 50), written=st.booleans())
def test_no_answer_costs_more_than_was_expected(text: str, answer: int, written: bool) -> None:
    """Text sent cannot have more tokens than bytes, nor an answer more than allowed, whichever price applies."""
    price = "price = {input = 1.0, output = 4.0, cache_write = 1.25}"
    pricing = StagePricing(parse(f"[models.m]\nbackend = 'openai'\nmodel = 'm'\n{price}", {}))
    stage, said = Stage("m", FakeBackend(), "m"), {"role": "user", "content": text}
    asked = Request("chat", {"messages": [said]}, "m", (said,), sampling=Sampling(max_tokens=50))
    sent = len(text.encode("utf-8", "surrogatepass"))
    usage = Usage(sent, answer, cache_write_tokens=sent if written else 0)
    assert (pricing.cost(stage, usage)[0] or 0) <= (pricing.expected(stage, asked) or 0)


@pytest.mark.parametrize(
    ("weights", "model"), [("/srv/models/tiny-1.gguf", "tiny-1"), ("smollm2-135m", "smollm2-135m"), ("", "m")]
)
async def test_clients_see_a_models_name_and_no_path(tmp_path: Path, weights: str, model: str) -> None:
    """Weights given by path are known by their file's name, weights of the catalogue by theirs."""
    tables = f"[models.m]\nbackend = 'fake'\nweights = '{weights}'\n[store]\nurl = 'sqlite:///{tmp_path}/x.db'"
    async with assemble(parse(tables, {}), {}) as parts:
        assert parts.candidates["m"].stage.model == model
