"""What a call costs: hosted models by a price list, local models by the machine's time.

Hosted prices come from the copy of `genai-prices` that is installed; nothing here asks the network for newer ones.
A price that is not known is None, never 0: whoever shows a cost says "unknown price" then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

from smallfirst.errors import ConfigError
from smallfirst.types import Usage

_MILLION = 1_000_000
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs: USD per million tokens by kind, plus `per_request` USD, or `machine_usd_per_hour`.

    A kind of input tokens without a price of its own (None) costs what `input` costs.
    Raises ConfigError when a figure is negative or both ways of pricing are given.
    """

    input: float = 0.0
    output: float = 0.0
    cached_input: float | None = None
    cache_write: float | None = None
    per_request: float = 0.0
    machine_usd_per_hour: float | None = None

    def __post_init__(self) -> None:
        tokens = (self.input, self.output, self.cached_input or 0.0, self.cache_write or 0.0, self.per_request)
        if min(*tokens, self.machine_usd_per_hour or 0.0) < 0:
            raise ConfigError(f"A price cannot be negative: {self!r}.", hint="Give USD per million tokens or per hour.")
        if self.machine_usd_per_hour is not None and any(tokens):
            raise ConfigError(
                f"A model is priced by tokens or by machine time, not both: {self!r}.",
                hint="Keep `machine_usd_per_hour` for local models and drop the other figures.",
            )

    def cost(self, usage: Usage) -> float | None:
        """USD of one call; None when machine time is the price and `usage.busy_seconds` was not measured.

        Tokens: fresh x input + cached x cached_input + written x cache_write + output x output, over 10^6, where
        fresh = input_tokens - cached_input_tokens - cache_write_tokens. Machine: busy seconds x USD per hour / 3600.
        """
        if self.machine_usd_per_hour is not None:
            if usage.busy_seconds is None:
                return None
            return usage.busy_seconds * self.machine_usd_per_hour / _SECONDS_PER_HOUR
        cached = self.input if self.cached_input is None else self.cached_input
        written = self.input if self.cache_write is None else self.cache_write
        fresh = max(usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens, 0)
        tokens = (
            fresh * self.input
            + usage.cached_input_tokens * cached
            + usage.cache_write_tokens * written
            + usage.output_tokens * self.output
        )
        return tokens / _MILLION + self.per_request


class PriceList:
    """Prices by model name: `overrides` first (exact names), then `genai-prices`, looked up once per model."""

    def __init__(self, overrides: Mapping[str, Price] | None = None) -> None:
        self._overrides = dict(overrides or {})
        self._tiers: dict[int, tuple[tuple[int, Price], ...]] = {}
        get_snapshot()  # loading the list takes a third of a second: now, not within the first call

    def cost(self, model: str, provider: str | None, usage: Usage) -> float | None:
        """USD of one call to `model`, or None when its price is unknown.

        `provider` is an id of `genai-prices` ("openai", "anthropic", "azure"); None guesses it from the model's name.
        `usage.input_tokens` counts every input token, cached and cache-written ones too.
        """
        price = self._overrides.get(model) or self._listed(model, provider, usage.input_tokens)
        return None if price is None else price.cost(usage)

    def _listed(self, model: str, provider: str | None, input_tokens: int) -> Price | None:
        info = _find(model, provider)
        if info is None:
            return None
        # Some models are cheaper at night, so the prices in force are asked for at each call.
        prices = info.get_prices(datetime.now(tz=UTC))
        tiers = self._tiers.get(id(prices))  # the snapshot keeps `prices` alive, so its id stays its own
        if tiers is None:
            tiers = self._tiers[id(prices)] = _tiers(prices)
        return next((price for start, price in tiers if input_tokens > start), None)


@lru_cache(maxsize=4096)
def _find(model: str, provider: str | None) -> ModelInfo | None:
    try:
        return get_snapshot().find_provider_model(model, None, provider, None)[1]
    except LookupError:
        return None


def _tiers(prices: ModelPrice) -> tuple[tuple[int, Price], ...]:
    """(exclusive lower bound on input tokens, the price above it), highest bound first; empty without token prices.

    A long prompt moves the whole call to the higher tier, as the providers bill it.
    """
    fields = vars(prices)
    if fields.get("input_mtok") is None and fields.get("output_mtok") is None:
        return ()
    starts = {tier.start for value in fields.values() if isinstance(value, TieredPrices) for tier in value.tiers}
    return tuple((start, _price(fields, start)) for start in sorted(starts | {-1}, reverse=True))


def _price(fields: Mapping[str, Decimal | TieredPrices | None], start: int) -> Price:
    def rate(name: str) -> float | None:
        value = fields.get(name)
        if isinstance(value, TieredPrices):
            value = next((tier.price for tier in reversed(value.tiers) if tier.start <= start), value.base)
        return None if value is None else float(value)

    return Price(
        input=rate("input_mtok") or 0.0,
        output=rate("output_mtok") or 0.0,
        cached_input=rate("cache_read_mtok"),
        cache_write=rate("cache_write_mtok"),
        per_request=(rate("requests_kcount") or 0.0) / 1000,
    )
