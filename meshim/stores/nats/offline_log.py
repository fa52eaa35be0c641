"""The log on NATS JetStream: one work-queue stream with one durable consumer per partition.

=====================  =============================================================
stream                 `{namespace}-offline-{partition}`
subject                `{namespace}.offline.{partition}`
consumer               `writer`: explicit acknowledgement, any number of deliveries
dead-letter stream     `{namespace}-dead`, subjects `{namespace}.dead.{partition}`
=====================  =============================================================

What is acknowledged is as durable as the server's `sync_interval` says; meshim's own server
runs with `always`.  With `gate` (see `durability.py`) that is read from every run of the server before anything is
given to it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from meshim.errors import UsageError
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.jetstream import Answer, JetStream, refused
from meshim.stores.nats.puller import Puller
from meshim.stores.ports import LogMessage
from meshim.wire.sizes import RECORD_BYTES_MAX

_REASON_CHARACTERS_MOST = 500
_DUPLICATE_WINDOW_NS = 100_000_000  # the least that is allowed: records carry no message ids
POSITION, REASON = "Meshim-Position", "Meshim-Reason"
"""Headers of a dead letter: where the record stood in its partition, and why it was not written."""
_CONSUMER = "writer"
_PROGRESS = b"+WPI"

# Error code of the server: server/errors.json in its repository.
_OTHER_CONFIGURATION = 10058


class _Config(msgspec.Struct):
    subjects: list[str] = []
    retention: str = ""
    discard: str = ""
    storage: str = ""
    max_bytes: int = -1


class _State(msgspec.Struct):
    messages: int = 0
    last_seq: int = 0


class _Stream(Answer):
    config: _Config = msgspec.field(default_factory=_Config)
    state: _State = msgspec.field(default_factory=_State)


_answer = msgspec.json.Decoder(Answer)
_stream = msgspec.json.Decoder(_Stream)


class JetStreamOfflineLog:
    """The port `Log` on JetStream."""

    def __init__(
        self,
        client: NatsClient,
        namespace: str,
        *,
        max_bytes: int = 4 << 30,
        dead_bytes: int = 256 << 20,
        publish_timeout_s: float = 2.0,
        timeout_s: float = 2.0,
        ack_wait_s: float = 30.0,
        unacknowledged_most: int = 8192,
        fetch_bytes: int = 16 << 20,
        gate: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`max_bytes` limits each partition, `dead_bytes` the dead-letter stream; the server reserves both.

        `gate` is awaited before anything is stored, and raises `BackendUnavailable` where it would not be safe.

        A message that was not acknowledged or extended for `ack_wait_s` is given again.  At most
        `unacknowledged_most` are given out at a time, and about `fetch_bytes` by one fetch.
        """
        assert fetch_bytes > RECORD_BYTES_MAX
        self._client = client
        self._jetstream = JetStream(client, timeout_s)
        self._namespace = namespace
        self._max_bytes = max_bytes
        self._dead_bytes = dead_bytes
        self._publish_timeout_s = publish_timeout_s
        self._timeout_s = timeout_s
        self._ack_wait_s = ack_wait_s
        self._unacknowledged_most = unacknowledged_most
        self._fetch_bytes = fetch_bytes
        self._gate = gate
        self._pullers: dict[int, Puller] = {}

    # ---------------------------------------------------------------- on the way of a message

    async def publish(self, partition: int, data: bytes) -> int:
        assert len(data) <= RECORD_BYTES_MAX
        subject = f"{self._namespace}.offline.{partition}"
        return await self._append(subject, data)

    async def fetch(self, partition: int, most: int, wait_s: float) -> list[LogMessage]:
        """One fetch of a partition at a time.  No more than about `fetch_bytes` are returned."""
        return await (await self._puller(partition)).fetch(most, wait_s)

    async def extend(self, partition: int, positions: Sequence[int]) -> None:
        for reply in (await self._puller(partition)).replies(positions).values():
            await self._client.publish(reply, _PROGRESS)

    async def acknowledge(self, partition: int, positions: Sequence[int]) -> None:
        """Those that were not fetched here (or so long ago that it was forgotten) are deleted one by one."""
        puller = await self._puller(partition)
        replies = puller.replies(positions)
        *others, last = list(replies.values()) or [""]
        for reply in others:
            await self._client.publish(reply, b"")
        if last:
            # The server takes them in order, so that its answer to the last one is for all.
            await self._client.ask(last, b"", self._timeout_s)
            puller.forget(replies)
        await asyncio.gather(*(self._delete(partition, position) for position in positions if position not in replies))

    async def read(self, partition: int, position: int) -> bytes | None:
        message = await self._jetstream.get(self._name(partition), {"seq": position})
        return None if message is None else message.data

    async def dead_letter(self, partition: int, position: int, reason: str, data: bytes) -> None:
        headers = {POSITION: str(position), REASON: reason[:_REASON_CHARACTERS_MOST]}
        await self._append(f"{dead_subject(self._namespace)}.{partition}", data, headers)

    async def _append(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> int:
        if self._gate is not None:
            await self._gate()
        return await self._jetstream.append(subject, data, self._publish_timeout_s, headers)

    async def _delete(self, partition: int, position: int) -> None:
        await self._jetstream.delete(self._name(partition), position)

    async def _puller(self, partition: int) -> Puller:
        puller = self._pullers.get(partition)
        if puller is None:
            puller = Puller(
                self._client,
                self._name(partition),
                _CONSUMER,
                bytes_most=self._fetch_bytes,
                unacknowledged_most=2 * self._unacknowledged_most,
                timeout_s=self._timeout_s,
            )
            await puller.open()
            puller = self._pullers.setdefault(partition, puller)
        return puller

    # ---------------------------------------------------------------- setting up

    async def ensure(self, partition: int, first: int) -> None:
        """Also the consumer, and the dead-letter stream.  Can be called by many at once, and again.

        Raises `UsageError` when a stream of that name is not ours to use or cannot be made, or when
        it was replaced by an older one, which gives out positions that the database has already.
        """
        name = self._name(partition)
        stream = await self._ensure_stream(
            {
                "name": name,
                "subjects": [f"{self._namespace}.offline.{partition}"],
                "retention": "workqueue",
                "max_bytes": self._max_bytes,
                "max_msg_size": RECORD_BYTES_MAX,
                "first_seq": first,
            }
        )
        if stream.state.last_seq + 1 < first:
            await self._skip_to(name, first, stream.state)
        await self._ensure_consumer(name)
        await self._ensure_stream(
            {
                "name": dead_stream(self._namespace),
                "subjects": [f"{dead_subject(self._namespace)}.*"],
                "retention": "limits",
                "max_bytes": self._dead_bytes,
            }
        )

    async def _ensure_stream(self, config: dict[str, object]) -> _Stream:
        """Create the stream, or see that there is one that can be used as it is."""
        config |= {
            "storage": "file",
            "num_replicas": 1,
            "allow_direct": True,
            "discard": "new",  # discarding the old, the default, would lose what `sent` was told for
            "duplicate_window": _DUPLICATE_WINDOW_NS,
        }
        name = config["name"]
        stream = await self._jetstream.call(f"STREAM.CREATE.{name}", config, _stream)
        if stream.error is not None and stream.error.err_code == _OTHER_CONFIGURATION:
            stream = await self._jetstream.call(f"STREAM.INFO.{name}", {}, _stream)
            if stream.error is None:
                await self._adopt(config, stream.config)
        if stream.error is not None:
            raise refused(f"the stream {name}", stream.error)
        return stream

    async def _adopt(self, wanted: dict[str, object], config: _Config) -> None:
        """Refuse a stream that would lose messages; change the size of one that had another limit."""
        name = wanted["name"]
        for setting in ("subjects", "retention", "discard", "storage"):
            found = getattr(config, setting)
            if found != wanted[setting]:
                raise UsageError(
                    f"The NATS stream {name} has {setting} {found} instead of {wanted[setting]}: "
                    f"delete it if nobody needs it, or choose another namespace in the topology."
                )
        if config.max_bytes != wanted["max_bytes"]:
            updated = await self._jetstream.call(f"STREAM.UPDATE.{name}", {**wanted, "first_seq": 0}, _answer)
            if updated.error is not None:
                raise refused(f"the new size of the stream {name}", updated.error)

    async def _skip_to(self, name: str, first: int, state: _State) -> None:
        """Have an empty stream that is older than the database go on where the database stands."""
        if state.messages:
            raise UsageError(
                f"The NATS stream {name} ends at position {state.last_seq}, but the database is at {first - 1}: "
                f"bring back its newest copy, or save its {state.messages} messages elsewhere and delete it."
            )
        purged = await self._jetstream.call(f"STREAM.PURGE.{name}", {"seq": first}, _answer)
        if purged.error is not None:
            raise refused(f"the first position {first} of the stream {name}", purged.error)

    async def _ensure_consumer(self, stream: str) -> None:
        config = {
            "name": _CONSUMER,
            "durable_name": _CONSUMER,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": round(self._ack_wait_s * 1e9),
            "max_deliver": -1,
            "max_ack_pending": self._unacknowledged_most,
        }
        request = {"stream_name": stream, "config": config}
        answer = await self._jetstream.call(f"CONSUMER.CREATE.{stream}.{_CONSUMER}", request, _answer)
        if answer.error is not None:
            raise refused(f"the consumer of the stream {stream}", answer.error)

    def _name(self, partition: int) -> str:
        return f"{self._namespace}-offline-{partition}"


def dead_stream(namespace: str) -> str:
    return f"{namespace}-dead"


def dead_subject(namespace: str) -> str:
    """Ends with the partition."""
    return f"{namespace}.dead"
