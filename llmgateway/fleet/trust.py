"""Whose certificates are believed, for each provider that speaks HTTPS.

The system's certificates are read only if somebody needs them, and once; a file of a provider's own is read
again when it has changed.
"""

import ssl
from pathlib import Path

from llmgateway.config.providers import TrustConfig


class NoTrust(Exception):
    """The file of a provider's `tls.ca` is of no use; the text says why, as the end of a sentence."""


class Trust:
    """The TLS contexts of all providers."""

    def __init__(self) -> None:
        self._contexts: dict[TrustConfig, tuple[object, ssl.SSLContext]] = {}

    def context(self, tls: TrustConfig) -> ssl.SSLContext:
        """Give the context for connections that are to be checked so. Raises NoTrust."""
        try:
            state = Path(tls.ca).stat() if tls.ca is not None else None
            trace = state and (state.st_mtime_ns, state.st_size, state.st_ino)
            known = self._contexts.get(tls)
            if known is None or known[0] != trace:
                known = self._contexts[tls] = trace, _context(tls)
        except ssl.SSLError:
            raise NoTrust("the file in its `tls.ca` holds no certificates in PEM") from None
        except OSError as exc:
            raise NoTrust(f"the file in its `tls.ca` cannot be read ({exc.strerror})") from None
        return known[1]


def _context(tls: TrustConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca)
    if tls.ca is not None:
        # Home-made certificates: a server's own in place of an authority's, and without the newer extensions.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
