"""Agents built with three frameworks run against the gateway: a tool is called, its result goes back, a text ends."""

from __future__ import annotations

from typing import Any

import pytest
from recording import Loopback
from running import Running, Start, cascade, says


@pytest.fixture
async def gateway(start: Start, small: Loopback) -> Running:
    """A gateway whose model first calls a tool and then answers."""
    small.handlers = [says(None, ("get_weather", '{"city":"Paris"}')), says("Sunny.")]
    return await start(cascade("small_only", stages=["small"]))


def tool_results(small: Loopback) -> list[Any]:
    return [m["content"] for m in small.seen[1].body["messages"] if m["role"] == "tool"]


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_openai_agents_sdk(gateway: Running, small: Loopback, api: str) -> None:
    """The OpenAI Agents SDK, on both of OpenAI's APIs."""
    from agents import (
        Agent,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        RunConfig,
        Runner,
        function_tool,
    )

    @function_tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    model = OpenAIChatCompletionsModel if api == "chat" else OpenAIResponsesModel
    async with gateway.openai() as client:
        agent = Agent(name="a", instructions="Help.", tools=[get_weather], model=model("auto", client))
        done = await Runner.run(agent, "Weather in Paris?", run_config=RunConfig(tracing_disabled=True))
    assert done.final_output == "Sunny."
    assert tool_results(small) == ["sunny in Paris"]


@pytest.mark.filterwarnings("ignore::langgraph.warnings.LangGraphDeprecatedSinceV10")  # moved to langchain
async def test_langgraph(gateway: Running, small: Loopback) -> None:
    """LangGraph's ReAct agent over langchain-openai."""
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import create_react_agent
    from pydantic import SecretStr

    @tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    model = ChatOpenAI(model="auto", base_url=f"{gateway.url}/v1", api_key=SecretStr("none"), max_retries=0)
    agent = create_react_agent(model, [get_weather])
    done = await agent.ainvoke({"messages": [("user", "Weather in Paris?")]})
    await model.root_async_client.close()
    assert done["messages"][-1].content == "Sunny."
    assert tool_results(small) == ["sunny in Paris"]


async def test_pydantic_ai(gateway: Running, small: Loopback) -> None:
    """Pydantic AI's agent."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with gateway.openai() as client:
        agent = Agent(OpenAIChatModel("auto", provider=OpenAIProvider(openai_client=client)))

        @agent.tool_plain
        def get_weather(city: str) -> str:
            """Weather of a city."""
            return f"sunny in {city}"

        done = await agent.run("Weather in Paris?")
    assert done.output == "Sunny."
    assert tool_results(small) == ["sunny in Paris"]
