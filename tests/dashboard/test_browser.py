"""The dashboard in a real browser: every page and every action, by mouse and by key, in both colour schemes.

Screenshots go to $SMALLFIRST_SCREENSHOTS, by default to a folder of pytest's own. Those of docs/dashboard.md are some
of what `SMALLFIRST_SCREENSHOTS=docs/dashboard pytest tests/dashboard/test_browser.py` makes.
"""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from filled import CALIBRATED, TRIED, attempt, call, record, request
from site_under_test import Site

from smallfirst.store import RecordFilter

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: pip install playwright")
axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="pip install axe-playwright-python")

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = ("overview", "tasks", "task", "calls", "call", "releases", "compression", "label", "system", "login")
HIGHEST = 1200
SHOWN = Path(__file__).parents[2] / "docs" / "dashboard"

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}: apt install chromium"),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as started:
        chromium = await started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(used: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A dashboard after some weeks of use, of which tests only read."""
    async with _opened(used, tmp_path_factory.mktemp("shared")) as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def site(used: Path, tmp_path: Path) -> AsyncIterator[Site]:
    """A dashboard after some weeks of use, of the test's own."""
    async with _opened(used, tmp_path) as opened:
        yield opened


def _opened(used: Path, folder: Path) -> Any:
    shutil.copy(used, folder)
    return Site.open(folder)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept."""
    given = os.environ.get("SMALLFIRST_SCREENSHOTS")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Tab:
    """A tab of the browser that notes what goes wrong in it, and whom it asks for what."""

    def __init__(self, page: Any, site: Site) -> None:
        self.page, self.site = page, site
        self.problems: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda said: self.problems.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda asked: self.asked.append(asked.url))

    async def open(self, path: str) -> None:
        """Go to a page and wait until its charts are drawn."""
        await self.page.goto(f"{self.site.url}{path}")
        await self.drawn()

    async def drawn(self) -> None:
        await self.page.wait_for_load_state("load")
        await self.page.wait_for_function(
            "() => [...document.querySelectorAll('.chart')].every(chart => chart.dataset.drawn)", timeout=30_000
        )

    async def show(self, name: str) -> None:
        """Open one of `PAGES`."""
        paths = {"overview": "", "task": f"/tasks/{CALIBRATED}"}
        if name == "call":
            wanted = RecordFilter(task=CALIBRATED, reason="low_confidence")
            [newest] = await self.site.store.list_records(wanted, limit=1)
            paths[name] = f"/calls/{newest.id}"
        await self.open(f"/dashboard{paths.get(name, f'/{name}')}")

    async def text(self) -> str:
        return str(await self.page.inner_text("body"))

    def quiet(self) -> None:
        """Raises when anything went wrong, or anybody but the gateway was asked for anything."""
        assert self.problems == []
        assert [url for url in self.asked if not url.startswith((self.site.url, "data:"))] == []


async def tab(
    stack: AsyncExitStack, browser: Any, site: Site, *, dark: bool = False, width: int = 1200, **more: Any
) -> Tab:
    """A new tab, closed with `stack`."""
    scheme = "dark" if dark else "light"
    context = await browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", **more
    )
    stack.push_async_callback(context.close)
    return Tab(await context.new_page(), site)


def check_picture(picture: bytes, name: str, width: int) -> None:
    """Raises when a screenshot is blank, or far from the one that the documentation shows."""
    wide, high = struct.unpack(">II", picture[16:24])
    assert wide == width
    assert high >= 400
    assert len(picture) > 8_000, "the page looks blank"
    known = SHOWN / f"{name}.png"
    if known.exists():
        assert struct.unpack(">I", known.read_bytes()[16:20]) == (wide,)
        assert 1 / 3 < len(picture) / known.stat().st_size < 3


async def violations(page: Any) -> list[str]:
    """What axe-core finds that is serious or critical."""
    found = await axe.Axe().run(page)
    return [
        f"{each['id']}: {node['html'][:200]}"
        for each in found.response["violations"]
        if each["impact"] in {"serious", "critical"}
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
@pytest.mark.parametrize("name", PAGES)
async def test_every_page_is_drawn_and_accessible(
    browser: Any, shared: Site, screenshots: Path, name: str, look: str
) -> None:
    """No error, no request to anybody else, no serious finding of axe-core, nothing wider than the window."""
    width = 390 if look == "phone" else 1200
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, shared, dark=look == "dark", width=width)
        await shown.show(name)
        full = f"{name}-{look}"
        high = min(await shown.page.evaluate("document.documentElement.scrollHeight"), HIGHEST)
        clip = {"x": 0, "y": 0, "width": width, "height": high}
        picture = await shown.page.screenshot(path=screenshots / f"{full}.png", full_page=True, clip=clip)
        check_picture(picture, full, width)
        shown.quiet()
        for text_px in (16, 20):  # larger text stands for longer values as well: times, names, other fonts
            await shown.page.evaluate("size => { document.documentElement.style.fontSize = `${size}px` }", text_px)
            assert await shown.page.evaluate("document.documentElement.scrollWidth") <= width
        await shown.page.evaluate("document.documentElement.style.fontSize = ''")
        assert look == "phone" or await violations(shown.page) == []
        drawn = await shown.page.evaluate("[...document.querySelectorAll('.chart')].map(chart => chart.dataset.drawn)")
        assert set(drawn) <= {"yes"}
        assert drawn or name not in {"overview", "task"}


async def test_dark_mode_follows_the_system(browser: Any, shared: Site) -> None:
    """Paper and ink change places when the system prefers dark, and charts are drawn anew in its colours."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, shared)
        await shown.show("overview")
        ink = "getComputedStyle(document.querySelector('.plot svg text')).fill"
        paper = "getComputedStyle(document.body).backgroundColor"
        light = [await shown.page.evaluate(each) for each in (paper, ink)]
        await shown.page.emulate_media(color_scheme="dark")
        await shown.page.wait_for_function(f"() => {ink} !== {light[1]!r}")
        assert await shown.page.evaluate(paper) != light[0]


async def test_the_first_load_is_light_and_kept(browser: Any, shared: Site) -> None:
    """All that the first page loads is at most 1.5 MB, charts included; the second time hardly anything is loaded."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, shared)
        network = await shown.page.context.new_cdp_session(shown.page)
        await network.send("Network.enable")
        sizes: list[float] = []
        network.on("Network.loadingFinished", lambda done: sizes.append(done["encodedDataLength"]))
        await shown.show("overview")
        first, sizes[:] = sum(sizes), []
        await shown.show("overview")
        assert 10_000 < first <= 1.5 * 2**20
        assert sum(sizes) < 150_000


async def test_without_script_pages_still_work(browser: Any, shared: Site) -> None:
    """Figures, tables, search and labels need no JavaScript; pictures say that they do."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, shared, java_script_enabled=False)
        await shown.page.goto(f"{shared.url}/dashboard")
        assert "needs JavaScript" in await shown.text()
        await shown.page.goto(f"{shared.url}/dashboard/calls")
        await shown.page.fill("[name=task]", CALIBRATED)
        await shown.page.click("text=Search")
        assert await shown.page.locator("#calls tbody tr").count() == 50


async def test_definitions_show_on_hover_and_on_focus(browser: Any, shared: Site) -> None:
    """The definition of a figure appears under the mouse and at the keyboard, and Escape puts it away."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, shared)
        await shown.show("overview")
        button, tip = shown.page.locator("#figure-escalation .about button"), shown.page.locator("#about-escalation")
        assert not await tip.is_visible()
        await button.hover()
        assert await tip.is_visible()
        await shown.page.mouse.move(0, 0)
        assert not await tip.is_visible()
        await button.focus()
        assert await tip.is_visible()
        await shown.page.keyboard.press("Escape")
        assert not await tip.is_visible()


async def test_figures_are_downloaded_as_csv(browser: Any, shared: Site) -> None:
    """A figure's link saves a file named after it."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, shared)
        await shown.show("overview")
        await shown.page.hover("#figure-escalation")
        async with shown.page.expect_download() as download:
            await shown.page.click("#figure-escalation .csv")
        assert (await download.value).suggested_filename == "overview-escalation.csv"


async def test_choosing_a_period_shows_it_at_once(browser: Any, shared: Site) -> None:
    """The selection is sent as soon as it changes, and stays chosen."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, shared)
        await shown.show("tasks")
        async with shown.page.expect_navigation():
            await shown.page.select_option("[name=period]", "24h")
        assert "period=24h" in shown.page.url
        assert await shown.page.input_value("[name=period]") == "24h"


async def test_new_calls_appear_by_themselves(browser: Any, site: Site) -> None:
    """A call that is recorded while one looks at the list appears in it without reloading."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, site)
        await shown.show("calls")
        await shown.page.wait_for_timeout(500)
        small = attempt(call("billing"), small=True, decision="accept", reason="calibrated", model="just-now")
        await site.store.append(record(CALIBRATED, time.time(), request("Now?"), (small,)))
        await shown.page.wait_for_selector("text=just-now", timeout=20_000)
        assert "updated" in await shown.page.inner_text("#live")
        shown.quiet()


async def test_login_and_logout_by_keyboard(browser: Any, site: Site) -> None:
    """Typing a key and Enter opens the page that was asked for, read-only for a viewer, until one logs out."""
    key = await site.add_key("viewer")
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, site)
        await shown.open("/dashboard/tasks")
        assert "/login" in shown.page.url
        await shown.page.focus("#key")
        await shown.page.keyboard.type("sf-wrong")
        await shown.page.keyboard.press("Enter")
        await shown.page.wait_for_selector("[role=alert]")
        shown.problems.clear()  # the browser notes the 401
        await shown.page.fill("#key", key)
        await shown.page.keyboard.press("Enter")
        await shown.page.wait_for_url("**/dashboard/tasks")
        assert "read-only" in await shown.text()
        await shown.page.click("text=Log out")
        await shown.page.wait_for_url("**/dashboard/login")
        shown.quiet()


