"""The gateway keeps to its own description, whatever it is sent: schemathesis makes requests of it."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import hypothesis
import orjson
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from llmgateway.web.openapi import document
from llmgateway.web.routes import PAGE
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY

ENDLESS: Final = f"GET {PAGE}events"
SCHEMA: Final = schemathesis.openapi.from_dict(orjson.loads(document("")))
OPERATIONS: Final = [each.ok() for each in SCHEMA.get_all_operations() if isinstance(each, Ok)]
# Always the same examples: what fails here fails everywhere.
SAME: Final = hypothesis.settings(
    max_examples=5, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
# Not without a key: each refusal would have the next wait longer; `tests/web/test_openapi.py` asks so. And
# what is good may be refused: a WebSocket has to be asked for as one, and some pages want a Content-Type.
LEFT_OUT: Final = [ignored_auth, positive_data_acceptance]


def cases() -> list[Any]:
    """Operations with what is good for them, and with bodies that are not, where they take one."""
    good, bad = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
    some = [each for each in OPERATIONS if each.label != ENDLESS]
    return [
        *(pytest.param(each, good, id=each.label) for each in some),
        *(pytest.param(each, bad, id=f"{each.label}, badly") for each in some if len(each.body)),
    ]


@pytest.mark.parametrize(("operation", "mode"), cases())
async def test_the_gateway_is_as_it_is_described(
    operation: Any, mode: GenerationMode, gateway_for: GatewayFor, provider: FakeProvider
) -> None:
    gateway = await gateway_for(provider, server={"ollama_api": True})

    @SAME
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def keeps_to_it(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "m"
        case.call_and_validate(
            base_url=gateway.url,
            headers={"Authorization": f"Bearer {KEY}"},
            excluded_checks=LEFT_OUT,
            timeout=HANG_S,
        )

    await asyncio.to_thread(keeps_to_it)


def test_the_document_is_one_of_openapi() -> None:
    SCHEMA.validate()
    assert len(OPERATIONS) == sum(len(ways) for ways in orjson.loads(document(""))["paths"].values())
