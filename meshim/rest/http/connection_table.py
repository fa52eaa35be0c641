"""Which connection has to go when there is no room for another one.  Pure.

A connection waits for its peer, or is worked for: its request is being answered.  Only one that waits can go.
"""

from collections import Counter, OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class ConnectionTable(Generic[T]):
    """The open connections, with their addresses, and those that wait, the longest first."""

    def __init__(self) -> None:
        self._addresses: dict[T, bytes] = {}
        self._counts: Counter[bytes] = Counter()
        self._waiting: OrderedDict[T, None] = OrderedDict()
        self._waiting_of: dict[bytes, OrderedDict[T, None]] = {}

    def __len__(self) -> int:
        """How many are open."""
        return len(self._addresses)

    def count(self, address: bytes) -> int:
        """How many count for this address."""
        return self._counts[address]

    def add(self, connection: T, address: bytes) -> None:
        """A new connection waits for its peer.  `address` is what counts as one, as of `network_of`."""
        self._addresses[connection] = address
        self._counts[address] += 1
        self.waits(connection)

    def remove(self, connection: T) -> None:
        """A connection has ended; nothing happens when it is not known."""
        if connection in self._addresses:
            self.works(connection)
            address = self._addresses.pop(connection)
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def move(self, connection: T, address: bytes) -> None:
        """From now on a connection counts for another address; nothing happens when it does already, or is not known.

        Behind a proxy each request on a connection may be of another client.
        """
        if self._addresses.get(connection, address) != address:
            waits = connection in self._waiting
            self.remove(connection)
            self.add(connection, address)
            if not waits:
                self.works(connection)

    def waits(self, connection: T) -> None:
        """From now on a connection waits for its peer; nothing happens when it waits already, or is not known."""
        if connection in self._addresses and connection not in self._waiting:
            self._waiting[connection] = None
            self._waiting_of.setdefault(self._addresses[connection], OrderedDict())[connection] = None

    def works(self, connection: T) -> None:
        """From now on a connection is worked for; nothing happens when it is already, or is not known."""
        if connection in self._waiting:
            del self._waiting[connection]
            address = self._addresses[connection]
            of_address = self._waiting_of[address]
            del of_address[connection]
            if not of_address:
                del self._waiting_of[address]

    def to_cut_for(self, address: bytes) -> T | None:
        """Return which one has to go for a new connection of this address; None when none can go.

        An address that has half of all makes room for itself: it keeps no other one out.  For others the one goes that
        waits longest.
        """
        own = self._waiting_of.get(address)
        candidates = own if own and 2 * self._counts[address] >= len(self) else self._waiting
        return next(iter(candidates), None)
