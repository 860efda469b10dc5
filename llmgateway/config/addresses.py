"""Read where things are: hosts, networks, base URLs, paths below them, origins, MAC addresses.

The functions are like those of `values`: the text as it is written in, the value out, or ValueError with the
end of a sentence. No message quotes the text, because it may be a secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from llmgateway.api.endpoints import ENDPOINTS
from llmgateway.config.values import VISIBLE
from llmgateway.http.peers import Network

_MOST_SOCKET_BYTES: Final = 100  # systems differ: 103 on macOS, 107 on Linux
_HOST: Final = re.compile(r"(?!-)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_URL_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_EXTRA_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+")
_BASE_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")  # it stands in cookies and HTML as well
_SOCKET: Final = re.compile(r"/[A-Za-z0-9._~@+=,/-]+")
_SOCKET_BYTES: Final = 107  # of a path in sockaddr_un, with its end; macOS has 103
_ZONED: Final = re.compile(r"\[[0-9a-fA-F:.]+%(?:25)?(?!25\])[A-Za-z0-9._~-]+\]")
_ORIGIN: Final = re.compile(
    r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^:/?#@\[\]]+)(?::([0-9]+))?/?", re.IGNORECASE | re.ASCII
)
_MAPPED_BITS: Final = 96  # that come before an IPv4 address where IPv6 has one
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_MAC: Final = re.compile(
    r"[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}|[0-9a-f]{12}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}", re.IGNORECASE
)

# What people copy out of a curl line; the base URL ends before it.
_AFTER_BASE_URL: Final = (*(endpoint.path.removeprefix("/v1") for endpoint in ENDPOINTS), "/models")
_OLLAMA: Final = ("/api", "/api/chat", "/api/generate", "/api/tags", "/api/embed")
_OWN_PATHS: Final = (*("/healthz", "/readyz", "/health", "/v1/health", "/metrics", "/gateway", "/v1/models"),)
_FORWARDED: Final = frozenset(endpoint.path for endpoint in ENDPOINTS if not endpoint.dialect.optional)
ONCE_EXTRA: Final = frozenset(
    {"/tokenize", "/detokenize", "/apply-template"}
    | {"/v1/responses/input_tokens", "/v1/chat/completions/input_tokens"}
)
"""Forwarded anyway since they are in the table; configs from before may name them still."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A database of a Redis server, and who we are to it."""

    tls: bool
    host: str
    port: int
    number: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def place(self) -> str:
        """Where it is, without who we are."""
        return f"{'rediss' if self.tls else 'redis'}://{in_url(self.host)}:{self.port}/{self.number}"


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """A proxy by which a provider is reached, and who we are to it."""

    scheme: str  # socks5, socks5h (names are looked up at the proxy) or http
    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def place(self) -> str:
        """Where it is, without who we are."""
        return f"{self.scheme}://{in_url(self.host)}:{self.port}"


