"""The live page as people use it: in a real browser, against a real gateway."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.journey import KEY
from tests.raw_client import RawClient, chat
from tests.script import done, error, play, sse, stream, wait, word
from tests.tools import tool

BOB = "sk-bob-0123456789abcdefghijklmnopqrstuvwxyz012"
USERS = {"alice": {"admin": True, "keys": [KEY]}, "bob": {"keys": [BOB]}}
PATIENT_MS = 15_000  # for what takes a probe or two
# In a container there is no sandbox to be had; the rest keeps the browser from calling home.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
async def page(nothing_leaks: None) -> AsyncIterator[Page]:
    """A page of a fresh browser; the test fails if anything of it raised, or broke the security policy."""
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=tool("chromium"), args=ARGUMENTS)
        opened = await browser.new_page()
        opened.set_default_timeout(PATIENT_MS)
        opened.on("pageerror", lambda raised: complaints.append(str(raised)))
        opened.on(
            "console",
            lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None,
        )
        yield opened
        await browser.close()
    assert complaints == []


@pytest.fixture(autouse=True)
def patience() -> None:
    expect.set_options(timeout=PATIENT_MS)


async def sign_in(page: Page, url: str, key: str = KEY) -> None:
    await page.goto(f"{url}/gateway/")
    await page.get_by_test_id("key-input").fill(key)
    await page.get_by_test_id("sign-in-button").click()


async def test_a_wrong_key_is_refused_in_words_and_a_good_one_shows_the_gateway(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    gateway = await gateway_for(provider, users=USERS)
    await sign_in(page, gateway.url, "sk-wrong-000000000000")
    await expect(page.get_by_test_id("sign-in-error")).to_contain_text("not valid")
    await page.get_by_test_id("key-input").fill(KEY)
    await page.get_by_test_id("key-input").press("Enter")
    await expect(page.get_by_test_id("gateway-state")).to_contain_text("ready", ignore_case=True)
    await expect(page.get_by_test_id("viewer")).to_have_text("alice")
    card = page.get_by_test_id("provider-card")
    await expect(card).to_have_attribute("data-name", "rig")
    await expect(card).to_have_attribute("data-state", "online")


async def test_the_session_outlasts_a_reload_of_the_page_and_ends_with_sign_out(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    gateway = await gateway_for(provider, users=USERS)
    await sign_in(page, gateway.url)
    await expect(page.get_by_test_id("provider-card")).to_be_visible()
    await page.reload()
    await expect(page.get_by_test_id("provider-card")).to_be_visible()
    await page.get_by_test_id("sign-out").click()
    await expect(page.get_by_test_id("sign-in-form")).to_be_visible()
    await page.reload()
    await expect(page.get_by_test_id("sign-in-form")).to_be_visible()
    await expect(page.get_by_test_id("provider-card")).to_have_count(0)


async def test_a_stream_appears_while_it_runs_and_is_among_the_recent_ones_after(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), word("lo"), done())
    gateway = await gateway_for(provider, users=USERS)
    await sign_in(page, gateway.url)
    await expect(page.get_by_test_id("provider-card")).to_be_visible()
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        response = await client.head()
        await client.events(response, 1)
        row = page.get_by_test_id("request-row")
        await expect(row).to_have_attribute("data-phase", "streaming")
        await expect(row).to_contain_text("alice")
        await expect(page).to_have_title(re.compile("1"))
        gate.set()
        await client.events(response, 3)
    await expect(page.get_by_test_id("request-row")).to_have_count(0)
    await expect(page.get_by_test_id("recent-row")).to_have_attribute("data-outcome", "ok")
    await expect(page.get_by_test_id("usage-table")).to_contain_text("alice")


async def test_a_provider_that_goes_is_shown_with_its_reason_and_so_is_its_return(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    health = {"interval": "200ms", "timeout": "1s"}
    gateway = await gateway_for(provider, users=USERS, health=health)
    await sign_in(page, gateway.url)
    card = page.get_by_test_id("provider-card")
    await expect(card).to_have_attribute("data-state", "online")
    provider.on["/v1/models"] = error(500, "the disk is on fire")
    await expect(card).to_have_attribute("data-state", "offline")
    await expect(card).to_contain_text("the disk is on fire")
    del provider.on["/v1/models"]
    await expect(card).to_have_attribute("data-state", "online")


async def test_a_chat_can_be_tried_and_stopped(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    provider.once(stream("Hello", " <b>world</b>"))
    gateway = await gateway_for(provider, users=USERS)
    await sign_in(page, gateway.url)
    await page.get_by_test_id("try-model").select_option("m")
    await page.get_by_test_id("try-input").fill("Say hello")
    await page.get_by_test_id("try-send").click()
    await expect(page.get_by_test_id("try-answer")).to_contain_text("Hello <b>world</b>")
    asked: Any = (await provider.next_call()).request.json
    assert asked["messages"][-1] == {"role": "user", "content": "Say hello"}
    assert asked["stream"] is True

    provider.script = play(sse(), word("Never"), wait(asyncio.Event()))
    await page.get_by_test_id("try-input").fill("Talk for ever")
    await page.get_by_test_id("try-send").click()
    endless = await provider.next_call()
    await expect(page.get_by_test_id("try-answer").last).to_contain_text("Never")
    await page.get_by_test_id("try-stop").click()
    await endless.hung_up()


async def test_users_see_only_what_is_theirs(
    provider_for: ProviderFor, gateway_for: GatewayFor, page: Page
) -> None:
    mine, shared = await provider_for("mine"), await provider_for("shared")
    private = {"mine": {**mine.entry, "owner": "alice"}}
    gateway = await gateway_for(mine, shared, users=USERS, providers=private)
    async with RawClient(gateway.port) as client:
        await client.send(chat())
        await client.response()
    await sign_in(page, gateway.url, BOB)
    await expect(page.get_by_test_id("provider-card")).to_have_count(1)
    await expect(page.get_by_test_id("provider-card")).to_have_attribute("data-name", "shared")
    await expect(page.get_by_test_id("recent-row")).to_have_count(0)
    await expect(page.get_by_test_id("usage-table")).not_to_contain_text("alice")


async def test_it_works_below_a_base_path_on_a_phone_in_the_dark_without_a_mouse(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    gateway = await gateway_for(provider, users=USERS, server={"base_path": "/llm"})
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.emulate_media(color_scheme="dark")
    await page.goto(f"{gateway.url}/gateway")
    await page.get_by_test_id("key-input").focus()
    await page.keyboard.type(KEY)
    await page.keyboard.press("Enter")
    await expect(page.get_by_test_id("provider-card")).to_be_visible()
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