async def test_labelling_takes_one_key(browser: Any, site: Site) -> None:
    """Each of the keys that the buttons show judges the pair, or skips it, and the next one is there."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, site)
        await shown.show("label")
        for key in "1234":
            pair = await shown.page.input_value("[name=record]")
            async with shown.page.expect_navigation():
                await shown.page.keyboard.press(key)
            assert await site.store.feedback(pair)
            assert await shown.page.input_value("[name=record]") != pair
        pair = await shown.page.input_value("[name=record]")
        async with shown.page.expect_navigation():
            await shown.page.keyboard.press("0")
        assert not await site.store.feedback(pair)
        assert await shown.page.input_value("[name=record]") != pair
        shown.quiet()


async def test_a_call_is_labelled_and_replayed_on_its_page(browser: Any, site: Site) -> None:
    """The page says that the answer was wrong from then on, and shows another model's answer beside the one served."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, site)
        await shown.show("call")
        async with shown.page.expect_navigation():
            await shown.page.click("text=It was wrong")
        assert "dashboard:local" in await shown.text()
        await shown.page.select_option("[name=model]", "large")
        async with shown.page.expect_navigation():
            await shown.page.click("text=Replay this call")
        assert await shown.page.locator("[aria-label='Replayed answer']").is_visible()
        assert await shown.page.locator("mark").count() > 0
        shown.quiet()


