"""cascadeflow's own gateway with its OpenAI provider pointed at the loopback upstreams; runs in cascadeflow's
environment. (Its vLLM provider, which takes a base URL, has no `complete_with_tools` in 1.2.0 and drops tool calls.)

    python -m loopback.cascadeflow_gateway PORT SMALL_PORT SMALL_MODEL LARGE_PORT LARGE_MODEL
"""

from __future__ import annotations

import sys
import threading

from cascadeflow import CascadeAgent, ModelConfig  # type: ignore[import-not-found]
from cascadeflow.proxy.server import ProxyConfig, RoutingProxy  # type: ignore[import-not-found]


def main(port: str, *sides: str) -> None:
    ports, names, costs = sides[::2], sides[1::2], (0.0001, 0.002)
    models = [ModelConfig(name=n, provider="openai", cost=c, api_key="none") for n, c in zip(names, costs, strict=True)]
    agent = CascadeAgent(models=models)
    for name, upstream in zip(names, ports, strict=True):
        agent.model_providers[name].base_url = f"http://127.0.0.1:{upstream}/v1"
    RoutingProxy(agent=agent, config=ProxyConfig(port=int(port))).start()
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
