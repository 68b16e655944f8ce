"""The dashboard: pages at /dashboard in the gateway's process. Its libraries are those of the extra `dashboard`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from starlette.responses import HTMLResponse
from starlette.types import ASGIApp

from smallfirst.serve.gateway import Gateway

PATH = "/dashboard"
_NEEDS = ("itsdangerous", "jinja2", "vl_convert")
_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>smallfirst</title>
<h1>The dashboard is not installed</h1>
<p>Run <code>pip install 'smallfirst[dashboard]'</code> where the gateway runs, and start it again.</p></html>"""


def dashboard(gateway: Gateway, stopping: Callable[[], bool]) -> ASGIApp:
    """The application below `PATH`; without the extra, one page that says what to install.

    `stopping` tells that the server wants to end, and with it the pages' live updates.
    """
    if any(find_spec(name) is None for name in _NEEDS):
        return HTMLResponse(_MISSING, status_code=503)
    from smallfirst.dashboard.app import build

    return build(gateway, stopping)
