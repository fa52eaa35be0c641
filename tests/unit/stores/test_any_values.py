"""Whatever Redis and NATS hold or bring under the names of meshim, it is understood, or counted and skipped."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.msg import Msg

from meshim.cli.deadletter import _shown
from meshim.stores.nats.dead_letters import UNKNOWN_PARTITION, letter_of
from meshim.stores.ports import Lease
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.leases import RedisLeases
from meshim.stores.redis.presence import RedisPresence
from meshim.stores.redis.session_cache import RedisSessionCache
from meshim.stores.sql.rows import decode_entries, rows_of
from meshim.wire.offline_log import Entry
from tests.unit.any_msgpack import DEEP, NOT_UTF_8, any_bytes, frames
from tests.wire_samples import ENVELOPE_BYTES


class FakeRedis:
    """Every script and command has this reply."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply
        self.skipped: list[str] = []

    def script(self, lua: str) -> Any:
        async def run(keys: Sequence[str], arguments: Sequence[object] = ()) -> Any:
            return self.reply

        return run

    async def execute(self, *command: object) -> Any:
        return self.reply

    async def subscribe(self, channel: str) -> AsyncGenerator[list[bytes] | None]:
        yield self.reply

    def skip(self, kind: str, reason: object) -> None:
        self.skipped.append(kind)


def client_of(redis: FakeRedis) -> RedisClient:
    return cast("RedisClient", redis)


def with_field(name: str, value: bytes) -> bytes:
    """The lease as a map, with this msgpack in place of one field."""
    fields = msgspec.to_builtins(Lease("connector", "c1", 7, "tcp://127.0.0.1:1", "", "", "ws://127.0.0.1:2"))
    head = bytes((0x80 | len(fields),))
    pack = msgspec.msgpack.encode
    return head + b"".join(pack(key) + (value if key == name else pack(each)) for key, each in fields.items())


@given(any_bytes)
@example(with_field("endpoint", NOT_UTF_8))
@example(with_field("key", DEEP))
@example(with_field("unknown", DEEP))
@example(DEEP)
def test_any_lease_is_understood_or_skipped(value: bytes) -> None:
    redis = FakeRedis([b"7 " + value, value])
    living = asyncio.run(RedisLeases(client_of(redis), "ns").living("connector"))
    assert len(living) + len(redis.skipped) == 2


@given(any_bytes)
@example(b"\x81" + NOT_UTF_8 + b"\x01")
@example(DEEP)
@example(b"\x81\xa7devices" + DEEP)
def test_any_login_and_any_account_is_understood_or_skipped(value: bytes) -> None:
    run_id = b"0" * 40
    redis = FakeRedis([run_id, [run_id + value]])
    cache = RedisSessionCache(client_of(redis), "ns")
    (login,) = asyncio.run(cache.logins([bytes(32)]))
    assert (login is None) == (redis.skipped == ["login"])
    redis.reply, redis.skipped = [bytes(8) + value, value], []
    accounts = asyncio.run(cache.accounts([1, 2]))
    assert accounts.count(None) == len(redis.skipped)


@given(st.binary(max_size=100))
def test_any_secret_is_a_key_or_skipped(value: bytes) -> None:
    redis = FakeRedis([value])
    secret = asyncio.run(RedisSessionCache(client_of(redis), "ns").mesh_secret())
    assert (secret is None) == (redis.skipped == ["secret"])


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b'[{"devices":[],"bindings":[],"new":' + b"[" * 12_000)
@example(b"[" * 12_000)
@example(b'["\xff"]')
@example(b"[" + b"9" * 5_000 + b"]")
def test_any_presence_is_understood_or_skipped(value: bytes) -> None:
    redis = FakeRedis(value)
    found = asyncio.run(RedisPresence(client_of(redis), "ns").lookup([1, 2]))
    assert found == {} or not redis.skipped
    assert redis.skipped in ([], ["presence", "presence"])


@given(st.lists(st.binary(max_size=30), max_size=3))
@example([b"9" * 5_000])
@example([b"\xd9\xa1", b"1,,2", b"-1", b" 1_0 "])
def test_any_message_of_presence_is_understood_or_skipped(batch: list[bytes]) -> None:
    redis = FakeRedis(batch)

    async def changes() -> list[Any]:
        return [each async for each in RedisPresence(client_of(redis), "ns").changes()]

    for users in asyncio.run(changes()):
        assert all(isinstance(user, int) for user in users)
    assert len(redis.skipped) <= len(batch)


MADE_BY_NATS = {"Nats-Sequence": "1", "Nats-Time-Stamp": "2026-01-02T03:04:05Z"}
headers = st.fixed_dictionaries(
    {
        "Nats-Sequence": st.integers(1, 2**63 - 1).map(str),
        "Nats-Time-Stamp": st.just("2026-01-02T03:04:05.123456789Z"),
        "Nats-Subject": st.text(max_size=12).map(lambda text: f"ns.dead.{text}") | st.just("ns.dead.3"),
    },
    optional={"Meshim-Position": st.text(max_size=9) | st.integers().map(str), "Meshim-Reason": st.text(max_size=20)},
)


@given(headers, any_bytes)
@example(
    {"Nats-Sequence": "1", "Nats-Time-Stamp": "2026-01-02T03:04:05Z", "Nats-Subject": "ns.dead." + "9" * 5_000}, b""
)
def test_any_dead_letter_can_be_listed(found: dict[str, str], data: bytes) -> None:
    """NATS makes the first three headers; the others, the subject and the record are of whoever published it."""
    letter = letter_of(Msg(cast("Any", None), subject="", data=data, headers=found))
    assert letter.number == int(found["Nats-Sequence"])
    assert letter.partition == UNKNOWN_PARTITION or found["Nats-Subject"].endswith(str(letter.partition))
    assert letter.position >= 0
    shown = _shown(letter)
    assert shown.unreadable_entries is None or shown.unreadable_entries >= 0


entries = frames([ENVELOPE_BYTES]).map(lambda envelope: Entry(2, (20,), envelope))


@given(st.lists(st.tuples(st.integers(1), st.lists(entries, max_size=4)), max_size=3))
def test_any_entry_of_the_log_is_a_row_or_refused_with_a_reason(records: list[tuple[int, list[Entry]]]) -> None:
    decoded, refused = decode_entries(records)
    assert len(decoded) + len(refused) == sum(len(found) for _, found in records)
    assert all(reason for _, _, reason in refused)
    rows, left_out = rows_of(decoded, {2: (20,)})
    assert len(rows) + left_out == len(decoded)
