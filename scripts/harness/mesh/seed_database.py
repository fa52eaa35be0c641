"""Seeds the SQLite database of a mesh with users before the mesh starts: a benchmark measures no registrations."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import create_engine, insert

from meshim.runtime.crypto import hash_token
from meshim.stores.sql import migrate
from meshim.stores.sql.schema import im_device, im_relation, im_token, im_user
from meshim.stores.sql.url import sqlite_url

TOKEN_S = 86_400.0
_NO_HASH = "no password"
_DEVICE = "bench"


class SeededUser(NamedTuple):
    """A user with one device and a valid token.  User and device have the same id."""

    user: int
    epoch: int
    token: bytes

    @classmethod
    def of(cls, number: int) -> "SeededUser":
        """Return the user with this number, from 0; the same in every process."""
        digest = hashlib.sha512(b"seeded user %d" % number).digest()
        return cls(number + 1, int.from_bytes(digest[:8], "big") >> 11, digest[8:40])


def seed_database(data: Path, count: int, friends: Iterable[tuple[int, int]]) -> Sequence[SeededUser]:
    """Create the SQLite database of a mesh with `count` users; `friends` are pairs of their numbers."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    url = sqlite_url(data / "meshim.db")
    migrate.upgrade(url)
    users = [SeededUser.of(number) for number in range(count)]
    now = int(time.time() * 1000)
    ends = now + int(TOKEN_S * 1000)
    pairs = sorted({(min(pair) + 1, max(pair) + 1) for pair in friends})
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            insert(im_user),
            [{"id": p.user, "name": f"bench{p.user}", "password_hash": _NO_HASH, "gmt_create": now} for p in users],
        )
        connection.execute(
            insert(im_device),
            [
                {
                    "id": p.user,
                    "user_id": p.user,
                    "name": _DEVICE,
                    "epoch": p.epoch,
                    "last_seen": now,
                    "gmt_create": now,
                }
                for p in users
            ],
        )
        connection.execute(
            insert(im_token),
            [
                {
                    "token_hash": hash_token(p.token), "user_id": p.user, "device_id": p.user, "epoch": p.epoch,
                    "expires_at": ends, "gmt_create": now,
                }
                for p in users
            ],
        )  # fmt: skip
        if pairs:
            connection.execute(
                insert(im_relation),
                [
                    {
                        "user_id1": one, "user_id2": other, "state": "friends", "requested_by": one,
                        "gmt_create": now, "gmt_modified": now,
                    }
                    for one, other in pairs
                ],
            )  # fmt: skip
    engine.dispose()
    return users
