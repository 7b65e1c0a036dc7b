"""Law 13, enforced: with this folder on PYTHONPATH a process reaches nothing but the loopback address."""

import socket
from typing import Any

_connect = socket.socket.connect


def _refuse(host: object) -> None:
    if str(host) not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"the network was asked for {host!r}")


def connect(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _refuse(address[0])
    _connect(self, address)


socket.socket.connect = connect  # type: ignore[method-assign]
