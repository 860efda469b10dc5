"""The try-it box, the tables and the log of the live page as people use them, in a real browser."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

import pytest
from playwright.async_api import Page, expect

from llmgateway.log import LastLines
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import ask_for
from tests.exchange import Exchange
from tests.fake_provider import FakeProvider
from tests.raw_client import RawClient, chat
from tests.script import error, play, sse, stream, wait, word
from tests.web.test_page_in_browser import BOB, USERS, page, patience, sign_in

__all__ = ["page", "patience"]

MARKDOWN = """# Title

Some **bold** <img src=x onerror=alert(1)> [link](https://example.org) [bad](javascript:alert(1))

| a | b |
|---|--:|
| 1 | 2 |

```python
print("<hi>")
```

- one
- two ![pic](https://evil.example/pixel.png)
"""


async def say(page: Page, text: str) -> None:
    await page.get_by_test_id("try-input").fill(text)
    await page.get_by_test_id("try-send").click()


async def answered(page: Page) -> None:
    await expect(page.get_by_test_id("try-answer")).not_to_have_attribute("aria-busy", "true")


async def test_an_answer_is_shown_as_markdown_and_nothing_in_it_loads_or_runs(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    pieces = [MARKDOWN[at : at + 7] for at in range(0, len(MARKDOWN), 7)]
    provider.once(stream(*pieces))
    gateway = await gateway_for(provider, users=USERS)
    await sign_in(page, gateway.url)
    await say(page, "Show me")
    await answered(page)
    answer = page.get_by_test_id("try-answer")
    await expect(answer.locator("h1")).to_have_text("Title")
    await expect(answer.locator("strong")).to_have_text("bold")
    await expect(answer.locator("td")).to_have_text(["1", "2"])
    await expect(answer.locator("pre code")).to_have_text('print("<hi>")\n')
    await expect(answer.locator("li")).to_have_count(2)
    await expect(answer).to_contain_text("<img src=x onerror=alert(1)>")
    assert await answer.locator("img, script, [onerror], [style]").count() == 0
    links = await answer.locator("a[href]").evaluate_all("links => links.map(each => each.href)")
    assert links == ["https://example.org/", "https://evil.example/pixel.png"]
    assert not [url for url in asked if not url.startswith(gateway.url)]


async def test_the_conversation_the_model_and_the_settings_survive_a_reload_and_end_with_sign_out(
    provider_for: ProviderFor, gateway_for: GatewayFor, page: Page
) -> None:
    rig = await provider_for("rig", models=["a-chat", "b-chat"])
    rig.script = stream("Hello **you**")
    gateway = await gateway_for(rig, users=USERS)
    await sign_in(page, gateway.url)
    await page.get_by_test_id("try-model").select_option("b-chat")
    await page.get_by_test_id("try-settings").click()
    await page.get_by_test_id("try-system").fill("Be brief.")
    await page.get_by_test_id("try-temperature").fill("0.3")
    await say(page, "Hi")
    await answered(page)
    first: Any = (await rig.next_call()).request.json
    assert (first["model"], first["temperature"]) == ("b-chat", 0.3)
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    await page.reload()
    await expect(page.get_by_test_id("try-answer").locator("strong")).to_have_text("you")
    await expect(page.get_by_test_id("try-model")).to_have_value("b-chat")
    await say(page, "And now?")
    second: Any = (await rig.next_call()).request.json
    assert [each["content"] for each in second["messages"]] == [
        "Be brief.",
        "Hi",
        "Hello **you**",
        "And now?",
    ]
    assert (second["model"], second["temperature"]) == ("b-chat", 0.3)
    await answered(page)
    await page.get_by_test_id("sign-out").click()
    await page.get_by_test_id("key-input").fill(BOB)
    await page.get_by_test_id("sign-in-button").click()
    await expect(page.get_by_test_id("viewer")).to_have_text("bob")
    await expect(page.get_by_test_id("try-answer")).to_have_count(0)
    assert await page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])") == "[{},{}]"


async def test_a_model_that_chats_is_chosen_before_one_that_embeds(
    provider_for: ProviderFor, gateway_for: GatewayFor, page: Page
) -> None:
    rig = await provider_for(
        "rig", models=["all-minilm", "bge-m3", "nomic-embed-text", "qwen3:8b", "whisper-1"]
    )
    gateway = await gateway_for(rig, users=USERS)
    await sign_in(page, gateway.url)
    await expect(page.get_by_test_id("try-model")).to_have_value("qwen3:8b")


async def test_an_answer_is_written_anew_in_the_place_of_the_last_one_and_can_be_copied(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    provider.once(stream("First"))
    gateway = await gateway_for(provider, users=USERS)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await sign_in(page, gateway.url)
    await say(page, "Think of a word")
    await answered(page)
    await provider.next_call()
    await page.get_by_test_id("try-copy").click()
    await expect(page.get_by_test_id("try-copy")).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == "First"
    provider.script = stream("Second")
    await page.get_by_test_id("try-again").click()
    await expect(page.get_by_test_id("try-answer")).to_have_text("Second")
    again: Any = (await provider.next_call()).request.json
    assert again["messages"] == [{"role": "user", "content": "Think of a word"}]
    await expect(page.locator(".turn")).to_have_count(1)


async def test_a_fast_answer_leaves_the_page_its_frames_and_can_be_stopped(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    async def torrent(exchange: Exchange) -> None:
        await sse()(exchange)
        for number in itertools.count():
            text = f"word{number} " if number % 12 else f"\n\n**paragraph** {number} "
            await word(text)(exchange)
            await asyncio.sleep(0.0012)

    provider.script = torrent
    gateway = await gateway_for(provider, users=USERS)
    await sign_in(page, gateway.url)
    await page.evaluate(
        """() => {
          window.layouts = 0;
          const told = Object.getOwnPropertyDescriptor(Element.prototype, "scrollHeight");
          Object.defineProperty(Element.prototype, "scrollHeight",
            {...told, get() { window.layouts += 1; return told.get.call(this); }});
          window.frames_ = 0;
          const count = () => { window.frames_ += 1; requestAnimationFrame(count); };
          requestAnimationFrame(count);
        }"""
    )
    await say(page, "Talk for ever")
    call = await provider.next_call()
    await expect(page.get_by_test_id("try-answer")).to_contain_text("word601 ")
    await page.get_by_test_id("try-stop").click()
    await call.hung_up()
    layouts, frames = await page.evaluate("[window.layouts, window.frames_]")
    assert layouts <= 2 * frames + 10  # of more than 600 pieces


async def test_a_button_ends_a_request_and_recent_tells_all_about_it(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    provider.script = play(sse(), word("Never"), wait(asyncio.Event()))
    gateway = await gateway_for(
        provider, users={"alice": USERS["alice"], "bob": {"keys": [{"name": "phone", "key": BOB}]}}
    )
    await sign_in(page, gateway.url)
    async with RawClient(gateway.port) as client:
        await client.send(ask_for(key=BOB, stream=True))
        response = await client.head()
        await client.events(response, 1)
        row = page.get_by_test_id("request-row")
        await row.get_by_role("button", name="m", exact=True).click()
        await expect(page.get_by_test_id("detail")).to_contain_text("/v1/chat/completions")
        await page.get_by_test_id("detail-close").click()
        await row.get_by_role("button", name="End").click()
        assert (await client.events(response, 2))[-1]["error"]["type"] == "cancelled"
    await expect(page.get_by_test_id("request-row")).to_have_count(0)
    recent = page.get_by_test_id("recent-row")
    await expect(recent).to_have_attribute("data-outcome", "cancelled")
    for told in ("Ended by hand", "ended by alice", "phone", "chat/completions"):
        await expect(recent).to_contain_text(told)
    await recent.locator(".time").click()
    await expect(page.get_by_test_id("detail")).to_contain_text("ended by alice")


async def test_a_usage_row_without_a_model_says_so_and_a_failure_says_why(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    gateway = await gateway_for(provider, users=USERS)
    async with RawClient(gateway.port) as client:
        await client.send(ask_for("nobody-has-it"))
        await client.response()
        provider.on["/v1/chat/completions"] = error(500, "boom")
        await client.send(chat())
        await client.response()
    await sign_in(page, gateway.url)
    await expect(page.get_by_test_id("usage-table")).to_contain_text("(no model)")
    await expect(page.get_by_test_id("recent-row").first).to_contain_text("answered 500")


@pytest.fixture
def kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="llmgateway")


async def test_admins_read_the_log_and_others_have_none(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page, kept: None
) -> None:
    ring = LastLines()
    logging.getLogger().addHandler(ring)
    try:
        gateway = await gateway_for(provider, users=USERS)
        await sign_in(page, gateway.url)
        await page.get_by_test_id("log-open").click()
        await expect(page.get_by_test_id("log-lines")).to_contain_text("listening on")
        await page.get_by_test_id("sign-out").click()
        await page.get_by_test_id("key-input").fill(BOB)
        await page.get_by_test_id("sign-in-button").click()
        await expect(page.get_by_test_id("viewer")).to_have_text("bob")
        await expect(page.get_by_test_id("log-open")).to_be_hidden()
    finally:
        logging.getLogger().removeHandler(ring)


async def test_on_a_phone_the_box_is_one_tap_away_and_no_table_scrolls_in_a_box(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    gateway = await gateway_for(provider, users=USERS)
    async with RawClient(gateway.port) as client:
        for _ in range(14):
            await client.send(chat())
            await client.response()
    await page.set_viewport_size({"width": 390, "height": 844})
    await sign_in(page, gateway.url)
    await expect(page.get_by_test_id("usage-row")).to_be_visible()
    link = page.locator('.jump a[href="#try"]')
    await expect(link).to_be_in_viewport(ratio=1)
    await page.get_by_test_id("recent-row").nth(5).scroll_into_view_if_needed()
    await expect(link).to_be_in_viewport(ratio=1)
    await link.click()
    await expect(page.get_by_test_id("try-input")).to_be_in_viewport()
    boxes = "boxes => boxes.filter(each => each.scrollHeight > each.clientHeight + 1).length"
    assert await page.locator("#usage .scroll, #recent .scroll, #requests .scroll").evaluate_all(boxes) == 0
    assert await page.get_by_test_id("recent-row").locator("visible=true").count() == 10
    await page.locator("#recent .more").click()
    assert await page.get_by_test_id("recent-row").locator("visible=true").count() == 14
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390


async def test_on_a_desktop_the_empty_box_takes_no_column_and_a_conversation_gets_one(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    provider.script = stream("Hello")
    gateway = await gateway_for(provider, users=USERS)
    await page.set_viewport_size({"width": 1440, "height": 900})
    await sign_in(page, gateway.url)
    await expect(page.get_by_test_id("try-input")).to_be_in_viewport(ratio=1)
    width = "document.getElementById('watch').clientWidth"
    assert await page.evaluate(width) > 1300
    await say(page, "Hi")
    await answered(page)
    assert await page.evaluate(width) < 1150
    await expect(page.get_by_test_id("try-input")).to_be_in_viewport(ratio=1)
