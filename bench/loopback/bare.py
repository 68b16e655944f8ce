"""The least that a gateway can be: Starlette and uvicorn hand bodies on, with aiohttp or httpx as the client.

python bench/loopback/bare.py PORT UPSTREAM_PORT aiohttp|httpx
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

HEADERS = {"content-type": "application/json"}
JSON, EVENTS = "application/json", "text/event-stream"


def with_aiohttp(url: str) -> Starlette:
    async def forward(request: Request) -> Response:
        session: aiohttp.ClientSession = request.app.state.client
        answer = await session.post(url, data=await request.body(), headers=HEADERS)
        if answer.content_type == EVENTS:
            return StreamingResponse(answer.content.iter_any(), media_type=EVENTS)
        return Response(await answer.read(), answer.status, media_type=JSON)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with aiohttp.ClientSession() as app.state.client:
            yield

    return Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])], lifespan=lifespan)


def with_httpx(url: str) -> Starlette:
    async def forward(request: Request) -> Response:
        client: httpx.AsyncClient = request.app.state.client
        asked = client.build_request("POST", url, content=await request.body(), headers=HEADERS)
        answer = await client.send(asked, stream=True)
        if answer.headers["content-type"] == EVENTS:
            return StreamingResponse(answer.aiter_raw(), media_type=EVENTS)
        return Response(await answer.aread(), answer.status_code, media_type=JSON)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(timeout=60) as app.state.client:
            yield

    return Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])], lifespan=lifespan)


if __name__ == "__main__":
    build = {"aiohttp": with_aiohttp, "httpx": with_httpx}[sys.argv[3]]
    app = build(f"http://127.0.0.1:{sys.argv[2]}/v1/chat/completions")
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
