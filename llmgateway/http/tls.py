"""HTTPS of our own: one listener, whose certificate can be renewed while it is in use.

A new certificate gets a context of its own, and every handshake is moved to the newest. Loading it into the
context that the listener holds would not do: OpenSSL keeps one certificate for each kind of key, so an old
one of another kind would live on, and a pair that changes in the middle of being read would spoil it.

Who speaks plain HTTP here is told so, in plain HTTP: the bare end of a connection has cost people evenings.
"""

import ssl
from typing import Any, Final

from llmgateway.errors import INVALID_REQUEST, GatewayError
from llmgateway.http.client import plain_error
from llmgateway.log import Events

events = Events("downstream")

_SPEAK_HTTPS: Final = "This is an HTTPS port, and plain HTTP came; the URL must begin with https://."
_NO_PASSWORD: Final = "the key is encrypted; give one without a passphrase"


class BadCertificate(Exception):
    """The certificate and key cannot be used; the text says why."""


class Certificate:
    """The server's certificate and its key, as they are on disk."""

    def __init__(self, cert: str, key: str) -> None:
        """Load both files. Raises BadCertificate."""
        self._files = cert, key
        self.context = self._newest = self._load()
        self.context.sni_callback = self._move

    def renew(self) -> None:
        """Take in what is on disk now. Raises BadCertificate; then the one in use stays."""
        self._newest = self._load()

    def _move(self, connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        """Have a handshake go on with the newest certificate; called for clients without SNI, too."""
        connection.context = self._newest

    def _load(self) -> ssl.SSLContext:
        context = _fresh()
        try:
            context.load_cert_chain(*self._files, password=_refuse)
        except ssl.SSLError as exc:
            what = "the certificate and the key do not belong together, or one of them is not PEM"
            raise BadCertificate(f"server.tls: {what} ({exc.reason or exc})") from exc
        except (OSError, ValueError) as exc:
            raise BadCertificate(f"server.tls: {getattr(exc, 'strerror', None) or exc}") from exc
        return context


class _Handshake(ssl.SSLObject):
    """One client's TLS; it hears it when what comes is a request in plain HTTP, and answers that."""

    outgoing: ssl.MemoryBIO | None = None

    def do_handshake(self) -> None:
        """Go on with the handshake; behind an answer in plain HTTP nothing more is understood."""
        try:
            super().do_handshake()
        except ssl.SSLError as exc:
            outgoing = self.outgoing
            if exc.reason != "HTTP_REQUEST" or outgoing is None:
                raise
            self.outgoing = None
            events.info("a client speaks plain HTTP to the HTTPS port; its URL must begin with https://")
            outgoing.write(plain_error(GatewayError(INVALID_REQUEST, _SPEAK_HTTPS)))
            raise ssl.SSLWantReadError from None  # which sends what is outgoing; the client is to close then


class _Context(ssl.SSLContext):
    sslobject_class = _Handshake

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *more: Any, **named: Any
    ) -> _Handshake:
        wrapped = super().wrap_bio(incoming, outgoing, *more, **named)
        assert isinstance(wrapped, _Handshake)
        wrapped.outgoing = outgoing
        return wrapped


def _fresh() -> ssl.SSLContext:
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _refuse() -> str:
    """Answer instead of a prompt on the terminal."""
    raise ValueError(_NO_PASSWORD)
