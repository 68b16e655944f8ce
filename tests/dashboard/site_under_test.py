"""A gateway in this process with its dashboard, and a browser's part without the browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp

from smallfirst.assemble import open_configured_store
from smallfirst.config import Config, parse
from smallfirst.dashboard import PATH, dashboard
from smallfirst.serve.server import serving
from smallfirst.store import KeyLimits, Store
from smallfirst.types import Role

MODELS = """
[models.small]
backend = "fake"
small = true
[models.large]
backend = "fake"
small = false
price = {{input = 1.0, output = 2.0}}
[store]
url = "sqlite:///{folder}/calls.db"
"""
VOID = frozenset({"meta", "link", "input", "br", "img"})


@dataclass
class Element:
    """An element with the text in it and below it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Page:
    """An answer, and what a browser would make of its HTML."""

    status: int
    headers: dict[str, str]
    raw: bytes
    elements: list[Element] = field(default_factory=list)

    @property
    def html(self) -> str:
        return self.raw.decode()

    @property
    def text(self) -> str:
        """The words on the page."""
        return " ".join(next(e for e in self.elements if e.tag == "body").text.split())

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """The elements of a tag with these attributes."""
        return [e for e in self.elements if e.tag == tag and attributes.items() <= e.attributes.items()]

    def links(self) -> list[str]:
        return [e.attributes["href"] for e in self.all("a")]

    @property
    def csrf(self) -> str:
        """The token of the page's forms, "" where it has none."""
        return next((e.attributes["value"] for e in self.all("input", name="csrf")), "")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[Element] = []
        self._open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.found.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and any(element.tag == tag for element in self._open):
            while self._open.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data


@dataclass(frozen=True)
class Site:
    """A gateway that runs; `http` keeps cookies and follows no redirect."""

    url: str
    config: Config
    store: Store
    http: aiohttp.ClientSession

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, tables: Sequence[str] = (), **env: str) -> AsyncIterator[Site]:
        config = parse(MODELS.format(folder=folder) + "\n".join(tables), env)
        store = await open_configured_store(config, {})
        jar = aiohttp.CookieJar(unsafe=True)  # of an address, not a name
        try:
            async with (
                serving(config, env, {PATH: dashboard}) as url,
                aiohttp.ClientSession(url, cookie_jar=jar) as http,
            ):
                yield cls(url, config, store, http)
        finally:
            await store.close()

    async def get(self, path: str, **headers: str) -> Page:
        async with self.http.get(path, headers=headers, allow_redirects=False) as reply:
            return await _page(reply)

    async def post(self, path: str, fields: dict[str, Any]) -> Page:
        async with self.http.post(path, data=fields, allow_redirects=False) as reply:
            return await _page(reply)

    async def submit(self, at: str, path: str, **fields: Any) -> Page:
        """Send a form of the page `at` to `path`, with the token that the page has."""
        return await self.post(path, {"csrf": (await self.get(at)).csrf, **fields})

    async def add_key(self, role: Role, name: str = "test", **limits: Any) -> str:
        return (await self.store.add_key(name, role, KeyLimits(**limits)))[1]

    async def log_in(self, key: str, aim: str = "") -> Page:
        return await self.post("/dashboard/login", {"key": key, "next": aim})

    def forget(self) -> None:
        """Drop all cookies."""
        self.http.cookie_jar.clear()


Open = Callable[..., Awaitable[Site]]


async def _page(reply: aiohttp.ClientResponse) -> Page:
    headers = {name.lower(): value for name, value in reply.headers.items()}
    page = Page(reply.status, headers, await reply.read())
    if reply.content_type == "text/html":
        reader = _Reader()
        reader.feed(page.html)
        page.elements = reader.found
    return page


def csv_links(page: Page) -> Iterator[str]:
    """Where the page's figures can be downloaded."""
    return (href for href in page.links() if re.match("/dashboard/csv/", href))
