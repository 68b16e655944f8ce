"""Who looks at the dashboard: a login by API key, kept in a signed cookie, and the tokens that changes need.

The cookie holds the key's public id and a random number, never the key. Each request asks the gateway's `Access` again,
so that a revoked key ends its sessions. As the gateway itself, the dashboard asks for no key as long as there is none.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from itsdangerous import BadSignature, Signer, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response

from smallfirst.errors import AuthenticationError, PermissionDenied
from smallfirst.serve.access import RANK, Access, Caller

COOKIE = "smallfirst_session"
LASTS_S = 12 * 3600


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session; `caller` is None before a login, where one is needed. `csrf` belongs into every form."""

    key: str
    nonce: str
    csrf: str
    caller: Caller | None
    fresh: bool = False

    @property
    def operator(self) -> bool:
        """Whether its holder may change things."""
        return self.caller is not None and RANK[self.caller.role] >= RANK["operator"]


class Sessions:
    """Makes sessions and knows them again."""

    def __init__(self, access: Access, secret: bytes) -> None:
        self._access = access
        self._cookies = URLSafeTimedSerializer(secret, salt="smallfirst.dashboard.session")
        self._tokens = Signer(secret, salt="smallfirst.dashboard.csrf")

    async def of(self, request: Request) -> Session:
        """The session of a request; a fresh one without a valid cookie. Raises PermissionDenied for an agent's key."""
        kept = self._kept(request.cookies.get(COOKIE, ""))
        key, nonce = kept or ("", secrets.token_urlsafe(16))
        try:
            caller = await self._access.recall(key, "viewer")
        except AuthenticationError:
            caller = None
        return Session(key, nonce, self._token(nonce), caller, fresh=kept is None)

    async def login(self, key: str) -> Session:
        """A session for the holder of an API key. Raises AuthenticationError, and PermissionDenied for an agent's."""
        caller = await self._access.authenticate({"x-api-key": key.strip()}, "viewer")
        nonce = secrets.token_urlsafe(16)
        return Session(caller.key, nonce, self._token(nonce), caller, fresh=True)

    def stranger(self) -> Session:
        """A session that nobody has logged in to and nothing is allowed in."""
        return Session("", "", "", None)

    def keep(self, session: Session, request: Request, response: Response) -> None:
        """Have the browser send `session` from now on."""
        value = self._cookies.dumps([session.key, session.nonce])
        secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, value, max_age=LASTS_S, path="/dashboard", httponly=True, samesite="lax", secure=secure
        )

    def _kept(self, cookie: str) -> tuple[str, str] | None:
        try:
            found: Any = self._cookies.loads(cookie, max_age=LASTS_S)
        except BadSignature:  # expired ones too
            return None
        key, nonce = found
        return key, nonce

    def _token(self, nonce: str) -> str:
        return self._tokens.get_signature(nonce).decode()


def forget(response: Response) -> None:
    """Have the browser drop its session."""
    response.delete_cookie(COOKIE, path="/dashboard", httponly=True, samesite="lax")


def check_change(session: Session, token: str) -> Caller:
    """The operator who makes a change from a page of ours. Raises PermissionDenied."""
    if session.fresh or not hmac.compare_digest(token.encode(), session.csrf.encode()):
        raise PermissionDenied(
            "The form's token is not this session's.", hint="Go back, reload the page and try again."
        )
    if session.caller is None or not session.operator:
        raise PermissionDenied("Changes need the role 'operator'.", hint="Log in with an operator's API key.")
    return session.caller
