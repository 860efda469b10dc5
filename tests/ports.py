"""Ports for servers that cannot be asked which one they took."""

from __future__ import annotations

import socket


def held_port() -> socket.socket:
    """A socket that holds a free port: a server may listen there, and nobody else is given it meanwhile.

    A port that was merely free a moment ago may be the near end of a connection when it is wanted.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder
