"""The page's files: who gets them, how they are told to be treated, and that nothing else is among them."""

from __future__ import annotations

from importlib import resources

import pytest

from llmgateway.service.gateway import Gateway
from tests.conftest import GatewayFor
from tests.journeys.test_errors import ask, refusal
from tests.raw_client import request

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

# Files.


def files_of_the_page() -> dict[str, bytes]:
    """All that is shipped, by the path at which it must be."""
    root = resources.files("llmgateway.web") / "page"
    found = {"/gateway/": (root / "index.html").read_bytes()}
    waiting_for = [("/gateway/assets/", root / "assets")]
    while waiting_for:
        path, folder = waiting_for.pop()
        for each in folder.iterdir():
            if each.is_dir():
                waiting_for.append((f"{path}{each.name}/", each))
            else:
                found[path + each.name] = each.read_bytes()
    return found


FILES = files_of_the_page()
KINDS = {
    "": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "md": "text/plain; charset=utf-8",
    "LICENSE": "text/plain; charset=utf-8",
}


@pytest.mark.parametrize("path", FILES)
async def test_every_file_of_the_page_is_served_to_everybody_with_its_type_and_a_strict_policy(
    gateway_for: GatewayFor, path: str
) -> None:
    gateway = await gateway_for()
    got = await ask(gateway.port, request("GET", path, key=None))
    assert (got.status, bytes(got.body)) == (200, FILES[path])
    assert got.header("content-type") == KINDS[path.rpartition("/")[2].rpartition(".")[2]]
    assert got.header("content-security-policy") == CSP
    assert got.header("x-content-type-options") == "nosniff"
    assert got.header("cache-control") == "no-cache"
    looked = await ask(gateway.port, request("HEAD", path, key=None), to="HEAD")
    assert (looked.status, looked.header("content-length")) == (200, str(len(FILES[path])))
    refused = await ask(gateway.port, request("POST", path, key=None))
    refusal(refused, 405, "method_not_allowed")
    assert refused.header("allow") == "GET, HEAD"


def test_the_page_names_no_file_that_is_not_there() -> None:
    html = FILES["/gateway/"].decode()
    named = [part.partition('"')[0] for part in html.replace('src="', 'href="').split('href="')[1:]]
    assets = [f"/gateway/{name}" for name in named if not name.startswith("#")]
    assert assets and all(path in FILES for path in assets)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_without_the_slash_it_redirects(gateway: Gateway, method: str) -> None:
    response = await ask(gateway.port, request(method, "/gateway", key=None), to=method)
    assert (response.status, response.header("location")) == (308, "/gateway/")


@pytest.mark.parametrize("target", ["/gateway/?x=1", "http://gateway/gateway/", "HTTP://other/gateway/?x"])
async def test_the_page_is_there_in_every_form_of_its_address(gateway: Gateway, target: str) -> None:
    response = await ask(gateway.port, request("GET", target, key=None))
    assert (response.status, bytes(response.body)) == (200, FILES["/gateway/"])


@pytest.mark.parametrize(
    "path",
    [
        "/gateway/../config.yaml",
        "/gateway/../gateway/",
        "/gateway/%2e%2e/config.yaml",
        "/gateway/./",
        "/gateway/%2e/",
        "//gateway/",
        "/gateway//",
        "/gateway/%2f",
        "/%67ateway/",
        "/Gateway/",
        "/gateway/index.html",
        "/gateway/assets",
        "/gateway/assets/",
        "/gateway/assets/app.js/",
        "/gateway/assets/app.js%00",
        "/gateway/assets//app.js",
        "/gateway/assets/./app.js",
        "/gateway/assets/../index.html",
        "/gateway/assets/../../config",
        "/gateway/assets/%2e%2e/%2e%2e/pages.py",
        "/gateway/assets/..%2f..%2fpages.py",
        "/gateway/assets/..\\..\\pages.py",
        "/gateway/assets/vendor/../app.js",
        "/gateway/assets//etc/passwd",
        "/gateway/status/",
        "/gateway/session/x",
        "/gateway/page/index.html",
    ],
)
async def test_no_other_spelling_reaches_a_file(gateway: Gateway, path: str) -> None:
    refusal(await ask(gateway.port, request("GET", path)), 404, "not_found")
