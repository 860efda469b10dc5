"""The live page knows other names of models, and sends images with a message, in a real browser."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from playwright.async_api import FilePayload, Page, expect

from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import crowd
from tests.fake_provider import FakeProvider
from tests.raw_client import chat
from tests.script import answer, error, listing, play, sse, stall, stream, word
from tests.web.test_page_in_browser import USERS, page, patience, sign_in
from tests.web.test_page_talks import answered, say

__all__ = ["page", "patience"]

LONG = "Qwen/Qwen3-8B-GGUF:Q4_K_M"
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
PNG: FilePayload = {"name": "dot.png", "mimeType": "image/png", "buffer": b64decode(DOT)}
URL = f"data:image/png;base64,{DOT}"


async def test_the_page_knows_what_models_are_called_elsewhere(
    provider_for: ProviderFor, gateway_for: GatewayFor, page: Page
) -> None:
    rig = await provider_for("rig", models=[LONG, "m"], rename={LONG: "qwen"})
    gateway = await gateway_for(rig, users=USERS, aliases={"gpt-4o-mini": "qwen", "gone": "nobody"})
    rig.once(play(sse(), word("Hel"), stall()))
    await sign_in(page, gateway.url)
    card = page.get_by_test_id("provider-card")
    await expect(card).to_contain_text("qwen")
    await expect(card).to_contain_text(f"{LONG}; also gpt-4o-mini")
    async with crowd(gateway.port) as send:
        client = await send(chat(b'{"model":"gpt-4o-mini","stream":true,"messages":[]}'))
        await client.head()
        row = page.get_by_test_id("request-row")
        await expect(row).to_contain_text("qwen")
        await expect(row).to_contain_text("asked for as gpt-4o-mini")
    await expect(page.get_by_test_id("recent-row").first).to_contain_text("asked for as gpt-4o-mini")
    await expect(page.get_by_test_id("usage-table")).not_to_contain_text("gpt-4o-mini")

    options = page.get_by_test_id("try-model").locator("option")
    await expect(options).to_have_text(["gpt-4o-mini (stands for qwen)", "m", "qwen"])
    await expect(page.get_by_test_id("try-model")).to_have_value("m")  # no alias is chosen by itself
    await page.get_by_test_id("try-model").select_option("gpt-4o-mini")
    await say(page, "Hello")
    await answered(page)
    assert (await rig.next_call()).request.json["model"] == LONG
    assert (await rig.next_call()).request.json["model"] == LONG


async def test_images_go_with_a_message_and_stay_in_the_conversation(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    gateway = await gateway_for(provider, users=USERS)
    provider.script = stream("A dot.")
    await sign_in(page, gateway.url)
    other: FilePayload = {**PNG, "name": "other.png"}
    page_of_text: FilePayload = {**PNG, "mimeType": "text/html"}
    files = page.get_by_test_id("try-file")
    await files.set_input_files([PNG, other, page_of_text])
    images = page.get_by_test_id("try-image")
    await expect(images).to_have_count(2)
    await expect(page.locator("#try-image-error")).to_contain_text("dot.png is no PNG")
    await images.last.get_by_test_id("try-image-remove").click()
    await expect(images).to_have_count(1)
    await page.get_by_test_id("try-input").fill("What is this?")
    await say(page, "What is this?")
    await answered(page)
    await expect(images).to_have_count(0)
    await expect(page.locator(".you img")).to_have_attribute("src", URL)
    first: Any = (await provider.next_call()).request.json
    with_image = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": URL}},
    ]
    assert first["messages"] == [{"role": "user", "content": with_image}]

    await say(page, "Sure?")
    await answered(page)
    second: Any = (await provider.next_call()).request.json
    assert [each["content"] for each in second["messages"]] == [with_image, "A dot.", "Sure?"]

    await page.reload()
    await expect(page.locator(".turn")).to_have_count(2)
    await expect(page.locator(".you").first).to_contain_text("1 image, not kept over the reload")
    await expect(page.locator(".you img")).to_have_count(0)


async def test_images_of_a_message_that_failed_are_there_for_the_next_try(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    gateway = await gateway_for(provider, users=USERS)
    provider.once(error(400, "this model sees nothing"))
    await sign_in(page, gateway.url)
    await page.get_by_test_id("try-file").set_input_files([PNG])
    await expect(page.get_by_test_id("try-image")).to_have_count(1)
    await page.get_by_test_id("try-send").click()
    await expect(page.locator(".turn")).to_contain_text("this model sees nothing")
    await expect(page.get_by_test_id("try-image")).to_have_count(1)
    await page.get_by_test_id("try-send").click()
    await answered(page)
    only_image = [{"type": "image_url", "image_url": {"url": URL}}]
    assert [asked.json["messages"][-1]["content"] for asked in provider.requests] == [only_image, only_image]


async def test_a_model_that_is_known_to_take_no_images_is_offered_none(
    provider: FakeProvider, gateway_for: GatewayFor, page: Page
) -> None:
    provider.on["/v1/models"] = listing(
        *({"id": name, "owned_by": "library"} for name in ("blind", "seeing"))
    )
    able = {"blind": ["completion"], "seeing": ["completion", "vision"]}
    told = [{"model": name, "capabilities": known} for name, known in able.items()]
    provider.on["/api/tags"] = answer(200, {"models": told})
    gateway = await gateway_for(provider, users=USERS, aliases={"gpt": "blind"})
    await sign_in(page, gateway.url)
    for name, offered in (("blind", False), ("seeing", True), ("gpt", False)):
        await page.get_by_test_id("try-model").select_option(name)
        await expect(page.get_by_test_id("try-attach")).to_be_visible(visible=offered)
