"""Nothing that comes from outside runs on the live page, or makes it ask another host, in a real browser.

Every name, reason and answer that others choose is made to be HTML, script and links; what ran would have
raised a flag, opened a dialog, or asked for something elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import crowd
from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.raw_client import RawClient, request
from tests.script import error, play, sse, stall, stream, word
from tests.web.test_page_in_browser import page, patience, sign_in
from tests.web.test_page_talks import answered, say

__all__ = ["page", "patience"]

ELSEWHERE = "http://evil.example"
RUNS = "window.ran=(window.ran||0)+1"
PAYLOADS = (
    f"<script>{RUNS}</script>",
    f'<img src=x onerror="{RUNS}">',
    f"<svg/onload={RUNS}>",
    f'"><img src="{ELSEWHERE}/dot.png" onerror="{RUNS}">',
    f"'onmouseover='{RUNS}' autofocus onfocus='{RUNS}",
    f"<iframe srcdoc='<script>parent.{RUNS}</script>'></iframe>",
    f"<a href='javascript:{RUNS}' id=x>x</a>",
    f"<form action='{ELSEWHERE}'><input name=x><button>Send</button></form>",
    f"<style>@import '{ELSEWHERE}/x.css';body{{display:none}}</style>",
    f"<base href='{ELSEWHERE}/'><link rel=stylesheet href='{ELSEWHERE}/y.css'>",
    f"<math><mtext></p><table><mglyph><style><img src=x onerror='{RUNS}'>",
    "{{constructor.constructor('window.ran=1')()}} ${window.ran=1}",
)
SHORT = f"<img src=x onerror={RUNS}>"  # for names that are cut


@pytest.fixture
async def watched(page: Page) -> AsyncIterator[Page]:
    """A page of which every dialog, and every request to another host, fails the test."""
    elsewhere: list[str] = []
    dialogs: list[str] = []
    page.on("request", lambda asked: elsewhere.append(asked.url) if not _is_ours(asked.url) else None)
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    page.on("popup", lambda popup: elsewhere.append(popup.url))
    yield page
    assert await page.evaluate("window.ran") is None
    assert (elsewhere, dialogs) == ([], [])


def _is_ours(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


async def has_nothing_foreign(page: Page) -> None:
    """Check that the page's document has no element that only a payload could have brought."""
    found = await page.evaluate(
        """() => [...document.querySelectorAll('*')].filter(each =>
            ['IFRAME', 'OBJECT', 'EMBED', 'BASE', 'MATH', 'MGLYPH'].includes(each.tagName)
            || (each.tagName === 'SCRIPT' && !each.src.startsWith(location.origin))
            || (each.tagName === 'STYLE' && each.textContent.includes('evil'))
            || (each.tagName === 'IMG' && !/^data:/.test(each.src) && !each.src.startsWith(location.origin))
            || [...each.attributes].some(a => a.name.startsWith('on')
                || (['href', 'src', 'action', 'formaction'].includes(a.name)
                    && /^\\s*(javascript|vbscript|data:text)/i.test(a.value)))
        ).map(each => each.outerHTML.slice(0, 200))"""
    )
    assert found == []


async def test_names_and_reasons_that_are_html_are_shown_as_text(
    provider_for: ProviderFor, gateway_for: GatewayFor, watched: Page
) -> None:
    rig = await provider_for("rig", models=[*PAYLOADS, "m", "b"])
    sick = await provider_for("sick", models=["s"])
    sick.on["/v1/models"] = error(500, SHORT + PAYLOADS[0])
    users = {"alice": {"admin": True, "keys": [KEY], "person_header": "X-Person"}}
    gateway = await gateway_for(
        rig,
        sick,
        users=users,
        aliases={f"alias {PAYLOADS[1]}": "m", f"other {PAYLOADS[0]}": PAYLOADS[0]},
    )
    gateway.condition.problems = [f"config.yaml:1:1: {each}" for each in PAYLOADS]
    gateway.condition.restart_needed = (SHORT,)
    rig.once(play(sse(), word("Hel"), stall()))
    async with crowd(gateway.port) as send, RawClient(gateway.port) as client:
        waiting = await send(_asking("m", stream=True))
        await waiting.head()
        for model, status in (("m", 400), (PAYLOADS[2], 400), ("b", 500)):
            rig.script = error(status, PAYLOADS[1])
            await client.send(_asking(model))
            await client.response()
        await sign_in(watched, gateway.url)
        await expect(watched.get_by_test_id("request-row")).to_have_count(1)
        await expect(watched.get_by_test_id("provider-card")).to_have_count(2)
        await expect(watched.get_by_test_id("provider-card").first).to_contain_text(PAYLOADS[1])
        await expect(watched.get_by_test_id("provider-card").last).to_contain_text(SHORT)
        await expect(watched.get_by_test_id("recent-row").first).to_be_visible()
        await has_nothing_foreign(watched)
        await _open_all(watched)
        await has_nothing_foreign(watched)


