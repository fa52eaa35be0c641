"""Calls to JetStream that several ports need: append, read by position, delete, and the rest of its API by name."""

import errno
import json
import os
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg

from meshim.errors import BackendUnavailable, StorageFailed, UsageError
from meshim.stores.nats.client import NatsClient

# Error codes of the server: server/errors.json in its repository.
_NO_SUCH_MESSAGE = (10037, 10043, 10057)
NO_SUCH_STREAM = 10059

# Why the system refuses a write, in the words of Go, which are those of C in lower case.  nats-server (2.14 and later)
# gives a stream up at the first such error: it answers every later change of the stream with it, also when the cause is
# gone, until it is started again.
_WRITE_ERRORS = tuple(
    os.strerror(number).lower()
    for number in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EFBIG,
        errno.EACCES,
        errno.EPERM,
    )
)
_NO_POSITION = 1 << 62
"""A position that no message ever has."""


class Error(msgspec.Struct):
    """An error of the JetStream API; `code` is like an HTTP status, `err_code` names the error."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(msgspec.Struct):
    """Any answer of the JetStream API."""

    error: Error | None = None


class _Stored(Answer):
    seq: int = 0


AnswerType = TypeVar("AnswerType", bound=Answer)

_answer = msgspec.json.Decoder(Answer)
_stored = msgspec.json.Decoder(_Stored)


def refused(what: str, error: Error) -> UsageError:
    """Return the error for a refusal that lasts until the operator changes something."""
    return UsageError(f"NATS refused {what}: {error.description} (JetStream error {error.err_code}).")


class JetStream:
    """Calls over a shared connection.  Every method raises `BackendUnavailable` when NATS does not answer in time."""

    def __init__(self, client: NatsClient, timeout_s: float) -> None:
        """`timeout_s` limits each call."""
        self._client = client
        self._timeout_s = timeout_s

    async def call(
        self, method: str, request: Mapping[str, object], decoder: "msgspec.json.Decoder[AnswerType]"
    ) -> AnswerType:
        """Call the API and return the answer, whose `error` the caller must check.

        Raises `BackendUnavailable` when the error is temporary (code 503).
        """
        message = await self._client.request(f"$JS.API.{method}", json.dumps(request).encode(), self._timeout_s)
        answer = decoder.decode(message.data)
        if answer.error is not None and answer.error.code == 503:
            raise BackendUnavailable(f"JetStream is not available: {answer.error.description}.")
        return answer

    async def append(self, subject: str, data: bytes, timeout_s: float, headers: dict[str, str] | None = None) -> int:
        """Publish to the stream of that subject; return the position once the server has stored the message."""
        answer = await self._client.request(subject, data, timeout_s, headers=headers)
        stored = _stored.decode(answer.data)
        if stored.error is not None:
            raise BackendUnavailable(f"The log does not take {subject}: {stored.error.description}.")
        return stored.seq

    async def get(self, stream: str, request: Mapping[str, object]) -> Msg | None:
        """Return the message that a DIRECT.GET request names; None when it does not exist."""
        subject = f"$JS.API.DIRECT.GET.{stream}"
        message = await self._client.request(subject, json.dumps(request).encode(), self._timeout_s)
        status = message.headers.get("Status") if message.headers else None
        if status is None:
            return message
        if status == "404":
            return None
        raise BackendUnavailable(f"The stream {stream} cannot be read now: status {status}.")

    async def check(self, stream: str) -> None:
        """Return when the stream takes messages; writes nothing.  Raises `StorageFailed` as `delete`."""
        await self.delete(stream, _NO_POSITION)

    async def delete(self, stream: str, position: int) -> bool:
        """Delete one message; return False when it does not exist.

        Raises `StorageFailed` when a write to the stream has failed since nats-server was started.
        """
        request = {"seq": position, "no_erase": True}
        answer = await self.call(f"STREAM.MSG.DELETE.{stream}", request, _answer)
        if answer.error is None:
            return True
        if (failed := _write_error(answer.error)) is not None:
            raise StorageFailed(
                f"NATS refuses to store in the stream {stream} ({failed}): make room on its disk, and restart "
                "nats-server unless `meshim up` runs it."
            )
        if answer.error.err_code in _NO_SUCH_MESSAGE:
            return False
        if answer.error.err_code == NO_SUCH_STREAM:
            raise BackendUnavailable(f"NATS has no stream {stream}: start a writer, which makes it.")
        raise BackendUnavailable(f"Position {position} of {stream} is not deleted: {answer.error.description}.")


def _write_error(error: Error) -> str | None:
    """Return what the system said when nats-server wrote; None when the error is another one."""
    return next((text for text in _WRITE_ERRORS if error.description.endswith(text)), None)
