"""A provider that sends its callers elsewhere: a failure of its own, told with what to write instead.

Nobody follows: the new place may be anybody's, and would get the provider's key.
"""

import re
from typing import Final
from urllib.parse import urljoin, urlsplit

from llmgateway.errors import ProviderRedirected
from llmgateway.fleet.address import Address
from llmgateway.fleet.provider import Provider
from llmgateway.http.headers import AnswerHead
from llmgateway.servers.kind import quote

_REDIRECTS: Final = (301, 302, 303, 307, 308)
_LOCATION: Final = re.compile(rb"(?mi)^location:[ \t]*([^\r\n]*)")


def is_redirect(status: int, head: AnswerHead) -> bool:
    """Tell whether an answer sends its reader elsewhere; not every 3xx does (304)."""
    return 300 <= status < 400 and (status in _REDIRECTS or _LOCATION.search(head.lines) is not None)


def redirected(
    provider: Provider, address: Address, path: str, status: int, head: AnswerHead
) -> ProviderRedirected:
    """Say where an answer of 3xx to a request for `path` leads, and what is to be done about it."""
    found = _LOCATION.search(head.lines)
    target = _target(address.url(path), found[1].decode("latin-1")) if found else ""
    if not target:
        trouble = f"redirects ({status}) without saying where to; its `url` in the config needs a look."
        return ProviderRedirected(provider.name, trouble)
    base = address.base_in(target, path)
    if base == address.url(""):
        remedy = "that is the same place; what stands in front of it must take its `url` as it is"
    elif base:
        remedy = f"write {base} as its `url` in the config"
    else:
        remedy = "write the URL of its API itself in the config"
    trouble = quote(f"redirects ({status}) to {target}; {remedy}.".encode(), provider.secrets)
    return ProviderRedirected(provider.name, trouble, moved=bool(base))


def _target(asked: str, location: str) -> str:
    """Give where a redirect leads, without what may be a secret; "" if it cannot be told."""
    if not location.isascii() or not location.isprintable():
        return ""
    try:
        parts = urlsplit(urljoin(asked, location.strip()))
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:
        return ""
