"""Wake-on-LAN: send for a machine that sleeps.

The magic packet is six bytes of 0xFF and sixteen times the MAC address (AMD, Magic Packet Technology, 1995),
sent to UDP port 9 of a broadcast address. It is not answered: the next probe tells whether the machine came
up.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import Final

from llmgateway.fleet.provider import Provider, State
from llmgateway.log import Events

events = Events("wake")

LEAST_PAUSE_S: Final = 60.0
PORT: Final = 9
REMEMBERED_S: Final = 86_400.0


def magic_packet(mac: str) -> bytes:
    """Give the packet for a MAC address of twelve hex digits."""
    return b"\xff" * 6 + bytes.fromhex(mac) * 16


class Alarm:
    """Sends packets, to each machine at most once a minute."""

    def __init__(self, port: int = PORT) -> None:
        self._port = port
        self._sent: dict[str, float] = {}

    def ring(self, prospects: Sequence[Provider]) -> None:
        """Wake one of these machines; another one only if that has not come up within a minute."""
        now = asyncio.get_running_loop().time()
        if any(p.state is State.WARMING or now - self._sent_at(p) < LEAST_PAUSE_S for p in prospects):
            return
        asleep = [p for p in prospects if p.config.wake is not None and not p.online]
        if asleep:
            self._send(min(asleep, key=self._sent_at), now)

    def _sent_at(self, provider: Provider) -> float:
        return self._sent.get(provider.name, -LEAST_PAUSE_S)

    def _send(self, provider: Provider, now: float) -> None:
        wake = provider.config.wake
        assert wake is not None
        self._sent = {name: at for name, at in self._sent.items() if now - at < REMEMBERED_S}
        self._sent[provider.name] = now
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.sendto(magic_packet(wake.mac), (wake.broadcast, self._port))
        except OSError as exc:
            events.warning("could not send for a machine", provider=provider.name, trouble=str(exc))
        else:
            events.info("sent for a machine", provider=provider.name, broadcast=wake.broadcast)
