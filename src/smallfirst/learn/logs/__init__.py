"""Logs of model calls that other tools wrote. A file a format; `FORMATS` makes each by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from smallfirst.learn.logs.entry import Entry, Format
from smallfirst.learn.logs.langfuse import Langfuse
from smallfirst.learn.logs.litellm import LiteLLM
from smallfirst.learn.logs.openai import OpenAI
from smallfirst.learn.logs.otel import OTel
from smallfirst.learn.logs.tensorzero import TensorZero

__all__ = ["FORMATS", "Entry", "Format"]

FORMATS: Mapping[str, Callable[[], Format]] = {
    "otel": OTel,
    "litellm": LiteLLM,
    "langfuse": Langfuse,
    "tensorzero": TensorZero,
    "openai": OpenAI,
}
"""In the order in which an item is tried: the least particular last."""
