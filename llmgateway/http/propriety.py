"""What of a request's head is not to be served, though aiohttp's parser takes it."""

from typing import Final

from llmgateway.errors import INVALID_REQUEST, GatewayError
from llmgateway.http.client import Client

MAX_HEAD_BYTES: Final = 64 * 1024


def check_head(client: Client) -> None:
    """Refuse such a head, and close after it. Raises GatewayError (400)."""
    coding = client.head.named.get(b"transfer-encoding")
    trouble = ""
    if client.version not in ((1, 0), (1, 1)):
        trouble = "Only HTTP/1.0 and HTTP/1.1 are spoken here."
    elif coding is not None and client.version == (1, 0):
        trouble = "HTTP/1.0 has no Transfer-Encoding."
    elif coding is not None and coding.lower() != b"chunked":
        trouble = "No transfer coding but chunked is understood."
    elif len(client.raw_path) + client.head.size > MAX_HEAD_BYTES:
        trouble = f"The request's head is over {MAX_HEAD_BYTES} bytes."
    if trouble:
        client.close_after()
        raise GatewayError(INVALID_REQUEST, trouble)
