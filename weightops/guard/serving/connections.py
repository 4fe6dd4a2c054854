"""How many connections are open, and whose: nobody holds so many that no room is left for the others."""

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
        client: Whose it is, see :func:`client_of`.
        close: Ends it at once.
        waiting_since: Since when it has no whole request, in seconds; None while a request is answered.
    """

    client: str
    close: Callable[[], None]
    waiting_since: float | None = field(default_factory=time.monotonic)


class Connections:
    """The open connections, at most so many in all and from each client.

    Who comes when all places are taken gets the place of the connection that has been waiting longest for a whole
    request, of the same client if that one is at its limit, else of the client with the most. So half-sent requests
    and idle connections never keep anybody out. A newcomer is refused only where every such place is being answered.
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
            RefusedError: 429, the client has too many; 503, all have.
        """
        client = client_of(address)
        theirs = self._places.get(client, {})
        if len(theirs) >= self._most_each and not self._end_longest_waiting(theirs):
            raise RefusedError(429, f"{len(theirs)} connections from {client} are open, the most for one client")
        if len(self) >= self._most and not self._make_room():
            raise RefusedError(503, f"{len(self)} connections are open, the most for all; try again in a moment")
        place = Seat(client, close)
        self._places.setdefault(client, {})[place] = None
        return place

    def leave(self, place: Seat) -> None:
        """Give a place back; twice is once."""
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
    """Who is counted as one client: an IPv4 address, or the /64 network that an IPv6 client usually has to itself.

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
