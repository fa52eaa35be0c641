"""Dead letters in the dead-letter stream that `offline_log.py` writes, and how one is retried."""

from datetime import datetime

import msgspec
from nats.aio.msg import Msg

from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.jetstream import NO_SUCH_STREAM, Answer, JetStream, refused
from meshim.stores.nats.offline_log import POSITION, REASON, dead_stream, dead_subject
from meshim.stores.ports import DeadLetter, DeadLetters, OfflineLog

UNKNOWN_PARTITION = -1
"""Of a letter whose subject names none: a foreign publisher wrote it.  `drop` removes it."""
_TIMEOUT_S = 2.0
_DIGITS_MAX = 19
"""Of a number of 63 bits."""


async def retry(letter: DeadLetter, letters: DeadLetters, log: OfflineLog) -> int:
    """Publish a letter to its partition again, then remove it; return its position in the partition.

    The letter is removed only after the log has stored the record, so a crash in between loses nothing.  The next
    retry then publishes the record a second time, which changes nothing: an existing row stays as it is
    (`Partitions.write`), and a device shows each message once.  A record that still cannot be written becomes a new
    letter.

    Raises `BackendUnavailable`: then the record may be published, and the letter may still exist.
    """
    position = await log.publish(letter.partition, letter.data)
    await letters.remove(letter.number)
    return position


class _State(msgspec.Struct):
    last_seq: int = 0


class _Information(Answer):
    state: _State = msgspec.field(default_factory=_State)


_information = msgspec.json.Decoder(_Information)


class JetStreamDeadLetters:
    """The port `DeadLetters` on JetStream.  The stream does not exist before a writer has made it."""

    def __init__(self, client: NatsClient, namespace: str, timeout_s: float = _TIMEOUT_S) -> None:
        self._jetstream = JetStream(client, timeout_s)
        self._stream = dead_stream(namespace)
        self._subjects = f"{dead_subject(namespace)}.*"
        self._exists = False

    async def last(self) -> int:
        answer = await self._jetstream.call(f"STREAM.INFO.{self._stream}", {}, _information)
        if answer.error is not None:
            if answer.error.err_code == NO_SUCH_STREAM:
                return 0
            raise refused(f"a look at the stream {self._stream}", answer.error)
        return answer.state.last_seq

    async def get(self, number: int) -> DeadLetter | None:
        return await self._read({"seq": number})

    async def following(self, number: int) -> DeadLetter | None:
        return await self._read({"seq": number + 1, "next_by_subj": self._subjects})

    async def remove(self, number: int) -> bool:
        return await self._jetstream.delete(self._stream, number)

    async def _read(self, request: dict[str, object]) -> DeadLetter | None:
        self._exists = self._exists or await self.last() > 0
        if not self._exists:  # DIRECT.GET of a missing stream has no responder
            return None
        message = await self._jetstream.get(self._stream, request)
        return None if message is None else letter_of(message)


def letter_of(message: Msg) -> DeadLetter:
    """Return a message of the stream as a letter, also one that no writer of meshim has published."""
    headers = message.headers or {}
    return DeadLetter(
        number=int(headers["Nats-Sequence"]),
        partition=_number(headers["Nats-Subject"].rpartition(".")[2], UNKNOWN_PARTITION),
        position=_number(headers.get(POSITION, ""), 0),
        dead_lettered_at=datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp(),
        reason=headers.get(REASON, "The writer gave no reason."),
        data=message.data,
    )


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else otherwise
