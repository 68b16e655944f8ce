"""What the dashboard's pages show, to whom, and what they let whom change."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from filled import CALIBRATED, OBSERVED, TRIED, attempt, call, record, release_candidate, request
from msgspec.structs import replace
from site_under_test import Open, Page, Site, csv_links
from structlog.testing import capture_logs

from smallfirst.labels import Outcomes, label_of, request_of
from smallfirst.serve.gateway import new_id
from smallfirst.store import RecordFilter
from smallfirst.types import Choice, Completion, Feedback, Record, ToolCall, Verdict, Violation

PAGES = ("", "/tasks", "/calls", "/releases", "/compression", "/label", "/system")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;{{91*91*91}}"
CHANGES = (
    ("/dashboard/label/verdict", {"verdict": "skip"}),
    ("/dashboard/calls/x/label", {"correct": "yes"}),
    ("/dashboard/calls/x/replay", {"model": "large"}),
    ("/dashboard/releases/move", {"task": TRIED, "action": "live", "version": "v", "why": "x", "confirmed": "yes"}),
)


async def first_call(site: Site, **wanted: Any) -> str:
    """The id of the newest call."""
    return (await site.store.list_records(RecordFilter(**wanted), limit=1))[0].id


def answered() -> Record:
    """A call that the small model answered."""
    small = attempt(call("billing"), small=True, decision="accept", reason="calibrated")
    return record("t", time.time(), request("Where?"), (small,))


async def every_page(site: Site) -> list[tuple[str, Page]]:
    """Every kind of page there is, by its path."""
    paths = [f"/dashboard{page}" for page in PAGES]
    paths += [f"/dashboard/tasks/{task}" for task in (CALIBRATED, OBSERVED, TRIED)]
    paths += [f"/dashboard/calls/{await first_call(site, task=task)}" for task in (CALIBRATED, OBSERVED, TRIED)]
    paths += ["/dashboard/login", "/dashboard/calls?text=nowhere", "/dashboard/nothing"]
    return [(path, await site.get(path)) for path in paths]


# pages


async def test_every_page_of_a_store_in_use_answers(site: Site) -> None:
    """Each page has one heading, a sentence above its figures, and a menu that marks where one is."""
    for path, page in await every_page(site):
        assert page.status == (404 if path.endswith("nothing") else 200), path
        assert len(page.all("h1")) == 1, path
        if page.status == 200:
            assert any(e.tag == "p" and e.attributes.get("class") == "lead" and e.text for e in page.elements), path
            assert path.endswith("login") or len(page.all("a", **{"aria-current": "page"})) == 1, path


@pytest.mark.parametrize("path", PAGES)
async def test_an_empty_store_says_what_to_do(empty: Site, path: str) -> None:
    """Every page of a store without calls tells what is missing and how to get it."""
    page = await empty.get(f"/dashboard{path}")
    assert page.status == 200
    assert page.all("p", **{"class": "empty"})


async def test_a_task_that_nobody_knows_has_a_page_that_says_so(site: Site) -> None:
    """The status of a task that is not there is 404."""
    page = await site.get("/dashboard/tasks/no/such")
    assert page.status == 404
    [said] = page.all("p", **{"class": "empty"})
    assert "There is no task of this name." in said.text


async def test_a_task_without_calls_in_the_period_is_no_error(empty: Site) -> None:
    """The period may be too short."""
    asked = request("Where is it?")
    await empty.store.append(record("old", time.time() - 40 * 86_400, asked, answered().attempts))
    page = await empty.get("/dashboard/tasks/old?period=24h")
    assert page.status == 200
    [said] = page.all("p", **{"class": "empty"})
    assert "no call in the period" in said.text


async def test_figures_show_interval_n_definition_and_download(site: Site) -> None:
    """Each figure of the overview has an interval line with n, a definition bound to a button, and a CSV link."""
    page = await site.get("/dashboard")
    figures = page.all("div", **{"class": "figure"})
    assert len(figures) >= 12
    described = {e.attributes["id"]: e.text for e in page.all("span", role="tooltip")}
    for button in (e for e in page.all("button") if "aria-describedby" in e.attributes):
        assert described[button.attributes["aria-describedby"]].strip()
    intervals = [e.text for e in page.all("p", **{"class": "interval"})]
    assert len(intervals) == len(figures)
    assert all("n\N{NO-BREAK SPACE}=" in text for text in intervals)
    assert len(page.all("a", **{"class": "csv"})) == len(figures)


async def test_a_call_shows_its_tokens_by_margin(empty: Site) -> None:
    """Value tokens are marked by how sure the model was of them; the JSON around them is not."""
    small = attempt(call("billing", sure=0.55), small=True, decision="accept", reason="calibrated")
    made = record("t", time.time(), request("Where?"), (small,))
    await empty.store.append(made)
    page = await empty.get(f"/dashboard/calls/{made.id}")
    classes = {e.text: e.attributes["class"] for e in page.all("span") if e.attributes.get("class", "").strip()}
    assert classes["billing"] == "value low"
    assert classes["route"] == "value high"
    assert classes["false"] == "value high"
    assert classes["}}"] == "form"


async def test_a_call_shows_its_episode_in_the_order_of_time(empty: Site) -> None:
    """The calls of the same agent run are linked, oldest first, and nobody else's are."""
    made = []
    for n, episode in enumerate(("one", "two", "one", "one")):
        answer = attempt(call("billing"), small=True, decision="accept", reason="calibrated")
        made.append(record("t", time.time() + n, request("Where?", episode=episode), (answer,)))
        await empty.store.append(made[-1])
    page = await empty.get(f"/dashboard/calls/{made[2].id}")
    order = [e.text for e in page.all("li") if "smollm2" in e.text]
    links = [href for href in page.links() if re.fullmatch("/dashboard/calls/[0-9a-f-]{36}", href)]
    assert len(order) == 3
    assert links == [f"/dashboard/calls/{made[n].id}" for n in (0, 2, 3)]