def in_url(host: str) -> str:
    """Write a host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def host(text: str) -> str:
    """An address or a host name to listen on."""
    if "/" in text:
        raise ValueError(
            "is not an address to listen on; write it without http:// and path, such as 127.0.0.1"
        )
    if text == "*":
        raise ValueError(
            "is not an address; write 0.0.0.0 for every IPv4 address of this machine, or :: for IPv6 too"
        )
    if ":" in text and not _is_ipv6(text.strip("[]")):
        raise ValueError(
            "is not an address to listen on; write only the address here and the number under `port`"
        )
    if ":" in text:
        return text.strip("[]")
    if not _is_host(text):
        raise ValueError("is not an address to listen on; write 127.0.0.1, 0.0.0.0, :: or a host name")
    return text


def unix_socket(text: str) -> str:
    """A Unix socket, `unix:PATH`; gives the path."""
    scheme, _, path = text.partition(":")
    if scheme != "unix" or not path or "\0" in path:
        raise ValueError("is not a Unix socket; write unix: and its path, such as unix:/run/llmgateway.sock")
    if len(path.encode()) > _MOST_SOCKET_BYTES:
        raise ValueError(f"is too long for a Unix socket; its path may have {_MOST_SOCKET_BYTES} bytes")
    return path


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return text.isprintable()


def _is_host(text: str) -> bool:
    if not _HOST.fullmatch(text) or len(text) > 253:
        return False
    if not text.rstrip(".").rpartition(".")[2].isdigit():
        return True
    try:  # RFC 3986: what ends in a number is an IPv4 address or a mistake
        ip_address(text)
    except ValueError:
        return False
    return True


def network(text: str) -> Network:
    """A network of IP addresses; an address alone is a network of one."""
    example = "such as 192.168.1.10 or 192.168.1.0/24"
    try:
        found = ip_network("" if "%" in text else text, strict=False)  # no interface: fe80::1%eth0
        first = ip_address(text.partition("/")[0])
    except ValueError:
        raise ValueError(f"is not an IP address or network; write one {example}") from None
    if first != found.network_address:
        raise ValueError(
            f"is one address in a network; write the address alone, or the network's first one, {example}"
        )
    return _plain(found)


def _plain(found: Network) -> Network:
    """Give the IPv4 network that ::ffff:10.0.0.0/104 stands for: callers' addresses are told so as well."""
    if isinstance(found, IPv6Network) and found.prefixlen >= _MAPPED_BITS:
        mapped = found.network_address.ipv4_mapped
        return found if mapped is None else IPv4Network((mapped, found.prefixlen - _MAPPED_BITS))
    return found


