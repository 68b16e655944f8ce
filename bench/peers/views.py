"""Recorded requests and answers as the peers read them: text, items, and the labels' columns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import Floats, Sample

Answer = Mapping[str, Any]


def question(request: Mapping[str, Any]) -> str:
    """The text of all messages, in order."""
    return "\n".join(_text(message.get("content")) for message in request["messages"])


def tools(request: Mapping[str, Any]) -> str:
    """Names, descriptions and parameters of the tools offered."""
    functions = [tool["function"] for tool in request.get("tools") or () if "function" in tool]
    return "\n".join(
        f"{function['name']} {function.get('description', '')} {json.dumps(function.get('parameters', {}))}"
        for function in functions
    )


def calls(answer: Answer) -> str:
    """The answer's calls as JSON with sorted keys; "[]" where it has none."""
    return json.dumps(list(answer["tool_calls"] or ()), sort_keys=True, ensure_ascii=False)


def response(answer: Answer) -> str:
    """The answer in one text: its calls, then its content."""
    return f"{calls(answer)}\n{_text(answer.get('content'))}".strip()


def agreement(one: Answer, other: Answer) -> float:
    """The share of (function, argument, value) items that two answers have in common (multiset Jaccard); 1 where both
    have no call."""
    first, second = _items(one), _items(other)
    union = (first | second).total()
    return (first & second).total() / union if union else 1.0


def margin(answer: Answer) -> float | None:
    """The mean over tokens of p(first) - p(second) from OpenAI's `logprobs`; None where they were not recorded."""
    tokens = (answer.get("logprobs") or {}).get("content") or ()
    tops = [sorted((np.exp(top["logprob"]) for top in token["top_logprobs"]), reverse=True) for token in tokens]
    margins = [top[0] - top[1] for top in tops if len(top) > 1]
    return float(np.mean(margins)) if margins else None


def column(rows: Sequence[Mapping[str, Any]], model: str) -> Floats:
    """One model's numbers or verdicts, shape (n,)."""
    return np.array([row[model] for row in rows], dtype=np.float64)


def fingerprint(sample: Sample, models: Sequence[str]) -> str:
    """The same for two samples exactly when their requests and these models' answers are the same."""
    seen = [sample.request, *(sample.answers[model] for model in models)]
    return json.dumps([models, seen], sort_keys=True)


def answers(samples: Sequence[Sample], model: str) -> list[Answer]:
    return [sample.answers[model] for sample in samples]


def _items(answer: Answer) -> Counter[str]:
    items = Counter[str]()
    for call in answer["tool_calls"] or ():
        items[call["name"]] += 1
        for key, value in call["arguments"].items():
            items[f"{call['name']} {key} {json.dumps(value, sort_keys=True)}"] += 1
    return items


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content or ())
