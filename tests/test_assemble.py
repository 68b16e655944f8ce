"""From a configuration to live parts."""

from __future__ import annotations

import pytest

from smallfirst.assemble import StagePricing
from smallfirst.backends.fake import FakeBackend
from smallfirst.config import parse
from smallfirst.types import Stage, Usage


@pytest.mark.parametrize(("given", "usd"), [("", 2.0), ("machine_usd_per_hour = 0", 0.0)])
def test_machine_time_is_priced_by_the_model_then_by_default(given: str, usd: float) -> None:
    """A model's own price of its machine goes first, and 0 is a price."""
    text = f"machine_usd_per_hour = 2.0\n[models.m]\nbackend = 'llamacpp'\nweights = 'x.gguf'\n{given}"
    cost = StagePricing(parse(text, {})).cost(Stage("m", FakeBackend(), "m"), Usage(busy_seconds=3600.0))
    assert cost == (usd, 0.0)