async def test_a_candidate_is_promoted_only_when_confirmed(browser: Any, site: Site) -> None:
    """Without a reason and the tick the browser sends nothing; with both the version is live and the move is listed."""
    async with AsyncExitStack() as stack:
        shown = await tab(stack, browser, site)
        await shown.show("releases")
        await shown.page.click("summary:text-is('Promote')")
        form = shown.page.locator("details[open] form")
        await form.locator("button").click()
        version = (await site.store.release(TRIED)).candidate
        assert version
        await form.locator("[name=why]").fill("It held for a week.")
        await form.locator("[name=confirmed]").check()
        async with shown.page.expect_navigation():
            await form.locator("button").click()
        assert (await site.store.release(TRIED)).live == version
        assert "It held for a week." in await shown.text()
        shown.quiet()


async def test_every_empty_page_is_accessible(browser: Any, tmp_path: Path) -> None:
    """A dashboard without calls is drawn without errors, and says on each page what to do."""
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(Site.open(tmp_path))
        shown = await tab(stack, browser, bare, width=390)
        for name in PAGES:
            if name in {"task", "call", "login", "system"}:
                continue
            await shown.show(name)
            assert await shown.page.locator(".empty").count() > 0, name
            assert await violations(shown.page) == []
        shown.quiet()
