"""The dashboard's application: routes, who may see and change what, errors as pages, the headers of all answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallfirst.dashboard import changes, live, pages
from smallfirst.dashboard.assets import Assets
from smallfirst.dashboard.session import Session, Sessions, check_change, forget
from smallfirst.dashboard.view import Views, Visit, form_of
from smallfirst.errors import AuthenticationError, PermissionDenied, SmallfirstError
from smallfirst.serve.exchange import ClientGone
from smallfirst.serve.gateway import Gateway

Handler = Callable[[Visit], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_RAW_HEADERS = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


def build(gateway: Gateway, stopping: Callable[[], bool]) -> ASGIApp:
    """The application. `stopping` tells that the server wants to end."""
    site = _Site(gateway)
    stream = live.Stream(gateway.store, stopping)
    routes = [
        Route("/dashboard/static/{hash}/{name}", site.assets.serve),
        Route("/dashboard/login", site.login, methods=["GET", "POST"]),
        Route("/dashboard/logout", site.logout, methods=["POST"]),
        Route("/dashboard/events", site.seen(stream.events)),
        *(Route(path, site.seen(handler)) for path, handler in pages.ROUTES.items()),
        *(Route(path, site.changed(handler), methods=["POST"]) for path, handler in changes.ROUTES.items()),
    ]
    refused = {SmallfirstError: site.refused, HTTPException: site.not_there, Exception: site.defect}
    return _guarded(Starlette(routes=routes, exception_handlers=refused))


class _Site:
    """What the routes share."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._sessions = Sessions(gateway.access, gateway.store.secret("dashboard"))
        self.assets = Assets()
        self._views = Views(self.assets)

    def seen(self, handler: Handler) -> Endpoint:
        """A route for who may look; others are asked to log in."""

        async def endpoint(request: Request) -> Response:
            session = await self._sessions.of(request)
            if session.caller is None:
                where = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                return RedirectResponse(f"/dashboard/login?next={quote(where, safe='/')}", 303)
            response = await handler(self._visit(request, session))
            if session.fresh:
                self._sessions.keep(session, request, response)
            return response

        return endpoint

    def changed(self, handler: Handler) -> Endpoint:
        """A route that changes something: for operators, from a form of ours."""

        async def endpoint(request: Request) -> Response:
            session = await self._sessions.of(request)
            form = await self._form(request)
            check_change(session, form.get("csrf", ""))
            return await handler(self._visit(request, session, form))

        return endpoint

    async def login(self, request: Request) -> Response:
        """The login form, and what it sends."""
        visit = self._visit(request, await self._sessions.of(request))
        aim, problem, status = visit.query("next"), "", 200
        if request.method == "POST":
            form = await self._form(request)
            aim = form.get("next", "")
            try:
                session = await self._sessions.login(form.get("key", ""))
            except (AuthenticationError, PermissionDenied) as err:
                problem, status = str(err), err.status
            else:
                response = RedirectResponse(aim if _ours(aim) else "/dashboard", 303)
                self._sessions.keep(session, request, response)
                return response
        return await visit.page("login.html", status, aim=aim, problem=problem)

    async def logout(self, request: Request) -> Response:
        """End the session in this browser."""
        session = await self._sessions.of(request)
        form = await self._form(request)
        response = RedirectResponse("/dashboard/login", 303)
        if form.get("csrf") == session.csrf:
            forget(response)
        return response

    async def refused(self, request: Request, error: Exception) -> Response:
        """An error of ours as a page."""
        assert isinstance(error, SmallfirstError)
        return await self._problem(request, error.status, error.message, error.hint)

    async def not_there(self, request: Request, error: Exception) -> Response:
        """No such page, or a method that it does not take."""
        assert isinstance(error, HTTPException)
        return await self._problem(request, error.status_code, f"{error.detail}.", "The menu leads to every page.")

    async def defect(self, request: Request, _: Exception) -> Response:
        """A defect, which is raised again after this answer and logged by the gateway."""
        return await self._problem(request, 500, "The dashboard failed.", "The gateway's log says why.")

    async def _problem(self, request: Request, status: int, message: str, hint: str) -> Response:
        try:
            session = await self._sessions.of(request)
        except SmallfirstError:
            session = self._sessions.stranger()
        return await self._visit(request, session).page("problem.html", status, message=message, hint=hint)

    def _visit(self, request: Request, session: Session, form: Mapping[str, str] | None = None) -> Visit:
        return Visit(request, session, self._gateway, self._views, form or {})

    async def _form(self, request: Request) -> Mapping[str, str]:
        """What a form of ours sends. Raises PermissionDenied for a page of another site."""
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            raise PermissionDenied("The form is of another site.", hint="Open the dashboard itself.")
        try:
            return await form_of(request, self._gateway.config.server.body_timeout_s)
        except ClientGone:
            raise HTTPException(400, "The client went away") from None


def _ours(aim: str) -> bool:
    """Whether a page to go to after the login is one of the dashboard's."""
    return aim == "/dashboard" or aim.startswith(("/dashboard/", "/dashboard?"))


def _guarded(app: ASGIApp) -> ASGIApp:
    """`app` with the headers that keep browsers from doing with its pages what these are not meant for."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_RAW_HEADERS]
            await send(message)

        await app(scope, receive, sending)

    return guarded
