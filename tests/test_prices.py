"""Costs by price list and by machine time."""

from __future__ import annotations

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.errors import ConfigError
from smallfirst.prices import Price, PriceList
from smallfirst.types import Usage

MODELS = [
    (provider.id, model.id)
    for provider in get_snapshot().providers
    if provider.id in ("openai", "anthropic", "google", "mistral", "groq", "perplexity", "azure", "together")
    for model in provider.models
    if isinstance(model.prices, ModelPrice)
    and (vars(model.prices).get("input_mtok") is not None)
    and model.is_match(model.id)  # some of the list are not found by their own id
]


@given(
    model=st.sampled_from(MODELS),
    fresh=st.integers(0, 500_000),
    cached=st.integers(0, 300_000),
    written=st.integers(0, 10_000),
    output=st.integers(0, 100_000),
)
def test_costs_agree_with_the_price_list(
    model: tuple[str, str], fresh: int, cached: int, written: int, output: int
) -> None:
    """Every hosted model costs what genai-prices itself computes, cached, written and long prompts included."""
    provider, name = model
    tokens = fresh + cached + written
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=tokens, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=output
        ),
        name,
        provider_id=provider,
    )
    usage = Usage(tokens, output, cached_input_tokens=cached, cache_write_tokens=written)
    assert PriceList().cost(name, provider, usage) == pytest.approx(float(theirs.total_price), rel=1e-9, abs=1e-15)


def test_unknown_model_has_no_price() -> None:
    """A model that no list knows costs None, not 0, and the answer is the same when asked again."""
    prices = PriceList()
    assert prices.cost("my-finetune", None, Usage(1000, 1000)) is None
    assert prices.cost("my-finetune", "openai", Usage(1000, 1000)) is None
    assert prices.cost("my-finetune", "openai", Usage(1000, 1000)) is None


def test_provider_is_found_by_the_models_name() -> None:
    """Without a provider the model's name finds the same price as with it."""
    usage = Usage(1_000_000, 1_000_000)
    assert PriceList().cost("gpt-4o-mini", None, usage) == PriceList().cost("gpt-4o-mini", "openai", usage) != 0


def test_override_wins_over_the_list() -> None:
    """A configured price replaces the listed one, and cached tokens take their own rate."""
    prices = PriceList({"gpt-4o-mini": Price(input=10.0, output=20.0, cached_input=1.0)})
    usage = Usage(input_tokens=1_000_000, output_tokens=500_000, cached_input_tokens=400_000)
    assert prices.cost("gpt-4o-mini", "openai", usage) == pytest.approx(6.0 + 0.4 + 10.0)


def test_local_model_costs_machine_time() -> None:
    """A local model costs its busy seconds at the machine's hourly price, and is unknown without a measurement."""
    prices = PriceList({"smollm2": Price(machine_usd_per_hour=0.36)})
    assert prices.cost("smollm2", None, Usage(500, 50, busy_seconds=2.0)) == pytest.approx(0.0002)
    assert prices.cost("smollm2", None, Usage(500, 50)) is None


def test_a_free_override_costs_nothing() -> None:
    """An operator may declare a model free: then its cost is 0.0, which is known."""
    assert PriceList({"mine": Price()}).cost("mine", None, Usage(500, 50)) == 0.0


@pytest.mark.parametrize(
    "figures", [{"input": -1.0}, {"machine_usd_per_hour": -0.1}, {"input": 1.0, "machine_usd_per_hour": 1.0}]
)
def test_impossible_prices_are_refused(figures: dict[str, float]) -> None:
    """Negative prices and two ways of pricing at once are configuration errors that name the figures."""
    with pytest.raises(ConfigError, match="Price"):
        Price(**figures)
