"""The calls to JetStream that several ports need: append, read by position, delete, and any other of its API."""

import json
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg

from meshim.errors import BackendUnavailable, UsageError
from meshim.stores.nats.client import NatsClient

# Error codes of the server: server/errors.json in its repository.
_NO_SUCH_MESSAGE = (10037, 10043, 10057)
NO_SUCH_STREAM = 10059


class Error(msgspec.Struct):
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
    """JetStream says no, and will until somebody changes something."""
    return UsageError(f"NATS refused {what}: {error.description} (JetStream error {error.err_code}).")


class JetStream:
    """Over a connection that others may use too.  Everything raises `BackendUnavailable` as well."""

    def __init__(self, client: NatsClient, timeout_s: float) -> None:
        """`timeout_s` limits each call."""
        self._client = client
        self._timeout_s = timeout_s

    async def call(
        self, method: str, request: Mapping[str, object], decoder: "msgspec.json.Decoder[AnswerType]"
    ) -> AnswerType:
        """Call the API; whoever calls looks at the error of the answer, unless it says "not now"."""
        message = await self._client.ask(f"$JS.API.{method}", json.dumps(request).encode(), self._timeout_s)
        answer = decoder.decode(message.data)
        if answer.error is not None and answer.error.code == 503:
            raise BackendUnavailable(f"JetStream is not available: {answer.error.description}.")
        return answer

    async def append(self, subject: str, data: bytes, timeout_s: float, headers: dict[str, str] | None = None) -> int:
        """Publish to the stream of that subject; returns the position once the server has it safe."""
        answer = await self._client.ask(subject, data, timeout_s, headers=headers)
        stored = _stored.decode(answer.data)
        if stored.error is not None:
            raise BackendUnavailable(f"The log does not take {subject}: {stored.error.description}.")
        return stored.seq

    async def get(self, stream: str, request: Mapping[str, object]) -> Msg | None:
        """The message that the request of DIRECT.GET names; None when there is none."""
        subject = f"$JS.API.DIRECT.GET.{stream}"
        message = await self._client.ask(subject, json.dumps(request).encode(), self._timeout_s)
        status = message.headers.get("Status") if message.headers else None
        if status is None:
            return message
        if status == "404":
            return None
        raise BackendUnavailable(f"The stream {stream} cannot be read now: status {status}.")

    async def delete(self, stream: str, position: int) -> bool:
        """Delete one message; False when there was none."""
        request = {"seq": position, "no_erase": True}
        answer = await self.call(f"STREAM.MSG.DELETE.{stream}", request, _answer)
        if answer.error is None:
            return True
        if answer.error.err_code in _NO_SUCH_MESSAGE:
            return False
        raise BackendUnavailable(f"Position {position} of {stream} is not deleted: {answer.error.description}.")
