"""Who may call, how much, and that secrets stay secret."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from recording import Loopback, answer, hang, page
from running import CHAT, MESSAGES, PROVIDER_KEY, RESPONSES, Running, Start, every, question, says, until

from smallfirst.config import parse
from smallfirst.errors import ConfigError
from smallfirst.serve.server import serving

SOON_S = 2.1  # the gateway sees new and revoked keys within 2 s


@pytest.fixture(autouse=True)
def quick_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for new keys often, so that tests are fast; one test leaves it as it is."""
    monkeypatch.setattr("smallfirst.serve.access.REFRESH_S", 0.01)


def holding(folder: Path, secret: str) -> list[str]:
    """The names of the files in `folder` that hold `secret`; there are files."""
    files = [path for path in folder.iterdir() if path.is_file()]
    assert files
    return [path.name for path in files if secret.encode() in path.read_bytes()]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_keyless_on_this_machine(gateway: Running) -> None:
    """Without any key, this machine may call."""
    assert (await gateway.chat()).status == 200
    assert (await gateway.chat(authorization="Bearer whatever")).status == 200


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, "/v1/embeddings", "/v1/feedback"])
async def test_keys_are_required_once_one_exists(gateway: Running, path: str) -> None:
    """With a key in the store every call needs one, in either header, and a refusal has its wire's shape."""
    key = await gateway.add_key()
    await asyncio.sleep(0.02)
    body = every(path, "x") if path in (CHAT, RESPONSES, MESSAGES) else {}
    for headers in ({}, bearer("sf-wrong"), {"x-api-key": key[:-9] + "aaaaaaaaa"}, {"authorization": f"Basic {key}"}):
        refused = await gateway.post(path, body, **headers)
        assert refused.status == 401
        assert refused.body["error"]["type"] == "authentication_error"
    for headers in (bearer(key), {"x_api_key": key}):
        assert (await gateway.post(path, body, **headers)).status != 401


async def test_no_caller_slips_in_while_keys_are_read(start: Start) -> None:
    """The first calls of a fresh gateway, all at once, are all refused without a key."""
    gateway = await start()
    await gateway.add_key()
    await asyncio.sleep(0.02)
    done = await asyncio.gather(*(gateway.get("/v1/models") for _ in range(20)))
    assert {d.status for d in done} == {401}


async def test_revoked_keys(gateway: Running) -> None:
    """A revoked key is refused, and revoking the last key does not open the gateway."""
    key = await gateway.add_key()
    await asyncio.sleep(0.02)
    assert (await gateway.get("/v1/models", **bearer(key))).status == 200
    async with gateway.store() as store:
        await store.revoke_key((await store.list_keys())[0].id)
    await asyncio.sleep(0.02)
    assert (await gateway.get("/v1/models", **bearer(key))).status == 401
    assert (await gateway.get("/v1/models")).status == 401


