"""Limits the open connections, in all and for each client, so that no client takes every place."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .limits import RefusedError

__all__ = ["Connections", "Seat", "client_of"]


@dataclass(eq=False)
class Seat:
    """One open connection.

    Attributes:
        client: Its client, see :func:`client_of`.
        close: Ends it at once.
        waiting_since: The time in seconds since when it waits for a complete request; None while one is answered.
    """

    client: str
    close: Callable[[], None]
    waiting_since: float | None = field(default_factory=time.monotonic)


class Connections:
    """The open connections, with a limit for all together and for each client.

    When all places are taken, a new connection replaces the one that has waited longest for a complete request: one
    of the same client if that client is at its limit, else one of the client with the most connections. So half-sent
    requests and idle connections never keep anyone out. A new connection is refused only if all of these are being
    answered.
    """

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._places: dict[str, dict[Seat, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    def enter(self, address: str, close: Callable[[], None]) -> Seat:
        """Take a place.

        Args:
            address: Where the connection comes from.
            close: Ends the connection at once.

        Raises:
            RefusedError: 429, the client has too many connections; 503, all clients together have too many.
        """
        client = client_of(address)
        theirs = self._places.get(client, {})
        if len(theirs) >= self._most_each and not self._end_longest_waiting(theirs):
            raise RefusedError(
                429, f"{len(theirs)} connections from {client} are open, which is the limit for one client"
            )
        if len(self) >= self._most and not self._make_room():
            raise RefusedError(503, f"{len(self)} connections are open, which is the limit; try again in a moment")
        place = Seat(client, close)
        self._places.setdefault(client, {})[place] = None
        return place

    def leave(self, place: Seat) -> None:
        """Free a place; freeing it again has no effect."""
        theirs = self._places.get(place.client, {})
        theirs.pop(place, None)
        if not theirs:
            self._places.pop(place.client, None)

    def end_waiting(self) -> None:
        """End every connection that is not being answered."""
        while self._make_room():
            continue

    def _make_room(self) -> bool:
        """End a waiting connection of the client with the most connections that has one."""
        return any(self._end_longest_waiting(places) for places in sorted(self._places.values(), key=len, reverse=True))

    def _end_longest_waiting(self, places: Iterable[Seat]) -> bool:
        waiting = [
            (place.waiting_since, at, place) for at, place in enumerate(places) if place.waiting_since is not None
        ]
        if not waiting:
            return False
        place = min(waiting)[2]
        self.leave(place)
        place.close()
        return True


def client_of(address: str) -> str:
    """The client of an address: the IPv4 address, or the /64 network that an IPv6 client usually has to itself.

    >>> client_of("2001:db8::1:2"), client_of("::ffff:10.0.0.1"), client_of("::1")
    ('2001:db8::/64', '10.0.0.1', '::1')
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address) or ip.is_loopback:
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))
