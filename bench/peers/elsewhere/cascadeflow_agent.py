"""cascadeflow's own agent over recorded answers; runs in cascadeflow's environment.

Reads a JSON line for each call, {"request": OpenAI body, "answer": the small model's}, and prints a line for each:
{"score": quality less the threshold that it had to reach}, null where the agent did not ask the small model. The
agent, its OpenAI provider and all its settings are cascadeflow's; only the HTTP client answers from the record.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
from cascadeflow import CascadeAgent, ModelConfig  # type: ignore[import-not-found]

SMALL, LARGE = "recorded-small", "recorded-large"
COSTS = {SMALL: 0.0001, LARGE: 0.002}
JUST_BELOW = -1e-9


class Recorded:
    """An agent whose small model gives the answer set last, and whose large model says nothing of interest."""

    def __init__(self) -> None:
        models = [ModelConfig(name=name, provider="openai", cost=cost, api_key="none") for name, cost in COSTS.items()]
        self._agent = CascadeAgent(models=models)
        for name in COSTS:
            self._agent.model_providers[name].client = httpx.AsyncClient(transport=httpx.MockTransport(self._reply))
        self._checked = self._agent.cascade.tool_quality_validator.validate_tool_calls
        self._agent.cascade.tool_quality_validator.validate_tool_calls = self._check

    async def score(self, request: dict[str, Any], answer: dict[str, Any]) -> float | None:
        self._answer, self._asked, self._threshold = answer, False, None
        tools = request.get("tools")
        result = await self._agent.run(request["messages"], tools=tools, max_tokens=request.get("max_tokens", 1000))
        if not self._asked:
            return None
        threshold = self._threshold if self._threshold is not None else result.quality_threshold or 0.0
        margin = (result.quality_score or 0.0) - threshold
        return max(margin, 0.0) if result.draft_accepted else min(margin, JUST_BELOW)

    def _check(self, *given: Any, **named: Any) -> Any:
        result = self._checked(*given, **named)
        self._threshold = result.threshold_used
        return result

    def _reply(self, request: Any) -> Any:
        model = json.loads(request.content)["model"]
        self._asked |= model == SMALL
        message = self._message() if model == SMALL else {"role": "assistant", "content": "large"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return httpx.Response(200, json={"id": "recorded", "model": model, "choices": [choice], "usage": usage})

    def _message(self) -> dict[str, Any]:
        calls = [
            {
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
            }
            for index, call in enumerate(self._answer["tool_calls"] or ())
        ]
        if calls:
            return {"role": "assistant", "content": "", "tool_calls": calls}
        return {"role": "assistant", "content": self._answer.get("content") or ""}


async def main() -> None:
    agent = Recorded()
    for line in sys.stdin:
        print(json.dumps({"score": await agent.score(**json.loads(line))}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
