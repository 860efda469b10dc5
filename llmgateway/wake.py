"""Wake-on-LAN: send for a machine that sleeps.

The magic packet is six bytes of 0xFF and sixteen times the MAC address (AMD, Magic Packet Technology, 1995),
sent to UDP port 9 of a broadcast address. It is not answered: the next probe tells whether the machine came
up.
"""

import asyncio
import socket
from typing import Final

from llmgateway.fleet import Provider
from llmgateway.log import Events

events = Events("wake")

LEAST_PAUSE_S: Final = 60.0
PORT: Final = 9


def magic_packet(mac: str) -> bytes:
    """Give the packet for a MAC address of twelve hex digits."""
    return b"\xff" * 6 + bytes.fromhex(mac) * 16


class Alarm:
    """Sends packets, to each machine at most once a minute."""

    def __init__(self, port: int = PORT) -> None:
        self._port = port
        self._sent: dict[str, float] = {}

    def ring(self, provider: Provider) -> None:
        """Wake the provider's machine, if it says how and was not sent for just now."""
        wake = provider.config.wake
        now = asyncio.get_running_loop().time()
        if wake is None or now - self._sent.get(provider.name, -LEAST_PAUSE_S) < LEAST_PAUSE_S:
            return
        self._sent[provider.name] = now
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.sendto(magic_packet(wake.mac), (wake.broadcast, self._port))
        except OSError as exc:
            events.warning("could not send for a machine", provider=provider.name, trouble=str(exc))
        else:
            events.info("sent for a machine", provider=provider.name, broadcast=wake.broadcast)
