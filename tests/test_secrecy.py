"""The watch over all tests: it hears what they let out, and fails those that let out a secret."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from llmgateway.config.load import build
from llmgateway.log import Events
from llmgateway.service.gateway import Gateway
from tests.conftest import look_at
from tests.fake_provider import FakeProvider
from tests.journey import KEY, settings
from tests.raw_client import RawClient, request
from tests.script import answer
from tests.secrecy import PROMPT, Secrecy, keeping_secrets

SECRET = "hunter22"
PROVIDER = {"url": "http://h:1234", "api_key": SECRET, "headers": {"X-Auth": "open sesame"}}
PROXY = {"url": "http://h", "proxy": "socks5://me:t%C3%A4st@h:1"}
CONFIG = {
    "users": {"alice": {"keys": [{"key": "alices own"}]}},
    "providers": {"rig": PROVIDER, "far": PROXY},
}


@pytest.fixture
def heard() -> Secrecy:
    heard = Secrecy()
    heard.learn(CONFIG)
    return heard


@pytest.mark.parametrize(
    "text",
    [
        f"it said: {SECRET}!",
        "x-auth: open sesame",
        "the key is alices own",
        "t%C3%A4st",
        "täst",
        "bWU6dMOkc3Q=",
        "sk-anything-that-is-long",
        f'{{"content": "{PROMPT}"}}',
        "the answer was Hello world",
    ],
)
def test_a_secret_that_is_kept_anywhere_is_found(heard: Secrecy, text: str) -> None:
    heard.kept("the log", "2026-11-29 nothing to see")
    assert heard.leaks() == []
    heard.kept("the log", f"2026-11-29 {text} or so")
    (leak, *_) = heard.leaks()
    assert leak.startswith("the log tells")


@pytest.mark.parametrize("text", ["the task-force of alice", "sk-...", "hunter 22", "sha256:0123"])
def test_what_is_none_is_not(heard: Secrecy, text: str) -> None:
    heard.kept("the log", text)
    assert heard.leaks() == []


def test_an_answer_is_for_its_client_and_credentials_for_their_provider(heard: Secrecy) -> None:
    received = heard.sent("a client")
    received += b"Hello world"
    heard.received(1234, b"Authorization: Bearer hunter22")
    assert heard.leaks() == []
    heard.received(1235, b"Authorization: Bearer hunter22")
    assert "1235" in heard.leaks()[0]
    received += SECRET.encode()
    assert len(heard.leaks()) == 2


def test_a_session_is_its_clients_and_nobody_elses(heard: Secrecy) -> None:
    heard.learn_cookies("llmgateway=abcdefghijkl; Path=/")
    heard.sent("a client").extend(b"Set-Cookie: llmgateway=abcdefghijkl")
    assert heard.leaks() == []
    heard.received(1234, b"Cookie: llmgateway=abcdefghijkl")
    heard.kept("the log", "abcdefghijkl")
    assert len(heard.leaks()) == 2


def test_request_logs_are_read(heard: Secrecy, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "requests.jsonl.1").write_text(f'{{"model": "{SECRET}"}}\n')
    heard.written(tmp_path)
    assert "requests.jsonl.1 tells" in heard.leaks()[0]
    (tmp_path / "deep" / "requests.jsonl.1").unlink()


def test_where_no_test_runs_nothing_is_held(heard: Secrecy) -> None:
    before = repr(vars(Secrecy(listens=False)))
    deaf = Secrecy(listens=False)
    deaf.kept("the log", SECRET)
    deaf.sent("a client").extend(b"x")
    deaf.received(1234, b"x")
    deaf.learn_cookies("llmgateway=abcdefghijkl; Path=/")
    assert repr(vars(deaf)) == before


# What is heard of a real gateway: each leak is made on purpose, and a test in which it happens fails.


@pytest.mark.parametrize("how", ["debug", "exception"])
def test_the_log_is_heard_down_to_tracebacks_whatever_its_level(how: str) -> None:
    def leak() -> None:
        settings(providers={"rig": PROVIDER})
        try:
            raise ValueError(SECRET if how == "exception" else "")
        except ValueError:
            getattr(Events("test"), how)("oh dear", field=SECRET if how == "debug" else "")

    with pytest.raises(AssertionError, match="the log tells b'hunter22'"), keeping_secrets():
        leak()
    assert logging.getLogger("llmgateway").level == logging.DEBUG, "the watch over this test goes on"


@pytest.mark.parametrize("who", ["client", "provider", "page", "metrics"])
async def test_clients_providers_the_page_and_metrics_are_heard(provider: FakeProvider, who: str) -> None:
    with pytest.raises(AssertionError, match=f"{EARS[who]}.* tells b'"), keeping_secrets():
        async with (
            Gateway(build(settings(provider, **LEAKS[who]))) as gateway,
            RawClient(gateway.port) as client,
        ):
            provider.script = answer(200, {"echo": KEY if who == "client" else ""})
            body = f'{{"model": "m", "user": "{KEY if who == "provider" else ""}"}}'.encode()
            await client.send(request("POST", "/v1/chat/completions", body=body))
            await client.response()
            look_at(gateway)


EARS = {"client": "a client", "provider": "the provider", "page": "the live page", "metrics": "the metrics"}
LEAKS: dict[str, Any] = {
    "client": {},
    "provider": {},
    "page": {"users": {"sk-in-a-name": {"keys": [KEY]}}},
    "metrics": {"users": {"sk-in-a-name": {"keys": [KEY]}}},
}
