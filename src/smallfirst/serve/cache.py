"""The exact response cache of a task: the same call again, word for word, is answered from the store.

Off unless the task's policy has a `cache`. A hit needs temperature 0 or the caller's `x-smallfirst-cache: use`; it is
never shared between API keys, ends with its time limit, and with any change of the configuration, of a model, or of
this software.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from smallfirst import __version__
from smallfirst.cascade import Outcome
from smallfirst.config import Policy
from smallfirst.store import Store
from smallfirst.types import Attempt, Request, Route

IRRELEVANT = frozenset({"stream", "stream_options", "metadata", "user"})


class ResponseCache:
    """Looks up and keeps served attempts under the digest of everything that shaped them."""

    def __init__(self, store: Store, config_hash: str) -> None:
        self._store, self._config_hash = store, config_hash

    async def get(self, request: Request, route: Route, policy: Policy, headers: Mapping[str, str]) -> Attempt | None:
        """The attempt that answered this call before, as an attempt of kind "cache" that cost nothing."""
        if not _eligible(request, policy, headers):
            return None
        payload = await self._store.cache_get(self._key(request, route), time.time())
        if payload is None:
            return None
        kept = msgspec.json.decode(payload, type=Attempt)
        return replace(
            kept, kind="cache", decision="accept", reason="cache", cost_usd=0.0, cost_usd_local_free=0.0, seconds=0.0
        )

    async def put(
        self, request: Request, route: Route, policy: Policy, headers: Mapping[str, str], outcome: Outcome
    ) -> None:
        """Keep an outcome that met the bar."""
        if outcome.served is None or outcome.decision == "abstain" or not _eligible(request, policy, headers):
            return
        assert policy.cache is not None
        payload = msgspec.json.encode(outcome.attempts[outcome.served])
        await self._store.cache_put(self._key(request, route), route.task, payload, time.time() + policy.cache.ttl_s)

    def _key(self, request: Request, route: Route) -> str:
        body = {k: v for k, v in request.body.items() if k not in IRRELEVANT}
        stages = [(s.name, s.model, s.adapter) for s in route.stages]
        headers = {k: v for k, v in request.headers.items() if k != "idempotency-key"}
        whole = (__version__, self._config_hash, request.origin.key, route.task, stages, request.wire, headers, body)
        return hashlib.sha256(_encode(whole)).hexdigest()


def _eligible(request: Request, policy: Policy, headers: Mapping[str, str]) -> bool:
    if policy.cache is None:
        return False
    asked = headers.get("x-smallfirst-cache")
    return asked == "use" or (asked is None and request.sampling.temperature == 0)


_encode = msgspec.json.Encoder(order="deterministic").encode