async def test_unknown_and_wrong_requests_get_a_page(site: Site) -> None:
    """Errors of every kind are pages that say what is wrong, with the status that fits."""
    for path, status in (
        ("/dashboard/calls/nope", 404),
        ("/dashboard/csv/nope?figure=x", 404),
        ("/dashboard/csv/overview?figure=store", 404),
        ("/dashboard/static/000000000000/dashboard.js", 404),
        ("/dashboard?period=3y", 400),
        ("/dashboard/calls?decision=perhaps", 400),
        ("/dashboard/calls?usd=-1", 400),
        ("/dashboard/calls?labelled=maybe", 400),
        ("/dashboard/label?skip=-1", 400),
        ("/dashboard/logout", 405),
    ):
        page = await site.get(path)
        assert page.status == status, path
        assert page.all("p", **{"class": "lead"}), path


async def test_paths_beside_the_dashboard_are_the_gateways(empty: Site) -> None:
    """Only what is at or below /dashboard is the dashboard's; the gateway's own paths stay as they are."""
    assert (await empty.get("/dashboards")).headers["content-type"].startswith("application/json")
    assert (await empty.get("/healthz")).status == 200


async def test_a_defect_is_one_page_and_logged(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is answered once, without telling what it was."""

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("smallfirst.dashboard.queries.tasks", broken)
    with capture_logs() as logged:
        page = await site.get("/dashboard/tasks")
    assert page.status == 500
    assert [entry["event"] for entry in logged if entry["log_level"] == "error"] == ["defect"]
    assert "secret detail" not in page.html
    assert (await site.get("/dashboard/calls")).status == 200


async def test_without_the_extra_a_page_says_what_to_install(open_site: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway without the dashboard's libraries names the pip command, and serves all the same."""
    monkeypatch.setattr("smallfirst.dashboard.find_spec", lambda _: None)
    bare = await open_site()
    page = await bare.get("/dashboard/tasks")
    assert page.status == 503
    assert "pip install 'smallfirst[dashboard]'" in page.html
    assert (await bare.get("/healthz")).status == 200


# search


async def found(site: Site, query: str) -> int:
    """How many calls a search lists."""
    page = await site.get(f"/dashboard/calls?{query}")
    assert page.status == 200, query
    return len({href for href in page.links() if re.fullmatch("/dashboard/calls/[0-9a-f-]{36}", href)})


async def test_calls_are_found_by_everything_that_can_be_asked(empty: Site) -> None:
    """Task, decision, reason, model, episode, key, label, error, cost and text each narrow the list."""
    large = attempt(call("returns"), small=False, decision="accept", reason="uncalibrated")
    small = attempt(call("billing"), small=True, decision="accept", reason="calibrated")
    made = [
        record("one", 100.0, request("Where is my LAMP?", episode="e1"), (small,)),
        record("two", 200.0, request("Pay me.", key="k9"), (large,)),
        record("two", 300.0, request("Hm."), (small,), served=None, status=502, decision="abstain"),
    ]
    for each in made:
        await empty.store.append(each)
    await empty.store.add_feedback(Feedback(new_id(), made[0].id, 1.0, "correct", True, "x"))
    for query, n in {
        "": 3,
        "task=two": 2,
        "decision=abstain": 1,
        "reason=calibrated": 2,
        "model=gpt-large": 1,
        "episode=e1": 1,
        "key=k9": 1,
        "labelled=yes": 1,
        "labelled=no": 2,
        "error=1": 1,
        "usd=0.001": 1,
        "text=lamp": 1,
        "text=returns": 1,
        "text=lamp&task=two": 0,
    }.items():
        assert await found(empty, query) == n, query


async def test_long_lists_have_further_pages(site: Site) -> None:
    """Following "older" leads through every call once, also where calls are looked at one by one."""
    for query in ("task=" + CALIBRATED, "usd=0.0000001"):
        path, seen = f"/dashboard/calls?{query}", list[str]()
        while path:
            page = await site.get(path)
            seen += [h for h in page.links() if re.fullmatch("/dashboard/calls/[0-9a-f-]{36}", h)]
            path = next((e.attributes["href"] for e in page.all("a", rel="next")), "")
        assert len(seen) == len(set(seen)) == (120 if "task" in query else 360)


# who may see and change what


async def test_without_keys_this_machine_needs_no_login(empty: Site) -> None:
    """As the gateway itself, a dashboard on loopback without any key lets its visitor see and change all."""
    page = await empty.get("/dashboard")
    assert page.status == 200
    assert "local, admin" in page.text


async def test_with_keys_a_login_is_asked_for(empty: Site) -> None:
    """Every page leads to the login, and from there back to where one wanted to go."""
    key = await empty.add_key("viewer")
    for path in PAGES:
        page = await empty.get(f"/dashboard{path}?x=1")
        assert (page.status, page.headers["location"]) == (303, f"/dashboard/login?next=/dashboard{path}%3Fx%3D1")
    reply = await empty.log_in(key, "/dashboard/tasks?x=1")
    assert (reply.status, reply.headers["location"]) == (303, "/dashboard/tasks?x=1")
    assert (await empty.get("/dashboard/tasks")).status == 200


@pytest.mark.parametrize("aim", ["https://evil.example/", "//evil.example", "/v1/models", "/dashboardx", ""])
async def test_a_login_leads_nowhere_else(empty: Site, aim: str) -> None:
    """After the login one lands on a page of the dashboard, whatever the link said."""
    key = await empty.add_key("viewer")
    assert (await empty.log_in(key, aim)).headers["location"] == "/dashboard"


async def test_wrong_keys_and_agents_keys_are_refused(empty: Site) -> None:
    """A key that is none is 401, one that may only call is 403; neither opens a page."""
    agent = await empty.add_key("agent")
    for key, status in (("", 401), ("sf-nonsense", 401), (agent[:-1] + "z" * (agent[-1] != "z"), 401), (agent, 403)):
        assert (await empty.log_in(key)).status == status
        assert (await empty.get("/dashboard")).status == 303


async def test_the_cookie_is_signed_and_guarded(empty: Site) -> None:
    """It is http-only, same-site, for the dashboard alone, does not hold the key, and cannot be made up."""
    key = await empty.add_key("operator")
    reply = await empty.log_in(key)
    cookie = reply.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=lax", "Path=/dashboard"} <= set(cookie.split("; "))
    assert key.rpartition("-")[2] not in cookie
    value = cookie.partition("=")[2].partition(";")[0]
    empty.forget()
    for forged in (value[:-2] + ("aa" if not value.endswith("aa") else "bb"), "x", "a.b.c", ""):
        assert (await empty.get("/dashboard", cookie=f"smallfirst_session={forged}")).status == 303
    assert (await empty.get("/dashboard", cookie=f"smallfirst_session={value}")).status == 200


async def test_a_revoked_key_ends_its_sessions(empty: Site) -> None:
    """Within the time in which the gateway forgets a key, so does the dashboard."""
    key = await empty.add_key("viewer")
    await empty.add_key("viewer", "another")
    await empty.log_in(key)
    assert (await empty.get("/dashboard")).status == 200
    await empty.store.revoke_key(key.split("-")[1])
    async with asyncio.timeout(10):
        while (await empty.get("/dashboard")).status != 303:  # noqa: ASYNC110 - the gateway reads keys now and then
            await asyncio.sleep(0.1)


async def test_logging_out_ends_the_session_in_this_browser(empty: Site) -> None:
    """The cookie is dropped, by a form of ours only."""
    key = await empty.add_key("viewer")
    await empty.log_in(key)
    await empty.post("/dashboard/logout", {"csrf": "wrong"})
    assert (await empty.get("/dashboard")).status == 200
    await empty.submit("/dashboard", "/dashboard/logout")
    assert (await empty.get("/dashboard")).status == 303


async def test_a_viewer_sees_all_and_changes_nothing(site: Site) -> None:
    """The pages offer a viewer no change, and every change is refused with the token, too."""
    key = await site.add_key("viewer")
    await site.log_in(key)
    for path, page in await every_page(site):
        actions = {e.attributes.get("action") for e in page.all("form", method="post")}
        assert actions <= {"/dashboard/logout", "/dashboard/login"}, path
    moves = await site.store.moves()
    for path, fields in CHANGES:
        page = await site.submit("/dashboard", path, **fields)
        assert page.status == 403
        assert "operator" in page.text
    assert await site.store.moves() == moves


@pytest.mark.parametrize(("path", "fields"), CHANGES)
async def test_changes_need_the_sessions_own_token(site: Site, path: str, fields: dict[str, str]) -> None:
    """Without a token, with a wrong one, and with another session's, nothing changes."""
    stranger = (await site.get("/dashboard/releases")).csrf
    site.forget()
    await site.get("/dashboard")
    for token in (None, "", "wrong", stranger):
        page = await site.post(path, {**fields, **({} if token is None else {"csrf": token})})
        assert page.status == 403, token
        assert "token" in page.text


async def test_a_change_from_a_browser_without_a_session_is_refused(site: Site) -> None:
    """What a page of another site makes the browser send carries no cookie, and so is refused."""
    page = await site.post("/dashboard/releases/move", CHANGES[3][1])
    assert page.status == 403


# what browsers are told


async def test_every_answer_carries_the_security_headers(site: Site) -> None:
    """Pages, files, CSV, redirects and errors forbid scripts and frames of others, and are not kept by caches."""
    answers = await every_page(site)
    answers += [(path, await site.get(path)) for path in await assets(site)]
    answers.append(("csv", await site.get("/dashboard/csv/overview?figure=calls")))
    for path, page in answers:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == (
            "public, max-age=31536000, immutable" if "/static/" in path else "no-store"
        ), path


async def test_no_page_has_inline_script_or_style(site: Site) -> None:
    """Scripts come from files of ours; what stands in a page is data; there is no style or handler in attributes."""
    for path, page in await every_page(site):
        only_ours(path, page)


def only_ours(path: str, page: Page) -> None:
    """Raises unless the page has only elements and attributes of our own making."""
    for element in page.elements:
        assert element.tag not in {"img", "iframe", "object", "embed", "style", "base"}, path
        if element.tag == "script":
            data = element.attributes == {"type": "application/json"}
            assert data or element.attributes["src"].startswith("/dashboard/static/"), path
        for name, value in element.attributes.items():
            assert not name.startswith("on"), path
            assert name != "style", path
            if name in {"href", "src", "action"}:
                assert value.startswith(("/dashboard", "#")) or (not value and name == "href"), (path, value)


async def assets(site: Site) -> list[str]:
    """The files that a page refers to."""
    page = await site.get("/dashboard")
    scripts = [e.attributes["src"] for e in page.all("script") if "src" in e.attributes]
    return [*(e.attributes["href"] for e in page.all("link")), *scripts, page.all("body")[0].attributes["data-vega"]]


async def test_files_are_kept_for_good_and_compressed(site: Site) -> None:
    """A file's URL holds its hash; all that a first visit loads, charts included, is far below 1.5 MB."""
    total = 0
    for path in ("/dashboard", *(await assets(site))):
        async with site.http.get(path, headers={"accept-encoding": "gzip"}) as reply:
            total += int(reply.headers["content-length"])
            assert path == "/dashboard" or reply.headers["content-encoding"] == "gzip"
        plain = await site.get(path, **{"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.raw
    assert total < 500_000


async def test_record_text_is_escaped_wherever_it_is_shown(empty: Site) -> None:
    """Script planted in every field that can hold text is shown as text, on every page and in every state of it."""
    made = await plant(empty)
    pages = [f"/dashboard{page}" for page in PAGES]
    pages += [f"/dashboard/calls/{each.id}" for each in made]
    pages += [f"/dashboard/tasks/{each.task}" for each in made[:1]]
    pages += [f"/dashboard/calls?{name}={EVIL}" for name in ("task", "reason", "model", "episode", "key", "text")]
    pages += [f"/dashboard/label?task={made[0].task}&done={EVIL}", f"/dashboard/login?next={EVIL}"]
    pages += [f"/dashboard?key={EVIL}", f"/dashboard?period={EVIL}", f"/dashboard/{EVIL}", f"/dashboard/csv/{EVIL}"]
    shown = 0
    for path in pages:
        page = await empty.get(path.replace(EVIL, quote(EVIL, safe="")))
        only_ours(path, page)
        assert "<script>alert" not in page.html, path
        assert "<img" not in page.html, path
        assert "753571" not in page.html, path
        shown += EVIL in "".join(e.text for e in page.elements if e.tag == "body")
    assert shown >= 10


async def plant(site: Site) -> list[Any]:
    """Calls, labels, keys and releases with script in every text."""
    evil_call = Choice(EVIL, (ToolCall(EVIL, EVIL, f'{{"{EVIL[:8]}": 1}}'),), "tool_calls", EVIL, EVIL)
    verdict = Verdict((Violation(EVIL, EVIL, EVIL),))
    given = {"stage": EVIL, "backend": EVIL, "model": EVIL}
    small = attempt(evil_call, small=True, decision="accept", reason=EVIL, **given)
    broken = attempt(
        None, small=False, decision="escalate", reason=f"error:{EVIL}", verdict=verdict, error=EVIL, **given
    )
    marked = attempt(call(EVIL), small=True, decision="shadow", reason=EVIL, features={EVIL: 1.0}, **given)
    large = attempt(Choice(EVIL * 2), small=False, decision="accept", reason=EVIL, **given)
    asked = request(EVIL, episode=EVIL, key=EVIL)
    said = (
        {"role": EVIL, "content": EVIL},
        {"role": "user", "content": [{"type": EVIL}, {"type": "text", "text": EVIL}]},
    )
    called = {"function": {"name": EVIL, "arguments": EVIL}}
    said += ({"role": "assistant", "content": None, "tool_calls": [called]},)
    asked = replace(asked, messages=said, model=EVIL, body={**asked.body, "messages": list(said), "model": EVIL})
    made = [
        record(EVIL, time.time() - n, asked, attempts, config_hash=EVIL, reason=EVIL)
        for n, attempts in enumerate(((small,), (broken, small), (large, marked), (large, small)))
    ]
    plain = replace(marked, completion=Completion((call("billing"),)), verdict=Verdict(), features={})
    made.append(record(EVIL, time.time(), request(EVIL), (large, plain)))
    for each in made:
        await site.store.append(each)
        for kind, value in (("comment", EVIL), ("answer", {"content": EVIL})):
            await site.store.add_feedback(Feedback(new_id(), each.id, time.time(), kind, value, EVIL))  # type: ignore[arg-type]
    await site.store.save_calibration(EVIL, EVIL, '{"version": 99}')
    await release_candidate(site.store, EVIL, time.time())
    return made


# CSV


def table(page: Page) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(page.raw.decode())))


async def test_every_figure_can_be_downloaded(site: Site) -> None:
    """Each link for a download gives CSV with a header, and a figure's row has its interval and its definition."""
    seen = 0
    for path, page in await every_page(site):
        for href in csv_links(page):
            answer = await site.get(href)
            assert answer.status == 200, (path, href)
            assert answer.headers["content-type"].startswith("text/csv")
            assert answer.headers["content-disposition"].startswith("attachment")
            seen += 1
    assert seen >= 30
    [row] = table(await site.get("/dashboard/csv/overview?figure=escalation&period=all"))
    assert {"name", "value", "low", "high", "n", "unit", "definition"} == row.keys()
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    lines = table(await site.get("/dashboard/csv/tasks?figure=lines&period=all"))
    assert {CALIBRATED, OBSERVED, TRIED} == {line["task"] for line in lines}
    assert {"coverage", "coverage_low", "coverage_high", "coverage_n"} <= lines[0].keys()


async def test_text_in_csv_is_no_formula(empty: Site) -> None:
    """Text that a spreadsheet would run is marked as text."""
    evil = '=HYPERLINK("http://evil.example","x")'
    answer = attempt(call("billing"), small=True, decision="accept", reason=evil, model=evil)
    await empty.store.append(record("t", time.time(), request("x"), (answer,)))
    [row] = table(await empty.get("/dashboard/csv/calls?figure=calls"))
    assert row["model"] == row["reason"] == f"'{evil}"


# labels


async def test_pairs_nearest_to_the_threshold_come_first(empty: Site) -> None:
    """Of calls with two different answers that nobody has judged, the least certain one is shown first."""
    ids = {}
    for margin in (0.95, 0.52, 0.1):
        ids[margin] = (await add_pair(empty, "billing", "returns", margin=margin)).id
    await add_pair(empty, "billing", "billing", margin=0.5)
    for margin in (0.52, 0.1, 0.95):
        page = await empty.get("/dashboard/label")
        assert page.all("input", name="record")[0].attributes["value"] == ids[margin]
        await empty.submit("/dashboard/label", "/dashboard/label/verdict", record=ids[margin], verdict="left")
    assert "No pair is waiting" in (await empty.get("/dashboard/label")).text


async def test_the_order_of_answers_tells_nothing(empty: Site) -> None:
    """The small model's answer stands on either side, and on the same one whenever the page is loaded."""
    sides = set()
    for n in range(12):
        made = await add_pair(empty, "billing", "returns", margin=0.5 + n / 100)
        first, second = [await left_answer(empty, made.id) for _ in range(2)]
        assert first == second
        sides.add(first)
    assert sides == {"billing", "returns"}


async def test_skipping_goes_on_and_labels_nothing(empty: Site) -> None:
    """A skipped pair makes room for the next, can be gone back to, and stays unlabelled."""
    made = [await add_pair(empty, "billing", "returns", margin=0.5 + n / 10) for n in range(2)]
    reply = await empty.submit("/dashboard/label", "/dashboard/label/verdict", verdict="skip", skip=0)
    page = await empty.get(reply.headers["location"])
    assert page.all("input", name="record")[0].attributes["value"] == made[1].id
    page = await empty.get("/dashboard/label?skip=2")
    assert "/dashboard/label" in page.links()
    assert [await empty.store.feedback(each.id) for each in made] == [(), ()]


@pytest.mark.parametrize("served_by_small", [True, False])
@pytest.mark.parametrize("verdict", ["left", "right", "both", "neither"])
async def test_a_verdict_labels_both_answers(empty: Site, verdict: str, *, served_by_small: bool) -> None:
    """Calibration reads of both answers what the person said; of "neither" it reads that the one served was wrong."""
    made = await add_pair(empty, "billing", "returns", served_by_small=served_by_small)
    left = await left_answer(empty, made.id)
    reply = await empty.submit("/dashboard/label", "/dashboard/label/verdict", record=made.id, verdict=verdict)
    assert (reply.status, reply.headers["location"]) == (303, f"/dashboard/label?done={made.id}")
    kept = await empty.store.get(made.id)
    assert kept.feedback
    assert {f.source for f in kept.feedback} == {"dashboard:local"}
    for n, queue in ((0, "returns"), (1, "billing")) if not served_by_small else ((0, "billing"), (1, "returns")):
        side = "left" if queue == left else "right"
        label = label_of(kept, request_of(kept), n, Outcomes())
        if verdict != "neither":
            assert label is not None
            assert label.correct == (verdict in {side, "both"})
            assert label.kind == "feedback"
        elif n == kept.served:
            assert label is not None
            assert not label.correct


async def test_a_verdict_on_what_is_no_pair_is_refused(empty: Site) -> None:
    """Unknown records, records with one answer and unknown verdicts are errors, not labels."""
    made = await add_pair(empty, "billing", "returns")
    alone = answered()
    await empty.store.append(alone)
    for record_id, verdict, status in ((made.id, "perhaps", 400), ("nope", "left", 404), (alone.id, "left", 404)):
        fields = {"record": record_id, "verdict": verdict}
        assert (await empty.submit("/dashboard/label", "/dashboard/label/verdict", **fields)).status == status
    assert not await empty.store.feedback(made.id)


async def test_a_call_can_be_labelled_on_its_page(site: Site) -> None:
    """An operator says whether the answer that a call got was right; the page shows it from then on."""
    call_id = await first_call(site, task=CALIBRATED)
    at = f"/dashboard/calls/{call_id}"
    assert (await site.submit(at, f"{at}/label", correct="no")).status == 303
    assert (await site.store.feedback(call_id))[-1].value is False
    assert (await site.submit(at, f"{at}/label", correct="perhaps")).status == 400


async def add_pair(site: Site, small: str, large: str, *, margin: float = 0.5, served_by_small: bool = False) -> Any:
    """A call that both models answered."""
    features = {"margin_min": margin}
    decision = "accept" if served_by_small else "shadow"
    ours = attempt(call(small), small=True, decision=decision, reason="x", features=features)  # type: ignore[arg-type]
    decision = "audit" if served_by_small else "accept"
    theirs = attempt(call(large), small=False, decision=decision, reason="different", probability=0.5)  # type: ignore[arg-type]
    attempts = (ours, theirs) if served_by_small else (theirs, ours)
    made = record("t", time.time(), request("Where?"), attempts)
    await site.store.append(made)
    return made


async def left_answer(site: Site, record_id: str) -> str:
    """The queue that the answer on the left names, once that record's pair is shown."""
    for skip in range(50):
        page = await site.get(f"/dashboard/label?skip={skip}")
        if page.all("input", name="record")[0].attributes["value"] == record_id:
            text = page.all("pre", **{"aria-label": "Left answer"})[0].text
            return next(queue for queue in ("billing", "returns") if queue in text)
    raise AssertionError(record_id)


# replay


async def test_a_call_can_be_asked_of_another_model(site: Site) -> None:
    """The answer is shown beside the one served, with what differs marked, and is kept nowhere."""
    call_id = await first_call(site, task=CALIBRATED)
    at, before = f"/dashboard/calls/{call_id}", await site.store.get(call_id)
    page = await site.submit(at, f"{at}/replay", model="large")
    assert page.status == 200
    [shown] = page.all("pre", **{"aria-label": "Replayed answer"})
    assert shown.text.strip() == before.messages[-1]["content"]
    assert page.all("mark")
    assert await site.store.get(call_id) == before
    assert await site.store.count() == 360


async def test_a_replay_needs_a_model_that_is_configured(site: Site) -> None:
    """Another name is an error, and so is a call whose text was not kept."""
    call_id = await first_call(site, task=CALIBRATED)
    at = f"/dashboard/calls/{call_id}"
    assert (await site.submit(at, f"{at}/replay", model="gpt-9")).status == 404
    bare = answered()
    await site.store.append(bare, capture=False)
    at = f"/dashboard/calls/{bare.id}"
    assert "were not kept" in (await site.get(at)).text
    assert (await site.submit(at, f"{at}/replay", model="large")).status == 400


async def test_a_replay_counts_against_the_operators_budget(site: Site) -> None:
    """A key that may spend nothing replays nothing that costs."""
    key = await site.add_key("operator", usd_per_day=0.0)
    await site.log_in(key)
    at = f"/dashboard/calls/{await first_call(site, task=CALIBRATED)}"
    page = await site.submit(at, f"{at}/replay", model="large")
    assert page.status == 429
    assert "budget" in page.text


# releases


async def test_a_candidate_is_promoted_and_taken_back(site: Site) -> None:
    """Each move is recorded with who made it, when and why; the version before answers again after the last."""
    key = await site.add_key("operator")
    await site.log_in(key)
    version = (await site.store.release(TRIED)).candidate
    fields = {"task": TRIED, "version": version, "confirmed": "yes"}
    for action, why, live in (("live", "it held", version), ("withdraw", "complaints", "")):
        reply = await site.submit("/dashboard/releases", "/dashboard/releases/move", action=action, why=why, **fields)
        assert reply.status == 303
        assert (await site.store.release(TRIED)).live == live
        move = (await site.store.moves(TRIED))[-1]
        assert (move.by, move.reason, move.version) == (key.split("-")[1], why, version)
        assert abs(move.at - time.time()) < 60
    page = await site.get("/dashboard/releases")
    assert "complaints" in page.text


@pytest.mark.parametrize(
    "changed",
    [{"confirmed": ""}, {"why": " "}, {"action": "delete"}, {"version": "another"}, {"task": "another"}],
)
async def test_a_move_that_is_not_confirmed_or_out_of_date_changes_nothing(site: Site, changed: dict[str, str]) -> None:
    """Without the tick, a reason, a known action, or when another version stands there by now, nothing moves."""
    before = await site.store.release(TRIED)
    fields = {"task": TRIED, "version": before.candidate, "action": "live", "confirmed": "yes", "why": "x", **changed}
    assert (await site.submit("/dashboard/releases", "/dashboard/releases/move", **fields)).status == 400
    assert await site.store.release(TRIED) == before


# live


async def test_pages_are_told_of_new_calls(empty: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream of events names the newest call soon after it was recorded."""
    monkeypatch.setattr("smallfirst.dashboard.live.LOOKS_EVERY_S", 0.1)
    monkeypatch.setattr("smallfirst.dashboard.live._TICK_S", 0.05)
    made = answered()
    async with empty.http.get("/dashboard/events") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [await reply.content.readline() for _ in range(4)]
        await empty.store.append(made)
        async with asyncio.timeout(5):
            while f"data: {made.id}\n".encode() not in lines:
                lines.append(await reply.content.readline())


async def test_open_streams_hold_no_stop_up(tmp_path: Path) -> None:
    """A server that is to stop does not wait for pages that listen."""
    async with asyncio.timeout(5), aiohttp.ClientSession() as listener:
        async with Site.open(tmp_path) as stopping:
            reply = await listener.get(f"{stopping.url}/dashboard/events")
            await reply.content.readline()
        reply.close()


# system


async def test_secrets_are_shown_nowhere(open_site: Open) -> None:
    """Of keys that the environment holds only the variables' names are shown."""
    table = (
        '[models.hosted]\nbackend = "openai"\nbase_url = "https://llm.example/v1"\nmodel = "m"\napi_key_env = "LLM_KEY"'
    )
    guarded = await open_site(table, LLM_KEY="sk-hunter2")
    page = await guarded.get("/dashboard/system")
    assert {"hunter2"} & set(re.findall(r"\w+", page.html)) == set()
    assert "llm.example" in page.html
    assert "LLM_KEY" in page.html
