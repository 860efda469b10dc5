"""Where paths lead: how they may be spelled, and that none of our own can be taken by the config."""

from __future__ import annotations

import pytest

from llmgateway.config.addresses import extra_path
from llmgateway.service.gateway import Gateway
from llmgateway.traffic.call import Forward
from llmgateway.web.routes import below, path_of


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1/models", "/v1/models"),
        ("/v1/models?x=/y", "/v1/models"),
        ("http://gateway:8900/v1/models?x", "/v1/models"),
        ("HTTPS://gateway/v1", "/v1"),
        ("http://gateway", "/"),
        ("ftp://gateway/v1", "ftp://gateway/v1"),
        ("/%761/models", "/%761/models"),
        ("/v1/../slots", "/v1/../slots"),
        ("*", "*"),
        ("", ""),
    ],
)
def test_a_path_is_taken_as_it_was_sent(target: str, path: str) -> None:
    assert path_of(target) == path


@pytest.mark.parametrize(
    ("base", "path", "rest"),
    [
        ("", "/v1", "/v1"),
        ("/llm", "/llm/v1", "/v1"),
        ("/llm", "/llm", ""),
        ("/llm", "/llmv1", ""),
        ("/llm", "/v1", ""),
        ("/llm", "/llm/llm/v1", "/llm/v1"),
    ],
)
def test_only_what_is_below_the_base_path_is_a_path_of_ours(base: str, path: str, rest: str) -> None:
    assert below(base, path) == rest


async def test_the_config_can_take_no_path_that_is_answered_here(gateway: Gateway) -> None:
    own = [path for path, route in gateway._app._routes.items() if not isinstance(route, Forward)]
    assert len(own) > 10
    for path in own:
        with pytest.raises(ValueError):
            extra_path(path)
