"""Cookies: what a client keeps for a connector, so that no message overtakes an earlier one that was stored.

The positions at which copies of a stream were stored belong to the sender, and must outlive every process of the mesh.
So the client keeps them, as a cookie in each outcome, and puts the latest one into every Submit of the stream.

    cookie = version, MAC, positions        the MAC covers the stream as well, so that a cookie is worth nothing in
                                            another stream, and nobody can invent one

The cookie of an outcome holds every position that the client was told: those in the cookie of the submit (the mesh
echoes them as `after`), and those stored in this session (`StoredPositions`).  A position is left out once the device
has synced the queue up to there.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from hmac import compare_digest

import msgspec

from meshim.wire.bounds import Copies, Positions
from meshim.wire.codec import decoder, encode
from meshim.wire.envelope import Destination, Stream
from meshim.wire.outcome import Copy

SECRET_BYTES = 32
POSITIONS_MAX = 32
"""Positions in a cookie: enough for the devices of two users, and for some that they replaced."""
_VERSION = b"\x01"
_MAC_BYTES = 16

_decode = decoder(Positions)


def make_cookie(secret: bytes, stream: Stream, positions: Positions) -> bytes:
    """Return the cookie of a stream with these positions; empty for none."""
    if not positions:
        return b""
    content = encode(positions)
    return _VERSION + _mac(secret, stream, content) + content


def read_cookie(secret: bytes, stream: Stream, cookie: bytes) -> Positions | None:
    """Return the positions in a cookie; None for one that was not made for this stream under this secret."""
    content = cookie[1 + _MAC_BYTES :]
    if cookie[:1] != _VERSION or not compare_digest(cookie[1 : 1 + _MAC_BYTES], _mac(secret, stream, content)):
        return None
    try:
        positions: Positions = _decode(content)
    except msgspec.DecodeError:  # an authentic one of another version of the program
        return None
    return positions


def _mac(secret: bytes, stream: Stream, content: bytes) -> bytes:
    # The encoded stream ends where it says, so that no two pairs of stream and content give the same bytes.
    return blake2b(encode(stream) + content, key=secret, digest_size=_MAC_BYTES, person=b"meshim cookie").digest()


class StoredPositions:
    """The highest position stored for each copy of each stream, as far as it was stored in one session."""

    __slots__ = ("streams",)

    def __init__(self) -> None:
        self.streams: dict[Destination, dict[Copy, int]] = {}

    def stored(self, to: Destination, done: Copies, position: int, after: Positions) -> Positions:
        """Note that these copies were stored at this position; return the positions for the cookie."""
        table = self.streams.setdefault(to, {})
        for copy in done:
            table[copy] = max(position, table.get(copy, 0))
        return _limited(_merged(table, after))

    def delivered(self, to: Destination, done: Copies, copies: Copies, after: Positions) -> Positions:
        """Forget what the devices in `done` have synced; return the positions for the cookie.

        A device that got a live copy with `after` had synced its queue up to there.  Where `copies` names every device
        of the user, a position for all of them (device 0) goes on as one for each of the others.
        """
        table = self.streams.get(to, {})
        merged = _merged(table, after)
        for user, device in done:
            synced = max((p for of, d, p in after if of == user and d in (0, device)), default=-1)
            for positions in (table, merged):
                if positions.get((user, device), synced + 1) <= synced:
                    del positions[user, device]
                if positions.get((user, 0), synced + 1) <= synced and (user, 0) not in copies:
                    position = positions.pop((user, 0))
                    for copy in copies:
                        if copy[0] == user and copy not in done:
                            positions[copy] = max(position, positions.get(copy, 0))
        if not table:
            self.streams.pop(to, None)
        return _limited(merged)


def _merged(table: Mapping[Copy, int], after: Positions) -> dict[Copy, int]:
    merged = dict(table)
    for user, device, position in after:
        merged[user, device] = max(position, merged.get((user, device), 0))
    return merged


def _limited(positions: Mapping[Copy, int]) -> Positions:
    """Sorted, without those that one for all devices of the user covers, and at most `POSITIONS_MAX`."""
    kept = [
        (user, device, position)
        for (user, device), position in sorted(positions.items())
        if device == 0 or position > positions.get((user, 0), -1)
    ]
    return tuple(kept) if len(kept) <= POSITIONS_MAX else _for_all_devices(kept)


def _for_all_devices(positions: Iterable[tuple[int, int, int]]) -> Positions:
    """The highest position of each user, for all of its devices: it holds for each of them."""
    highest: dict[int, int] = {}
    for user, _, position in positions:
        highest[user] = max(position, highest.get(user, 0))
    return tuple((user, 0, position) for user, position in highest.items())
