"""The gateway that the tests of its own page visit."""

from __future__ import annotations

import pytest

from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.web.visit import (
    HOUSE,
)


@pytest.fixture
async def gateway(gateway_for: GatewayFor, provider: FakeProvider) -> Gateway:
    return await gateway_for(provider, users=HOUSE)
