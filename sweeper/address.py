"""Whether something listens at a cluster's address; without Ray, which would try for minutes."""

from __future__ import annotations

import socket

CONNECT_SECONDS = 10.0


def host_and_port(address: str) -> tuple[str, int] | None:
    """The parts of host:port, with a scheme or not; None of a word that Ray knows, as "auto"."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() else None


def why_silent(address: str, seconds: float = CONNECT_SECONDS) -> str | None:
    """Why nothing answers at an address; None where something does, or where nobody can say."""
    place = host_and_port(address)
    if place is None:
        return None
    try:
        socket.create_connection(place, timeout=seconds).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None
