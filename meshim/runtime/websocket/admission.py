"""Bounds how many handshakes a server begins in a second (adr/0040).

A stranger that was cut can connect again at once, and without CURVE that costs it next to nothing.  What comes faster
than the rate waits, unread, and its addresses take turns: one address with many connections keeps no other one
waiting, and behind a proxy, where all have one address, the first to come is the first to be served.
"""

import socket
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Admission(Generic[T]):
    """A token bucket, and the connections that wait for a token.  Time is an argument, in seconds."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        """`rate` tokens a second, at most `burst` at once; all of these are there at first."""
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._refilled_at = now
        self._turns: OrderedDict[bytes, OrderedDict[T, None]] = OrderedDict()
        """Those that wait, by address: the address whose turn it is comes first, and of each the oldest connection."""
        self._addresses: dict[T, bytes] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._addresses)

    def __iter__(self) -> Iterator[T]:
        """Those that wait."""
        return iter(self._addresses)

    def admit(self, now: float) -> bool:
        """Whether a new connection is served at once; False when it has to `wait`."""
        if self._addresses:
            return False
        self._refill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def wait(self, connection: T, host: str) -> None:
        """Put a connection into the queue of its address."""
        address = network_of(host)
        self._addresses[connection] = address
        self._turns.setdefault(address, OrderedDict())[connection] = None

    def due(self, now: float) -> list[T]:
        """Return those whose time has come, and forget them."""
        self._refill(now)
        admitted: list[T] = []
        while self._addresses and self._tokens >= 1.0:
            self._tokens -= 1.0
            address, queue = next(iter(self._turns.items()))
            connection = next(iter(queue))
            self._turns.move_to_end(address)
            self.withdraw(connection)
            admitted.append(connection)
        return admitted

    def to_cut_for(self, connection: T) -> T | None:
        """Return which one has to go for this one: the oldest of its address; None when this one does not wait.

        Where it waits alone, that is the oldest of all: a flood that fills the room would keep other addresses out.
        """
        address = self._addresses.get(connection)
        if address is None:
            return None
        queue = self._turns[address]
        return next(iter(queue if len(queue) > 1 else self._addresses))

    def withdraw(self, connection: T) -> None:
        """Forget a connection; nothing happens when it does not wait."""
        address = self._addresses.pop(connection, None)
        if address is not None:
            queue = self._turns[address]
            del queue[connection]
            if not queue:
                del self._turns[address]

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._refilled_at) * self._rate)
        self._refilled_at = now


def network_of(host: str) -> bytes:
    """Return what counts as one address: of IPv6 the first 64 bits, of which one customer has all that follow."""
    host = host.removeprefix("::ffff:")  # IPv4 on a socket of IPv6
    if ":" not in host:
        return host.encode()
    try:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8]
    except OSError:
        return host.encode()
