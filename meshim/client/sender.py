"""Sends the texts of an application: seals each, hands it to the core, and follows what becomes of it."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

import msgspec

from meshim.client import events as e
from meshim.client.application.message import Outgoing
from meshim.client.core import ClientCore
from meshim.client.friends.contacts import Contacts
from meshim.client.wall_clock import wall_ms
from meshim.errors import Code, MeshimError, Refused, UsageError
from meshim.runtime.crypto import seal
from meshim.wire.envelope import Destination, DestinationType, Kind, Text, associated_data, encode_content

BODY_BYTES = 65_536
"""The default limit of connectors, used before the first welcome; each welcome brings the limit of its connector."""
_SEAL_BYTES = 28
"""Nonce and tag: what sealing adds to a body."""


class Sender:
    """The messages that one device sends, and what the application waits for."""

    def __init__(self, core: ClientCore, contacts: Contacts, persist: Callable[[e.Event], Awaitable[None]]) -> None:
        """`persist` gives an event to the core, and returns when the state file has what follows from it."""
        self.body_bytes = BODY_BYTES
        """Of a sealed body, at most."""
        self._core = core
        self._contacts = contacts
        self._persist = persist
        # Weak: a message whose `Outgoing` the application has dropped needs no updates.
        self._outgoing: WeakValueDictionary[tuple[Destination, int], Outgoing] = WeakValueDictionary()
        self._status_change = asyncio.Event()
        self._failure: MeshimError | None = None

    async def send(self, recipient: str, text: str) -> Outgoing:
        """As `Client.send`."""
        self._check()
        peer, version, key = await self._contacts.key_for(recipient)
        to = Destination(DestinationType.USER, peer)
        plain = _encoded(text)
        if len(plain) + _SEAL_BYTES > self.body_bytes:
            bytes_max = self.body_bytes - _SEAL_BYTES
            raise Refused(Code.TOO_LARGE, f"The message has {len(plain):,} bytes, {bytes_max:,} are allowed.")
        while self._core.outbox.full(to):
            await self._wait_for_status_change()
        self._check()
        seq, base = self._core.reserve(to)
        draft = self._core.identity.envelope(
            to, seq, base, Kind.TEXT, id=secrets.token_bytes(16), sent_at=wall_ms(), key=version
        )
        body = seal(key, plain, associated_data(draft))
        outgoing = self._outgoing[to, seq] = Outgoing(draft.id.hex(), recipient, draft.stream, seq)
        await self._persist(e.Composed((msgspec.structs.replace(draft, body=body),)))
        return outgoing

    async def settled(self) -> None:
        """As `Client.settled`."""
        self._check()
        while self._core.unsettled:
            await self._wait_for_status_change()

    def status_changed(self, action: e.StatusChanged) -> None:
        """A message has reached a state."""
        self._status_change.set()
        if action.code == Code.NOT_FRIENDS:
            self._contacts.invalidate(action.to.id)
        if (outgoing := self._outgoing.get((action.to, action.seq))) is not None:
            outgoing.advance(action.state, action.code, action.sentence)

    def fail(self, error: MeshimError) -> None:
        """Raise this error wherever the application waits, now and later."""
        self._failure = error
        for outgoing in list(self._outgoing.values()):
            outgoing.fail(error)
        self._status_change.set()

    async def _wait_for_status_change(self) -> None:
        self._status_change.clear()
        await self._status_change.wait()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


def _encoded(text: str) -> bytes:
    try:
        return encode_content(Text(text))
    except UnicodeEncodeError as error:
        raise UsageError(f"The text cannot be sent, it is not Unicode: {error.reason}.") from None