def broadcast(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise ValueError(
            "is not an IPv4 address; write the broadcast address of its network, such as 192.168.1.255"
        ) from None


def mac(text: str) -> str:
    """Twelve hex digits in lower case, from any of the usual ways to write a MAC address."""
    digits = re.sub(r"[:.-]", "", text)
    if not _MAC.fullmatch(text):
        raise ValueError('is not a MAC address; write six pairs of hex digits, such as "aa:bb:cc:dd:ee:ff"')
    return digits.lower()


def base_url(text: str) -> str:
    """scheme://host[:port]/path without a slash at the end; a bare origin means /v1, and /. the root."""
    if text.startswith("unix:"):
        return _on_a_socket(text)
    parts = _split(text)
    _check_origin(parts)
    if "?" in text or "#" in text:
        raise ValueError(
            "has a part after ? or #; write the base URL only, such as http://192.168.1.10:8000/v1"
        )
    path = _path_of_url(parts.path)
    host_name, percent, zone = parts.netloc.partition("%")  # names of interfaces mind their case
    if percent:
        zone = f"%25{zone.removeprefix('25')}"
    return f"{parts.scheme}://{host_name.lower()}{zone}{path}"


def collector(text: str) -> str:
    """scheme://host[:port][/path], as of a provider, but as it stands."""
    if text.startswith("unix:"):
        raise ValueError("is a socket; write a URL, such as http://127.0.0.1:4318")
    base_url(text)
    return text


def _on_a_socket(text: str) -> str:
    """unix:/path/of/the.sock:/path; without a path /v1 is meant, as elsewhere."""
    example = "such as unix:/run/llm.sock:/v1"
    socket, _, path = text.removeprefix("unix:").removeprefix("//").partition(":")
    if not _SOCKET.fullmatch(socket) or {"", ".", ".."} & set(socket[1:].split("/")):
        raise ValueError(
            f"has no whole path of a socket; write one without spaces and odd characters, {example}"
        )
    if len(socket) > _SOCKET_BYTES:
        raise ValueError(f"has a socket of over {_SOCKET_BYTES} characters; write a shorter path")
    if path and not path.startswith("/"):
        raise ValueError(f"has no path after the socket's colon; write one, {example}")
    return f"unix:{socket}:{_path_of_url(path)}"


def _split(text: str) -> SplitResult:
    example = "such as http://192.168.1.10:8000/v1"
    if not VISIBLE.fullmatch(text):
        raise ValueError(
            f"is empty or has spaces, control or non-ASCII characters in it; write a URL {example}"
        )
    if "://" not in text:
        raise ValueError(f"has no http:// in front; write the whole URL, {example}")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(f"has no valid host; write a URL {example}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"is neither http:// nor https://; write a URL {example}")
    return parts


def _check_origin(parts: SplitResult) -> None:
    if "@" in parts.netloc:
        raise ValueError(
            "has a user or password in it; write the credentials under `api_key` or `headers` instead"
        )
    found = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?", parts.netloc)
    if found is None or (found[2] is not None and not _is_port(found[2])):
        raise ValueError(
            "has no valid port; write 1 to 65535 after the host, such as http://192.168.1.10:8000/v1"
        )
    if not found[1]:
        raise ValueError("has no host; write one, such as http://192.168.1.10:8000/v1")
    if "%" in found[1] and not _ZONED.fullmatch(found[1]):
        raise ValueError(
            "has no valid zone; write the network interface after %25, such as http://[fe80::1%25eth0]:8000/v1"
        )
    if not _is_host_of_url(found[1]):
        raise ValueError(
            "has no valid host; write a host name or an IP address, such as http://192.168.1.10:8000/v1"
        )


def _is_host_of_url(text: str) -> bool:
    return _is_ipv6(text[1:-1]) if text.startswith("[") else _is_host(text)


def _is_port(digits: str) -> bool:
    return len(digits) <= 5 and digits.isdigit() and 1 <= int(digits) <= 65535


def _path_of_url(written: str) -> str:
    path = written.rstrip("/")
    if path == "/.":
        return path
    if not _URL_PATH.fullmatch(path) or "//" in path or {".", ".."} & set(path.split("/")):
        raise ValueError(
            "has an unusual path; write the base URL without // . .. and odd characters, ending in /v1"
        )
    if path.endswith(_OLLAMA):
        raise ValueError("is Ollama's own API; write the OpenAI one, such as http://192.168.1.10:11434/v1")
    if found := next((each for each in _AFTER_BASE_URL if path.endswith(each)), None):
        raise ValueError(
            f"ends in {found}; write the base URL without that, such as http://192.168.1.10:8000/v1"
        )
    return path or "/v1"


def proxy(text: str) -> ProxyAddress:
    """scheme://[user:password@]host:port; odd characters of user and password may be %-encoded."""
    example = "such as socks5://192.168.1.1:1080 or http://192.168.1.1:3128"
    if not VISIBLE.fullmatch(text):
        raise ValueError(
            f"is empty or has spaces, control or non-ASCII characters in it; write one {example}"
        )
    scheme, found, rest = text.partition("://")
    scheme = scheme.lower()
    if not found:
        raise ValueError(f"has no socks5:// or http:// in front; write one {example}")
    if scheme not in ("socks5", "socks5h", "http"):
        raise ValueError(f"is neither socks5:// nor socks5h:// nor http://; write one {example}")
    credentials, at, place = rest.rpartition("@")
    parts = re.fullmatch(r"(\[[^\]%]*\]|[^:\[\]/?#]+):([0-9]+)/?", place)
    if parts is None or not _is_port(parts[2]):
        raise ValueError(f"has no host and port behind {scheme}://; write both and nothing else, {example}")
    if not _is_host_of_url(parts[1]):
        raise ValueError(f"has no valid host; write a host name or an IP address, {example}")
    user, _, password = credentials.partition(":")
    user, password = unquote(user), unquote(password)
    if at:
        _check_credentials(user, password)
    return ProxyAddress(scheme, parts[1].strip("[]").lower(), int(parts[2]), user, password)


def redis(text: str) -> RedisAddress:
    """redis://[[user]:password@]host[:port][/number]; odd characters of the credentials may be %-encoded."""
    example = "such as redis://127.0.0.1:6379/0"
    if not VISIBLE.fullmatch(text):
        raise ValueError(
            f"is empty or has spaces, control or non-ASCII characters in it; write one {example}"
        )
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme not in ("redis", "rediss"):
        raise ValueError(f"has no redis:// in front, nor rediss:// for TLS; write one {example}")
    credentials, at, place = rest.rpartition("@")
    parts = re.fullmatch(r"(\[[^\]%]*\]|[^:\[\]/?#]+)(?::([0-9]+))?(?:/([0-9]{0,4}))?", place)
    if parts is None or (parts[2] is not None and not _is_port(parts[2])):
        raise ValueError(f"is not {scheme}://, host, port and number; write nothing else, {example}")
    if not _is_host_of_url(parts[1]):
        raise ValueError(f"has no valid host; write a host name or an IP address, {example}")
    user, _, password = credentials.partition(":")
    if at and not password:
        raise ValueError("has an @ but no password; write :password@ or user:password@, or no @")
    host, port, number = parts[1].strip("[]").lower(), int(parts[2] or 6379), int(parts[3] or 0)
    return RedisAddress(scheme == "rediss", host, port, number, unquote(user), unquote(password))


def _check_credentials(user: str, password: str) -> None:
    if not user or not password:
        raise ValueError("has a user or a password alone; write both, as user:password@, or none")
    for each in (user, password):
        if not each.isascii() or not each.isprintable() or len(each) > 255:
            raise ValueError(
                "has a user or password that no proxy can be told; at most 255 characters of ASCII can be"
            )
    if ":" in user:
        raise ValueError("has a colon in its user, which no proxy can be told; write another user")


def extra_path(text: str) -> str:
    """A path to forward that is not forwarded anyway."""
    free_path(text)
    if (text in _FORWARDED or f"/v1{text}" in _FORWARDED) and text not in ONCE_EXTRA:
        raise ValueError("is forwarded anyway; leave it out")
    return text


def free_path(text: str) -> str:
    """A path that the gateway does not answer itself."""
    if not text.startswith("/"):
        raise ValueError("does not begin with /; write a path such as /v1/classify")
    if not _EXTRA_PATH.fullmatch(text) or {".", ".."} & set(text.split("/")):
        raise ValueError(
            "is not a plain path; write it without // .. ? # % spaces or a / at the end, as /v1/classify"
        )
    if any(text == own or text.startswith(f"{own}/") for own in _OWN_PATHS):
        raise ValueError("is answered by the gateway itself; choose another path")
    return text


def base_path(text: str) -> str:
    """What stands before every path, without a slash at the end; "" for nothing."""
    if text in ("", "/"):
        return ""
    path = text.removesuffix("/")
    if not text.startswith("/"):
        raise ValueError("does not begin with /; write only the path, such as /llm")
    if not _BASE_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError("is not a plain path; write /, letters, digits and - _ . ~ only, such as /llm")
    if path.endswith("/v1"):
        raise ValueError("ends in /v1, which comes after it anyway; write the part before, such as /llm")
    return path


def origin(text: str) -> str:
    """`*`, or scheme://host[:port] as browsers write it: lower case, no default port, no slash at the end."""
    if text == "*":
        return text
    example = "such as https://chat.example.net or http://192.168.1.10:3000"
    if "://" not in text:
        raise ValueError(f'has no http:// or https:// in front; write an origin {example}, or "*" for all')
    if "*" in text:
        raise ValueError(f'has a * in it; write each origin on its own, {example}, or only "*" for all')
    found = _ORIGIN.fullmatch(text)
    if found is None or not _is_host_of_url(found[2]) or (found[3] is not None and not _is_port(found[3])):
        raise ValueError(f"is not an origin; write scheme://host or scheme://host:port, {example}")
    scheme, host_name = found[1].lower(), found[2].lower()
    port_number = str(int(found[3])) if found[3] else ""
    if port_number in ("", _DEFAULT_PORTS.get(scheme)):
        return f"{scheme}://{host_name}"
    return f"{scheme}://{host_name}:{port_number}"