async def _open_all(page: Page) -> None:
    """Open what can be opened: the log, and what is told of each request."""
    for each in await page.locator("details > summary").all():
        if await each.is_visible():
            await each.click()
    for each in await page.get_by_test_id("recent-row").all():
        await each.click()
        await has_nothing_foreign(page)
        await page.keyboard.press("Escape")


def _asking(model: str, **more: Any) -> bytes:
    body = json.dumps({"model": model, "messages": [], **more}).encode()
    return request("POST", "/v1/chat/completions", "X-Person: <b onclick=x>", body=body)


ANSWERS = (
    *PAYLOADS,
    f"[a link](javascript:{RUNS}) [another](  JaVaScRiPt:{RUNS})",
    f"[data](data:text/html,<script>{RUNS}</script>)",
    f"![tracker]({ELSEWHERE}/pixel.png) ![x](x){{onerror={RUNS}}}",
    f"<{ELSEWHERE}/auto> [x]: {ELSEWHERE} '{RUNS}'",
    f"```html\n{PAYLOADS[1]}\n```\n`{PAYLOADS[0]}`",
    f"| a |\n|---|\n| {PAYLOADS[1]} |\n\n# {PAYLOADS[2]}\n\n* {PAYLOADS[3]}",
    f"<details open ontoggle={RUNS}><summary>x</summary></details><video src=x onerror={RUNS}></video>",
    "![svg](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+)",
    f"<svg><use href='{ELSEWHERE}/x.svg#x'/></svg>",
)


async def test_an_answer_that_is_html_or_markdown_runs_nothing_and_asks_nobody(
    provider: FakeProvider, gateway_for: GatewayFor, watched: Page
) -> None:
    gateway = await gateway_for(provider, users={"alice": {"admin": True, "keys": [KEY]}})
    await sign_in(watched, gateway.url)
    provider.once(stream(*(f"{each}\n\n" for each in ANSWERS)))
    await say(watched, PAYLOADS[1])
    await answered(watched)
    await has_nothing_foreign(watched)
    for link in await watched.locator(".turn a").all():
        if (href := await link.get_attribute("href")) is not None:
            assert href.startswith(("http://", "https://", "mailto:"))
            assert "noopener" in (await link.get_attribute("rel") or "")
    provider.once(error(400, PAYLOADS[1]))
    await say(watched, PAYLOADS[0])
    await expect(watched.locator(".turn").last).to_contain_text(PAYLOADS[1])
    await has_nothing_foreign(watched)
    await watched.reload()
    await expect(watched.locator(".turn").first).to_be_visible()
    await has_nothing_foreign(watched)


async def test_the_policy_of_the_page_lets_nothing_run_that_is_not_its_own(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    gateway = await gateway_for(provider)
    browser = page.context.browser
    assert browser is not None
    unwatched = await browser.new_page()  # the other one fails the test of which this is the point
    await unwatched.goto(f"{gateway.url}/gateway/")
    await unwatched.evaluate(BREAKING, ELSEWHERE)
    policies = {"script-src-elem", "script-src-attr", "connect-src", "img-src", "style-src-elem", "frame-src"}
    await unwatched.wait_for_function("many => new Set(window.broken).size >= many", arg=len(policies))
    assert set(await unwatched.evaluate("window.broken")) == policies
    assert await unwatched.evaluate("window.ran") is None


BREAKING = """async (elsewhere) => {
    window.broken = [];
    document.addEventListener('securitypolicyviolation', (e) => window.broken.push(e.effectiveDirective));
    const add = (tag, set) => document.body.append(Object.assign(document.createElement(tag), set));
    add('script', {textContent: 'window.ran = 1'});
    add('script', {src: elsewhere + '/x.js'});
    add('img', {src: elsewhere + '/x.png'});
    add('style', {textContent: '@import "' + elsewhere + '/x.css"'});
    add('iframe', {src: elsewhere});
    const made = document.createElement('div');
    made.setAttribute('onclick', 'window.ran = 1');
    document.body.append(made);
    made.click();
    await fetch(elsewhere).catch(() => {});
}"""
