"""Whatever a connector, REST or a friend answers: the client ends the link, or says what is wrong, in a sentence."""

import asyncio
from contextlib import suppress

import httpx
import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from meshim.client import events as e
from meshim.client.rest import Api
from meshim.errors import ApiError, BackendUnavailable
from meshim.wire.client import Delivery
from meshim.wire.envelope import Kind, encode_envelope
from tests.unit.any_msgpack import DEEP, any_bytes, frames
from tests.unit.client.test_core import TO_ME, Connector, from_bob
from tests.wire_samples import ENVELOPE, PINNED, TO_CLIENT

from_connectors = frames([TO_CLIENT.encode(value) for coding, value, _ in PINNED if coding == "connector to client"])
TO_THIS = msgspec.structs.replace(ENVELOPE, to=TO_ME)
JSON_DEEP = b'{"user_id":1,"name":"a","new":' + b"[" * 12_000
NOT_UTF_8 = b'{"user_id":1,"name":"\xff"}'


@given(st.lists(from_connectors, max_size=8), st.booleans())
def test_of_a_connector(batch: list[bytes], welcomed: bool) -> None:
    connector = Connector()
    if welcomed:
        connector.go_online()
    else:
        connector.connect()
    actions = connector.step(e.FramesReceived(batch))
    assert all(action.sentence for action in actions if isinstance(action, e.Disconnect))
    connector.go_online()
    assert connector.deliver(from_bob(1))


envelopes = frames(
    [
        encode_envelope(msgspec.structs.replace(TO_THIS, kind=kind))
        for kind in (Kind.TEXT, Kind.RECEIPT, Kind.BASE, Kind.TYPING)
    ]
)
receipts = any_bytes.map(lambda body: encode_envelope(msgspec.structs.replace(TO_THIS, kind=Kind.RECEIPT, body=body)))


@given(st.lists(envelopes | receipts, max_size=8))
def test_of_a_friend(made: list[bytes]) -> None:
    """Each frame is acknowledged once the state file has what it brought: nothing waits behind it."""
    connector = Connector().go_online()
    for number, each in enumerate(made, start=1):
        connector.deliver(Delivery(each))
        assert not connector.actions_of(e.Disconnect)
        acked = connector.acked()
        connector.persist()
        assert number in (acked, connector.acked())


@given(st.binary(max_size=80), st.sampled_from([200, 201, 400, 404, 500]), st.booleans())
@example(NOT_UTF_8, 200, False)
@example(JSON_DEEP, 200, False)
@example(b'{"type":"\xff"}', 400, True)
@example(b'{"new":' + b"[" * 12_000, 400, True)
@example(DEEP, 200, False)
def test_of_rest(content: bytes, status: int, problem: bool) -> None:
    headers = {"content-type": "application/problem+json" if problem else "application/json"}
    answer = httpx.Response(status, headers=headers, content=content)

    async def ask() -> None:
        async with Api("http://localhost", transport=httpx.MockTransport(lambda _: answer)) as api:
            with suppress(ApiError, BackendUnavailable):
                await api.user("bob")

    asyncio.run(ask())
