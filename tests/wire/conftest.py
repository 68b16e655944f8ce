"""The official clients, answered by given bytes instead of a network."""

from __future__ import annotations

from collections.abc import Callable

import anthropic
import httpx2
import openai
import pytest


def _transport(content: bytes) -> httpx2.Client:
    kind = "text/event-stream" if content.startswith((b"data:", b"event:")) else "application/json"
    return httpx2.Client(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(200, content=content, headers={"content-type": kind}))
    )


@pytest.fixture
def openai_client() -> Callable[[bytes], openai.OpenAI]:
    """An OpenAI client whose server answers with the given bytes."""
    return lambda content: openai.OpenAI(api_key="k", http_client=_transport(content), max_retries=0)


@pytest.fixture
def anthropic_client() -> Callable[[bytes], anthropic.Anthropic]:
    """An Anthropic client whose server answers with the given bytes."""
    return lambda content: anthropic.Anthropic(api_key="k", http_client=_transport(content), max_retries=0)
