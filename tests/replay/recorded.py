"""Recorded calls made up for tests: two small models and a large one, right with chances that the request shows."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

CITIES = ("Oslo", "Lima", "Cairo", "Quito", "Accra", "Hanoi", "Turin", "Perth", "Dakar", "Minsk")
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


def lines(n: int, seed: int = 0, easy: float = 0.7) -> list[dict[str, Any]]:
    """Calls of which a share is easy: there both small models are right; on the others they often name another city."""
    rng = random.Random(seed)
    return [_line(f"call-{number}", rng, easy) for number in range(n)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as JSONL, gzipped if the name says so."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def answer(city: str, days: int, right: bool, **more: Any) -> dict[str, Any]:
    """An answer that calls the tool."""
    return {
        "tool_calls": [{"name": "get_weather", "arguments": {"city": city, "days": days}}],
        "correct": right,
        **more,
    }


def _line(name: str, rng: random.Random, easy: float) -> dict[str, Any]:
    city, days = rng.choice(CITIES), rng.randint(1, 9)
    others = [c for c in CITIES if c != city]
    sure = rng.random() < easy

    def small() -> dict[str, Any]:
        right = sure or rng.random() < 0.3
        return answer(city if right else rng.choice(others), days, right)

    large_right = rng.random() < 0.95
    said = answer(
        city if large_right else rng.choice(others), days, large_right, input_tokens=200.0, output_tokens=20.0
    )
    return {
        "id": name,
        "category": "simple",
        "request": {
            "messages": [{"role": "user", "content": f"What will the weather be in {city} over {days} days?"}],
            "tools": [TOOL],
        },
        "gold": {"get_weather": {"city": [city], "days": [days]}},
        "answers": {"tiny": small(), "other": small(), "gpt-4o": said},
    }
