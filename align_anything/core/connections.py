"""Connections whose other end may be gone without a word, as behind a network that is down."""

from __future__ import annotations

import socket

SILENCE = 35
"""Seconds without an answer after which the kernel gives a connection up."""
_WANTED = {
    'TCP_KEEPIDLE': 10,
    'TCP_KEEPINTVL': 5,
    'TCP_KEEPCNT': (SILENCE - 10) // 5,
    'TCP_USER_TIMEOUT': SILENCE * 1000,
}
KEPT_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, vars(socket)[name], value) for name, value in _WANTED.items() if name in vars(socket)),
]
"""Options of a socket whose kernel asks the other end's whether it is there, as far as this system can be told when.

The other process need not answer, so that one which computes for long counts as there.
"""
