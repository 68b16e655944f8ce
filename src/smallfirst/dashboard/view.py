"""Templates with what they know: formats, asset URLs and the visit that a page is made for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from smallfirst import __version__
from smallfirst.dashboard import words
from smallfirst.dashboard.assets import Assets
from smallfirst.dashboard.session import Session
from smallfirst.errors import RequestError
from smallfirst.serve.exchange import Exchange
from smallfirst.serve.gateway import Gateway

_MENU = (
    ("Overview", "/dashboard"),
    ("Tasks", "/dashboard/tasks"),
    ("Calls", "/dashboard/calls"),
    ("Releases", "/dashboard/releases"),
    ("Compression", "/dashboard/compression"),
    ("Label", "/dashboard/label"),
    ("System", "/dashboard/system"),
)


@dataclass(frozen=True, slots=True)
class Visit:
    """A request with the session that it belongs to, the gateway that it asks about, and the fields of its form."""

    request: Request
    session: Session
    gateway: Gateway
    views: Views
    form: Mapping[str, str]

    def query(self, name: str) -> str:
        """A query parameter without surrounding blanks, "" when it is not given."""
        return self.request.query_params.get(name, "").strip()

    def whole(self, name: str, default: int, most: int) -> int:
        """A query parameter that is a whole number. Raises RequestError outside 0 to `most`."""
        text = self.query(name) or str(default)
        if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) > most:
            raise RequestError(f"{name} is {text!r:.50}; allowed are 0 to {most}.", param=name)
        return int(text)

    def amount(self, name: str) -> float | None:
        """A query parameter that is a number of 0 or more, None when it is not given. Raises RequestError."""
        text = self.query(name)
        try:
            value = float(text) if text else None
        except ValueError:
            value = -1.0
        if value is None or 0 <= value < float("inf"):
            return value
        raise RequestError(f"{name} is {text!r:.50}; allowed is a number of 0 or more.", param=name)

    async def page(self, template: str, /, status: int = 200, **known: Any) -> HTMLResponse:
        """A page of the dashboard, made in a thread: calls go on meanwhile."""
        here = {"session": self.session, "path": self.request.url.path, **known}
        text = await asyncio.to_thread(self.views.render, template, here)
        return HTMLResponse(text, status, {"cache-control": "no-store"})


class Views:
    """Renders templates; everything put into them is escaped."""

    def __init__(self, assets: Assets) -> None:
        self._templates = Environment(
            loader=PackageLoader("smallfirst.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        named: list[Callable[..., Any]] = [words.capital, words.count, words.interval, words.judged, words.moment]
        named += [words.number, words.plain_moment, words.progress, words.seconds, words.why]
        self._templates.filters |= {each.__name__: each for each in named}
        self._templates.filters["pretty"] = partial(json.dumps, indent=2, ensure_ascii=False)
        self._templates.globals |= {
            "asset": assets.url,
            "menu": _MENU,
            "version": __version__,
            "UNKNOWN": words.UNKNOWN,
        }

    def render(self, template: str, known: Mapping[str, Any]) -> str:
        """The template with what is known put in."""
        return self._templates.get_template(template).render(known)


async def form_of(request: Request, timeout_s: float) -> dict[str, str]:
    """The fields of an urlencoded form of 64 KiB at most. Raises RequestError."""
    exchange = Exchange(request.scope, request.receive, _never, write_timeout_s=timeout_s)
    raw = await exchange.body(limit=2**16, timeout_s=timeout_s)
    try:
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=50))
    except ValueError as err:
        raise RequestError(f"The form cannot be read: {err}.") from None


async def _never(_: Any) -> None:
    raise AssertionError("a form is only read")