async def test_revocation_takes_two_seconds(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running gateway refuses a revoked key within two seconds."""
    key = await gateway.add_key()
    await asyncio.sleep(0.02)
    monkeypatch.undo()
    assert (await gateway.get("/v1/models", **bearer(key))).status == 200
    async with gateway.store() as store:
        await store.revoke_key((await store.list_keys())[0].id)
    await asyncio.sleep(SOON_S)
    assert (await gateway.get("/v1/models", **bearer(key))).status == 401


@pytest.mark.parametrize(("role", "status"), [("agent", 403), ("viewer", 200), ("operator", 200), ("admin", 200)])
async def test_roles(gateway: Running, role: str, status: int) -> None:
    """Metrics need the role viewer; every role may call models."""
    key = await gateway.add_key(role)
    await asyncio.sleep(0.02)
    assert (await gateway.get("/metrics", **bearer(key))).status == status
    assert (await gateway.chat(**bearer(key))).status == 200


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
async def test_requests_a_minute(gateway: Running, path: str) -> None:
    """Over its requests a minute a key gets 429 with the seconds until the next one."""
    key = await gateway.add_key(requests_per_minute=2)
    other = await gateway.add_key()
    await asyncio.sleep(0.02)
    body = every(path, "x")
    done = [await gateway.post(path, body, **bearer(key)) for _ in range(3)]
    assert [d.status != 429 for d in done] == [True, True, False]
    assert 1 <= int(done[2].headers["retry-after"]) <= 30
    assert done[2].body["error"]["type"] == "rate_limit_error"
    assert (await gateway.post(path, body, **bearer(other))).status != 429


async def test_tokens_a_minute(gateway: Running) -> None:
    """A key that used up its tokens waits until they are refilled."""
    key = await gateway.add_key(tokens_per_minute=20)
    await asyncio.sleep(0.02)
    done = [await gateway.chat(**bearer(key)) for _ in range(3)]  # 15 tokens each
    assert [d.status for d in done] == [200, 200, 429]
    assert int(done[2].headers["retry-after"]) >= 1


async def test_calls_at_once(gateway: Running, large: Loopback) -> None:
    """Over its concurrent calls a key gets 429, and a place is free again when a call ends."""
    large.handlers = [hang, says("now")]
    key = await gateway.add_key(concurrent=1)
    await asyncio.sleep(0.02)
    first = asyncio.create_task(gateway.chat(**bearer(key)))
    await large.asked.wait()
    assert (await gateway.chat(**bearer(key))).status == 429
    first.cancel()
    await large.left.wait()
    done = await until(lambda: gateway.chat(**bearer(key)), lambda d: d.status != 429)
    assert done.text == "now"


async def test_places_for_all(start: Start, large: Loopback) -> None:
    """Over the server's places callers get 429 with a time to wait."""
    large.handlers = [hang]
    gateway = await start("[server]\nmax_concurrent = 1")
    first = asyncio.create_task(gateway.chat())
    await large.asked.wait()
    refused = await gateway.chat()
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    first.cancel()
    await large.left.wait()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787", "127.0.0.1.evil.example"])
async def test_foreign_host_names_are_refused(gateway: Running, host: str) -> None:
    """A keyless gateway answers to this machine's names only, so that no web page reaches it by a name of its own."""
    refused = await gateway.send("POST", CHAT, b"{}", {"host": host})
    assert refused.status == 400
    assert refused.body["error"]["type"] == "invalid_request_error"
    assert (await gateway.send("GET", "/healthz", headers={"host": "localhost"})).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
async def test_foreign_pages_are_refused(gateway: Running, large: Loopback, origin: str) -> None:
    """A page of another host that calls a keyless gateway from a browser of this machine spends and labels nothing."""
    for path in (CHAT, "/v1/feedback"):
        assert (await gateway.post(path, question(), origin=origin)).status == 400
    assert large.seen == []
    assert (await gateway.chat(origin="http://localhost:3000")).status == 200


async def test_a_public_bind_needs_a_key(tmp_path: Path) -> None:
    """Without an active key the gateway does not listen where other machines can reach it."""
    text = f'[models.m]\nbackend = "fake"\n[server]\nhost = "0.0.0.0"\n[store]\nurl = "sqlite:///{tmp_path}/x.db"'
    config = parse(text, {})
    with pytest.raises(ConfigError, match="no API key"):
        async with serving(config, {}):
            pass


async def test_a_provider_key_is_nowhere(
    gateway: Running, small: Loopback, large: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A provider's key, even echoed by the provider, is in no record, log line, answer or file."""
    echoes = f"Incorrect API key provided: {PROVIDER_KEY}."
    answers = [answer({"error": {"message": echoes, "type": "x", "code": None}}, status) for status in (401, 500)]
    answers += [page(echoes.encode(), "text/html"), page(echoes.encode(), "text/event-stream")]
    large.handlers = [*answers, *answers, answer({"error": echoes}, 401)]
    seen = []
    for stream in (False, True):
        for path in (CHAT, MESSAGES):
            for _ in range(2):
                done = await gateway.post(path, every(path, "x") | {"stream": stream})
                seen.append(done.raw.decode() + str(done.headers))
    await gateway.records(8)
    seen.append((await gateway.get("/metrics")).raw.decode())
    seen.append(str(await gateway.records()))
    seen += capsys.readouterr()
    assert large.seen[0].headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    assert [text for text in seen if PROVIDER_KEY in text] == []
    assert holding(tmp_path, PROVIDER_KEY) == []


async def test_a_callers_key_is_kept_as_a_hash(gateway: Running, tmp_path: Path) -> None:
    """No file holds the secret of a caller's key."""
    key = await gateway.add_key()
    await asyncio.sleep(0.02)
    await gateway.chat(**bearer(key))
    assert holding(tmp_path, key.rsplit("-", 1)[1]) == []
