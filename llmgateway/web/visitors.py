"""Who is at the gateway's own pages: who asks, from where, and whether the page itself has sent it.

Who asks is for `access` to tell; here stands what it is told by HTTP, and what of that counts where. What
changes anything must come from the page itself, not from another site.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import orjson

from llmgateway.access.doorkeeper import Doorkeeper
from llmgateway.access.keys import Caller
from llmgateway.access.sessions import COOKIE
from llmgateway.access.tries import Tries
from llmgateway.config.settings import Config
from llmgateway.errors import FORBIDDEN, INVALID_REQUEST, GatewayError
from llmgateway.http.client import Client
from llmgateway.http.peers import Address, Network, Peer, address_of, origin_of, peer_of, traces_in
from llmgateway.log import Events
from llmgateway.web.routes import NO_STORE, PAGE, Page

events = Events("pages")

_SIGN_IN_BYTES: Final = 4_096


class Visitors:
    """Tells who is at a page, and lets them sign in and out."""

    def __init__(self, config: Config, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper = doorkeeper
        self.tries = Tries()
        self.adopt(config)
        self.routes: Mapping[str, Page] = {PAGE + "session": Page(self._session, ("POST", "DELETE"))}

    def adopt(self, config: Config) -> None:
        """Take in a config: which proxies it trusts, and below which path the page is."""
        self._server = config.server
        self._origins = frozenset(config.server.cors)

    def who(
        self,
        client: Client,
        *,
        by_session: bool = False,
        by_config: bool = False,
        by_protocol: bool = False,
        by_network: bool = False,
    ) -> Caller:
        """Name who asks: by a key; by the page's session, having read the config, or by where they are.

        `by_protocol` lets a WebSocket show its key among its subprotocols. The config counts on this machine
        only, for `gateway.py status`. Raises GatewayError (401).
        """
        return self._doorkeeper.who(
            client.head.named,
            client.raw_path,
            now=time.time(),
            by_session=by_session,
            by_config=by_config and self._is_on_this_machine(client),
            by_protocol=by_protocol,
            from_where=partial(self._whereabouts, client) if by_network else _nowhere,
        )

    def require_same_origin(self, client: Client) -> None:
        """Refuse what another site made a browser send. Raises GatewayError (403).

        Browsers tell by `Sec-Fetch-Site` on secure pages, else by `Origin`. JSON from another site would need
        a preflight, which the page never grants.
        """
        named = client.head.named
        if b"sec-fetch-site" in named:
            good = named[b"sec-fetch-site"] == b"same-origin"
        else:
            good = (
                b"origin" not in named or _authority(_text(named, b"origin")) == _text(named, b"host").lower()
            )
        kind = _text(named, b"content-type").partition(";")[0].strip().lower()
        if not good:
            raise GatewayError(FORBIDDEN, "This must come from the gateway's own page.")
        if kind != "application/json":
            raise GatewayError(INVALID_REQUEST, "The Content-Type must be application/json.")

    # -- from where

    def peer(self, client: Client) -> Peer:
        """Tell who is behind a request."""
        link, traces = client.link, traces_in(client.head.named)
        return peer_of(link.address, traces, self._server.trusted_proxies, over_tls=link.over_tls)

    def address(self, client: Client) -> str:
        """Give the address to hold a refused key against: the client's, else that of whoever is connected."""
        return str(self.peer(client).address or client.link.address)

    async def let_wait(self, client: Client) -> None:
        """Have who was refused wait for the answer: the longer, the more often it was."""
        address = self.peer(client).address or address_of(client.link.address)
        name = "" if address is None else origin_of(address)
        delay_s = self.tries.refuse(name, now=asyncio.get_running_loop().time())
        if not delay_s:
            return
        with self.tries.waiting(name) as may_wait:
            if may_wait:
                await asyncio.sleep(delay_s)
            else:
                client.close_after()

    def is_from(self, client: Client, networks: Sequence[Network]) -> bool:
        """Tell whether it comes from one of these networks, and of its own will: by no web page's trick."""
        peer = self.peer(client)
        return peer.is_in(networks) and not _may_be_rebound(client, peer)

    def _whereabouts(self, client: Client) -> Address | None:
        """Give the address of a program that asks; None for a web page that `server.cors` does not name.

        Any page can make the browser that shows it ask, and be it by a name that it made mean the gateway;
        then the page's origin is told, or that it is another.
        """
        named, peer = client.head.named, self.peer(client)
        origin = _text(named, b"origin").lower()
        if origin:
            return peer.address if origin in self._origins else None
        strange = _text(named, b"sec-fetch-site") in ("cross-site", "same-site")
        return None if strange or _may_be_rebound(client, peer) else peer.address

    def _is_on_this_machine(self, client: Client) -> bool:
        peer = self.peer(client)
        if peer.proxied or peer.address is None:
            return False
        return peer.address.is_loopback or str(peer.address) == client.link.own_address

    # -- signing in and out

    async def _session(self, client: Client) -> None:
        self.require_same_origin(client)
        if client.method == "DELETE":
            self._doorkeeper.sign_out(client.head.named)
            token, life_s = "", 0.0
        else:
            token, life_s = self._sign_in(client, _key_in(await client.body.read(_SIGN_IN_BYTES)))
        client.respond(
            204, b"", f"Set-Cookie: {self._cookie(client, token, int(life_s))}\r\n{NO_STORE}".encode()
        )

    def _sign_in(self, client: Client, key: str) -> tuple[str, float]:
        try:
            return self._doorkeeper.sign_in(key, client.head.named, now=time.time())
        except GatewayError:
            events.info("sign-in refused", client=self.address(client))
            raise

    def renewed(self, client: Client) -> str:
        """Give the cookie by which who looks is to be known from now on, as a header; nothing if it stays."""
        renewed = self._doorkeeper.renewed(client.head.named, now=time.time())
        return "" if renewed is None else self._cookie(client, renewed[0], int(renewed[1]))

    def is_to_renew(self, client: Client) -> bool:
        """Tell whether who looks is to come again, and to be given another cookie."""
        return self._doorkeeper.is_to_renew(client.head.named)

    def _cookie(self, client: Client, token: str, life_s: int) -> str:
        path = self._server.base_path + PAGE
        secure = "; Secure" if self.peer(client).secure else ""
        rules = f"Path={path}; Max-Age={life_s}; HttpOnly; SameSite=Strict{secure}"
        return f"{COOKIE}={token}; {rules}"


def _nowhere() -> None:
    return None


def _text(named: Mapping[bytes, bytes], name: bytes) -> str:
    return named.get(name, b"").decode("latin-1")


def _may_be_rebound(client: Client, peer: Peer) -> bool:
    """Tell whether a web page in a browser on this machine may be asking, by a name that it made mean us.

    Such a name has a dot and is no address; programs of this machine ask for an address or a short name.
    """
    if peer.address is None or not peer.address.is_loopback:
        return False
    host = urlsplit(f"//{_text(client.head.named, b'host')}").hostname or ""
    return "." in host and not host.replace(".", "").isdigit() and not host.endswith(".localhost")


def _authority(origin: str) -> str | None:
    """Give the host and port of an origin; None if it has none, such as `null`, or is not one."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _key_in(body: bytes | bytearray) -> str:
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    key = given.get("key") if isinstance(given, dict) else None
    if not isinstance(key, str):
        raise GatewayError(INVALID_REQUEST, 'The body must be {"key": "..."}.')
    return key.strip()
