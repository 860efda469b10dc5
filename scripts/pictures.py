"""Takes pictures of the live page: a real gateway with people at it, in a real browser, light and dark.

The servers are the fake ones of the tests; they say what they are as real ones would, and are as fast.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
from playwright.async_api import Browser, async_playwright

from llmgateway.config.load import build
from llmgateway.service.gateway import Gateway
from tests.exchange import Exchange
from tests.fake_provider import FakeProvider
from tests.journey import settings
from tests.script import answer, done, sse, word
from tests.tools import tool

KEYS: Final = {name: f"sk-{name}-{'p' * 40}" for name in ("alice", "bob", "openwebui")}
PERSON: Final = "X-OpenWebUI-User-Email"
USERS: Final[dict[str, Any]] = {
    "alice": {"admin": True, "keys": [{"name": "laptop", "key": KEYS["alice"]}]},
    "bob": {"keys": [{"name": "phone", "key": KEYS["bob"]}], "limits": {"requests_per_minute": 60}},
    "openwebui": {"keys": [KEYS["openwebui"]], "person_header": PERSON},
}
PEOPLE: Final = (("alice", ""), ("bob", ""), ("openwebui", "carol@home"), ("openwebui", "dave@home"))
MODELS: Final = ("qwen3-8b", "qwen3-8b", "gpt-oss-20b", "gemma3:12b")
BUSY_S: Final = 40.0
ARGUMENTS: Final = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
SIZES: Final = {"": (1280, 860), "-phone": (390, 844)}


def server(name: str, made_by: str, *models: str, pause_s: float, **more: Any) -> FakeProvider:
    """One of the servers, which says a word every so often."""
    entries = [{"id": model, "object": "model", "owned_by": made_by} for model in models]
    provider = FakeProvider(name, models=entries, **more)
    chance = random.Random(name)

    async def talk(exchange: Exchange) -> None:
        await asyncio.sleep(chance.uniform(0.2, 1.5))
        await sse()(exchange)
        words = chance.randint(60, 500)
        for _ in range(words):
            await word("word ")(exchange)
            await asyncio.sleep(pause_s)
        counts = {"prompt_tokens": chance.randint(200, 9_000), "completion_tokens": words}
        await exchange.event({"choices": [], "usage": counts})
        await done()(exchange)

    provider.script = talk
    return provider


def servers() -> list[FakeProvider]:
    desk = server("desk", "llamacpp", "qwen3-8b", pause_s=0.025, owner="alice", share=["everyone"])
    props = {"default_generation_settings": {"n_ctx": 32_768}, "total_slots": 4}
    desk.on["/props"] = answer(200, props)
    mini = server("mini", "library", "qwen3-8b", "gemma3:12b", pause_s=0.05, slots=2)
    lab = server("lab", "vllm", "gpt-oss-20b", pause_s=0.012, slots=8)
    return [desk, mini, lab]


async def ask(gateway: Gateway, turn: int) -> None:
    """Ask for one answer, and read it to its end."""
    user, person = PEOPLE[turn % len(PEOPLE)]
    body = {
        "model": MODELS[turn % len(MODELS)] if turn % 7 else "qwen3-8b",
        "stream": True,
        "messages": [{"role": "user", "content": f"Question {turn}"}],
    }
    headers = {"Authorization": f"Bearer {KEYS[user]}"} | ({PERSON: person} if person else {})
    url = f"{gateway.url}/v1/chat/completions"
    async with aiohttp.ClientSession(headers=headers) as session, session.post(url, json=body) as response:
        await response.read()


async def keep_busy(gateway: Gateway) -> None:
    """Let people ask, a new one every so often."""
    async with asyncio.TaskGroup() as tasks:
        for turn in itertools.count(1):
            tasks.create_task(ask(gateway, turn))
            await asyncio.sleep(1.3)


@asynccontextmanager
async def house() -> AsyncIterator[Gateway]:
    """A gateway with three servers that are up and one that sleeps, and people who ask."""
    async with AsyncExitStack() as stack:
        up = [await stack.enter_async_context(each) for each in servers()]
        config = settings(*up, users=USERS)
        config["providers"]["attic"] = {
            "url": "http://127.0.0.1:9/v1",
            "models": ["qwen3-32b"],
            "wake": {"mac": "aa:bb:cc:dd:ee:ff", "broadcast": "127.255.255.255"},
        }
        gateway = await stack.enter_async_context(Gateway(build(config)))
        await gateway.ready.wait()
        busy = asyncio.create_task(keep_busy(gateway))
        try:
            yield gateway
        finally:
            busy.cancel()
            with suppress(asyncio.CancelledError):
                await busy


async def take(browser: Browser, gateway: Gateway, folder: Path, scheme: Any, size: str) -> None:
    """Sign in as alice, and take a picture of what she sees."""
    width, height = SIZES[size]
    page = await browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
    await page.goto(f"{gateway.url}/gateway/")
    await page.get_by_test_id("key-input").fill(KEYS["alice"])
    await page.get_by_test_id("sign-in-button").click()
    await page.get_by_test_id("provider-card").first.wait_for()
    await page.wait_for_timeout(4000)
    await page.screenshot(path=folder / f"live{size}-{scheme}.png")
    await page.close()


async def main(folder: Path) -> None:
    async with house() as gateway, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=tool("chromium"), args=ARGUMENTS)
        await asyncio.sleep(BUSY_S)
        for size, scheme in itertools.product(SIZES, ("light", "dark")):
            await take(browser, gateway, folder, scheme, size)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
