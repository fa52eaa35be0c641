"""The offline log on NATS JetStream: one work-queue stream with one durable consumer per partition.

=====================  =============================================================
stream                 `{namespace}-offline-{partition}`
subject                `{namespace}.offline.{partition}`
consumer               `writer`: explicit acknowledgement, any number of deliveries
dead-letter stream     `{namespace}-dead`, subjects `{namespace}.dead.{partition}`
=====================  =============================================================

An acknowledged message is as durable as the `sync_interval` of the server says; the server that meshim starts itself
runs with `always`.  A `gate` (see `durability.py`) reads that setting from every run of the server before the first
message is published to it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from meshim.errors import UsageError
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.jetstream import Answer, JetStream, refused
from meshim.stores.nats.pull_consumer import PullConsumer
from meshim.stores.ports import LogMessage
from meshim.wire.sizes import RECORD_BYTES_MAX, dead_letters_bytes

_REASON_CHARACTERS_MAX = 500
_DUPLICATE_WINDOW_NS = 100_000_000  # the least that is allowed: records carry no message ids
POSITION, REASON = "Meshim-Position", "Meshim-Reason"
"""Headers of a dead letter: the position of the record in its partition, and why it was not written."""
_CONSUMER = "writer"
_MESH = "meshim"
"""Key in the metadata of a stream: the id of its mesh."""
_PROGRESS = b"+WPI"

# Error code of the server: server/errors.json in its repository.
_STREAM_NAME_IN_USE = 10058


class _Config(msgspec.Struct):
    subjects: list[str] = []
    retention: str = ""
    discard: str = ""
    storage: str = ""
    max_bytes: int = -1
    metadata: dict[str, str] = {}


class _State(msgspec.Struct):
    messages: int = 0
    last_seq: int = 0


class _Stream(Answer):
    config: _Config = msgspec.field(default_factory=_Config)
    state: _State = msgspec.field(default_factory=_State)


_answer = msgspec.json.Decoder(Answer)
_stream = msgspec.json.Decoder(_Stream)


class JetStreamOfflineLog:
    """The port `OfflineLog` on JetStream."""

    def __init__(
        self,
        client: NatsClient,
        namespace: str,
        *,
        max_bytes: int = 4 << 30,
        dead_bytes: int | None = None,
        mesh_id: str | None = None,
        publish_timeout_s: float = 2.0,
        timeout_s: float = 2.0,
        ack_wait_s: float = 30.0,
        ack_pending_max: int = 8192,
        fetch_bytes: int = 16 << 20,
        gate: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`max_bytes` limits each partition, `dead_bytes` the dead-letter stream; the server reserves both.

        `mesh_id` names the mesh that owns the streams (`MeshRecord`): `ensure` writes it there, and refuses streams of
        another mesh.  Without it `ensure` does not compare.

        `gate` is awaited before each message is stored, and raises `BackendUnavailable` when storing is not safe.

        A message that was neither acknowledged nor extended for `ack_wait_s` is given out again.  At most
        `ack_pending_max` messages are given out at a time, and about `fetch_bytes` bytes by one fetch.
        """
        assert fetch_bytes > RECORD_BYTES_MAX
        self._client = client
        self._jetstream = JetStream(client, timeout_s)
        self._namespace = namespace
        self._max_bytes = max_bytes
        self._dead_bytes = dead_letters_bytes(max_bytes) if dead_bytes is None else dead_bytes
        self._metadata = {} if mesh_id is None else {_MESH: mesh_id}
        self._publish_timeout_s = publish_timeout_s
        self._timeout_s = timeout_s
        self._ack_wait_s = ack_wait_s
        self._ack_pending_max = ack_pending_max
        self._fetch_bytes = fetch_bytes
        self._gate = gate
        self._consumers: dict[int, PullConsumer] = {}

    # ---------------------------------------------------------------- the path of a message

    async def publish(self, partition: int, data: bytes) -> int:
        assert len(data) <= RECORD_BYTES_MAX
        subject = f"{self._namespace}.offline.{partition}"
        return await self._append(subject, data)

    async def fetch(self, partition: int, limit: int, wait_s: float) -> list[LogMessage]:
        """Run one fetch of a partition at a time.  The messages have about `fetch_bytes` together at most."""
        return await (await self._consumer(partition)).fetch(limit, wait_s)

    async def extend(self, partition: int, positions: Sequence[int]) -> None:
        for reply in (await self._consumer(partition)).replies(positions).values():
            await self._client.publish(reply, _PROGRESS)

    async def acknowledge(self, partition: int, positions: Sequence[int]) -> None:
        """Acknowledge messages that were fetched here; delete the others, and forgotten ones, one by one."""
        consumer = await self._consumer(partition)
        replies = consumer.replies(positions)
        *others, last = list(replies.values()) or [""]
        for reply in others:
            await self._client.publish(reply, b"")
        if last:
            # The server processes them in order, so its answer to the last one confirms all.
            await self._client.request(last, b"", self._timeout_s)
            consumer.forget(replies)
        await asyncio.gather(*(self._delete(partition, position) for position in positions if position not in replies))

    async def read(self, partition: int, position: int) -> bytes | None:
        message = await self._jetstream.get(self._name(partition), {"seq": position})
        return None if message is None else message.data

    async def dead_letter(self, partition: int, position: int, reason: str, data: bytes) -> None:
        headers = {POSITION: str(position), REASON: reason[:_REASON_CHARACTERS_MAX]}
        await self._append(f"{dead_subject(self._namespace)}.{partition}", data, headers)

    async def _append(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> int:
        if self._gate is not None:
            await self._gate()
        return await self._jetstream.append(subject, data, self._publish_timeout_s, headers)

    async def _delete(self, partition: int, position: int) -> None:
        await self._jetstream.delete(self._name(partition), position)

    async def _consumer(self, partition: int) -> PullConsumer:
        consumer = self._consumers.get(partition)
        if consumer is None:
            consumer = PullConsumer(
                self._client,
                self._name(partition),
                _CONSUMER,
                bytes_max=self._fetch_bytes,
                ack_pending_max=2 * self._ack_pending_max,
                timeout_s=self._timeout_s,
            )
            await consumer.open()
            consumer = self._consumers.setdefault(partition, consumer)
        return consumer

    # ---------------------------------------------------------------- setting up

    async def ensure(self, partition: int, first: int) -> None:
        """Create also the consumer and the dead-letter stream.  Several processes may call this at once, and again.

        Raises `UsageError` when a stream of that name is another mesh's, has other settings or cannot be made, or when
        the stream was replaced by an older copy, which would give out positions that are committed already.
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
        """Create the stream, or check that the existing one has the same settings."""
        config |= {
            "storage": "file",
            "num_replicas": 1,
            "allow_direct": True,
            "discard": "new",  # "old", the default, would lose messages that senders were told are `sent`
            "duplicate_window": _DUPLICATE_WINDOW_NS,
            "metadata": self._metadata,
        }
        name = config["name"]
        stream = await self._jetstream.call(f"STREAM.CREATE.{name}", config, _stream)
        if stream.error is not None and stream.error.err_code == _STREAM_NAME_IN_USE:
            stream = await self._jetstream.call(f"STREAM.INFO.{name}", {}, _stream)
            if stream.error is None:
                await self._adopt(config, stream.config)
        if stream.error is not None:
            raise refused(f"the stream {name}", stream.error)
        return stream

    async def _adopt(self, wanted: dict[str, object], config: _Config) -> None:
        """Refuse a stream of another mesh, or whose settings would lose messages; update its size limit and mesh."""
        name = wanted["name"]
        metadata = config.metadata | self._metadata
        if config.metadata.get(_MESH, metadata.get(_MESH)) != metadata.get(_MESH):
            raise UsageError(
                f"The NATS stream {name} belongs to a mesh with another database: choose another namespace in the "
                "topology, or, if that mesh is gone, delete the stream - at `$.namespace`."
            )
        for setting in ("subjects", "retention", "discard", "storage"):
            found = getattr(config, setting)
            if found != wanted[setting]:
                raise UsageError(
                    f"The NATS stream {name} has {setting} {found} instead of {wanted[setting]}: "
                    f"delete it if nobody needs it, or choose another namespace in the topology."
                )
        if (config.max_bytes, config.metadata) != (wanted["max_bytes"], metadata):
            update = {**wanted, "metadata": metadata, "first_seq": 0}
            updated = await self._jetstream.call(f"STREAM.UPDATE.{name}", update, _answer)
            if updated.error is not None:
                raise refused(f"the new settings of the stream {name}", updated.error)

    async def _skip_to(self, name: str, first: int, state: _State) -> None:
        """Make an empty stream that is older than the database continue at the position of the database."""
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
            "max_ack_pending": self._ack_pending_max,
        }
        request = {"stream_name": stream, "config": config}
        answer = await self._jetstream.call(f"CONSUMER.CREATE.{stream}.{_CONSUMER}", request, _answer)
        if answer.error is not None:
            raise refused(f"the consumer of the stream {stream}", answer.error)

    def _name(self, partition: int) -> str:
        return partition_stream(self._namespace, partition)


def partition_stream(namespace: str, partition: int) -> str:
    """Return the name of the stream of a partition."""
    return f"{namespace}-offline-{partition}"


def dead_stream(namespace: str) -> str:
    """Return the name of the dead-letter stream."""
    return f"{namespace}-dead"


def dead_subject(namespace: str) -> str:
    """Return the subject of dead letters, to which `.{partition}` is appended."""
    return f"{namespace}.dead"
