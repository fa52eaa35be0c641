"""The client library: one device of one user, the way applications and bots use it.

::

    async with Client("http://127.0.0.1:8100", "alice", password, device="phone", state="alice.db") as alice:
        outgoing = await alice.send("bob", "hello")
        await outgoing.wait_delivered()
        async for message in alice.messages():
            print(message.sender, message.text)
            await message.mark_read()

The state file is the device: keep it, and one process at a time uses it.  `ClientCore` decides, this file
performs; SQLite and REST are called outside of the event loop's way.
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from weakref import WeakValueDictionary

import msgspec

from meshim.client import events as e
from meshim.client.connection import Connection
from meshim.client.core import ClientCore, ClientOptions, Identity
from meshim.client.message import Message, Outgoing
from meshim.client.outbox import OutboxOptions
from meshim.client.people import People
from meshim.client.reading import Reading
from meshim.client.rest import Api
from meshim.client.saver import Saver
from meshim.client.session import Credentials, Session, readdress
from meshim.client.state import StateFile
from meshim.errors import ClientClosed, Code, MeshimError, Refused, UsageError
from meshim.protocol.link import LinkOptions
from meshim.protocol.ordering import OrderingOptions
from meshim.protocol.timeouts import CLIENT_ACK_DELAY_S, CLIENT_GIVE_UP_S, GAP_RELEASE_S
from meshim.protocol.window import WindowOptions
from meshim.runtime.crypto import seal
from meshim.runtime.driver import Driver
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Stream,
    Text,
    associated_data,
    encode_content,
)

BODY_BYTES = 65_536
"""What connectors take at most unless their topology says otherwise; what the last one said counts."""
_SEAL_BYTES = 28
"""What sealing adds to a body."""

DEFAULTS = ClientOptions(
    link=LinkOptions(
        WindowOptions(
            credit=32, queue=1024, frame_items=64, frame_bytes=65_536, resend_s=1.0, give_up_s=CLIENT_GIVE_UP_S
        ),
        heartbeat_s=10.0,
        silence_s=25.0,
        ack_delay_s=CLIENT_ACK_DELAY_S,
    ),
    outbox=OutboxOptions(),
    ordering=OrderingOptions(gap_release_s=GAP_RELEASE_S),
)


class ClientStatistics(msgspec.Struct, frozen=True):
    """What a client has counted since it was opened."""

    resent: int
    """Messages submitted again, after a wait or in another connection."""
    deduplicated: int
    """Messages that came again and were not shown again."""
    gaps_released: int
    """Times that messages were shown although an earlier one had not come."""
    unreadable: int
    """Deliveries and receipts that did not decode."""
    skipped: int
    """Messages of kinds that this version does not know."""


class Client:
    """One device.  Use it in `async with`; every method may be called from any task of that loop."""

    def __init__(
        self,
        api: str,
        name: str,
        password: str | Callable[[], str],
        *,
        device: str = "default",
        state: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        options: ClientOptions = DEFAULTS,
    ) -> None:
        """`state` is the file of this device, `NAME-DEVICE.db` in the working directory by default.

        `password` may be a function that asks for it; it is called, in a thread, only when a login is needed.

        `insecure` allows plain HTTP to another host.
        """
        self._credentials = Credentials(name, password, device)
        self._path = Path(state if state is not None else f"{quote(name.lower(), safe='')}-{quote(device, safe='')}.db")
        self._api = Api(api, insecure=insecure)
        self._options = options
        self._failure: MeshimError | None = None
        # Only what the application still holds is worth telling.
        self._outgoing: WeakValueDictionary[tuple[Destination, int], Outgoing] = WeakValueDictionary()
        self._progressed = asyncio.Event()
        self._over = asyncio.Event()
        self._body_bytes = BODY_BYTES
        self._entered = False
        self.stored_delayed = False
        """Messages that were stored for us come later: the database is away."""

    # ---------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        """Open the state file and log in if it holds no token; then connect in the background.

        Raises UsageError (the file is in use or somebody else's), ApiError (wrong password, …), and
        BackendUnavailable when there never was a login and the REST service is away.
        """
        if self._entered:
            raise UsageError("a client is for one `async with`: make another one")
        self._entered = True
        try:
            self._state = await _opened(self._path)
            try:
                self._session = Session(self._api, self._state, self._credentials)
                await self._start(await self._session.open())
            except BaseException:
                self._state.close()
                raise
        except BaseException:
            await self._api.close()
            raise
        return self

    async def _start(self, identity: Identity) -> None:
        self.user_id, self.device_id = identity.user, identity.device
        await asyncio.to_thread(readdress, self._state, identity)
        snapshot = await asyncio.to_thread(self._state.load)
        self._core = ClientCore(
            identity, self._options, snapshot, lambda: secrets.token_bytes(16), _wall_ms,
            asyncio.get_running_loop().time(),
        )  # fmt: skip
        self._driver: Driver[e.Event, e.Action] = Driver(self._core, self._perform)
        self._saver = Saver(self._state, self._session.lock, lambda serial: self._driver.receive(e.Saved(serial)))
        self._people = People(self._session, self._state)
        self._reading = Reading(self._state, self._session.lock, self._people, self._mark_read)
        self._connection = Connection(self._driver, self._session.connectors, self._session.token)
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            e.SendFrame: lambda action: self._connection.send(action.frame),
            e.Save: self._saver.add,
            e.Disconnect: self._connection.ended,
            e.Online: self._welcomed,
            e.StoredDelayed: self._note_delayed,
            e.Progress: self._progress,
            e.InboxGrew: lambda action: self._reading.grew(),
        }
        self._driver.failed.add_done_callback(self._ended)
        self._connecting = asyncio.create_task(self._connection.run())
        self._saving = asyncio.create_task(self._saver.run())
        for task in (self._connecting, self._saving):
            task.add_done_callback(self._ended)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; what is not settled stays in the state file and goes on next time."""
        await asyncio.shield(asyncio.ensure_future(self._close()))  # also for who cannot wait for it

    async def _close(self) -> None:
        if self._failure is None:
            for action in self._core.farewell():
                self._perform(action)
        self._fail(ClientClosed("the client was closed"))
        await asyncio.wait((self._connecting, self._saving))
        try:
            async with self._session.lock:
                await asyncio.to_thread(self._state.close)  # SQLite syncs the file once more
        finally:
            self._connection.close()
            await self._api.close()

    def _perform(self, action: e.Action) -> None:
        self._performers[type(action)](action)

    def _ended(self, task: asyncio.Future[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, MeshimError):
            asyncio.get_running_loop().call_exception_handler({"message": "meshim client failed", "exception": error})
            error = ClientClosed(f"the client failed: {error!r}")
        self._fail(error)

    def _fail(self, error: MeshimError) -> None:
        """Nothing moves any more: everybody who waits is told."""
        if self._failure is not None:
            return
        self._failure = error
        self._driver.stop()
        self._connecting.cancel()
        self._saver.stop()
        for outgoing in list(self._outgoing.values()):
            outgoing.fail(error)
        self._reading.fail(error)
        self._progressed.set()
        self._over.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def online(self) -> None:
        """Wait until a connector has welcomed us.  Raises what ended the client."""
        await self._either(self._connection.online)

    async def offline(self) -> None:
        """Wait until there is no connection; a new one is under way by itself.  Raises what ended the client."""
        await self._either(self._connection.offline)

    @property
    def connector(self) -> str | None:
        """The endpoint of the connector that we are connected to; None while there is no connection."""
        return self._connection.endpoint

    def statistics(self) -> ClientStatistics:
        """What was counted so far."""
        core = self._core
        return ClientStatistics(
            core.outbox.resent, core.inbox.duplicates, core.inbox.gaps_released, core.unreadable, self._reading.skipped
        )

    async def _either(self, happened: asyncio.Event) -> None:
        either = [asyncio.ensure_future(event.wait()) for event in (happened, self._over)]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in either:
                each.cancel()
        self._check()

    def _welcomed(self, action: e.Online) -> None:
        self._body_bytes = action.body_bytes
        self._connection.welcomed()

    # ---------------------------------------------------------------- sending

    async def send(self, recipient: str, text: str) -> Outgoing:
        """Send a text to a friend; returns once it is in the durable outbox.

        Waits while too many messages to this friend are unsettled.  Raises Refused (not friends, too large),
        BackendUnavailable (a friend not known yet, and REST does not answer), or what ended the client.
        """
        self._check()
        peer, version, key = await self._people.key_for(recipient)
        to = Destination(DestinationType.USER, peer)
        plain = _encoded(text)
        if len(plain) + _SEAL_BYTES > self._body_bytes:
            most = self._body_bytes - _SEAL_BYTES
            raise Refused(Code.TOO_LARGE, f"the message has {len(plain):,} bytes, {most:,} are allowed")
        while self._core.outbox.full(to):
            await self._progress_made()
        self._check()
        seq, base = self._core.reserve(to)
        identity = self._core.identity
        draft = Envelope(
            WIRE_VERSION, secrets.token_bytes(16), identity.user, identity.device, identity.epoch, to, seq, base,
            Kind.TEXT, version, _wall_ms(), b"",
        )  # fmt: skip
        body = seal(key, plain, associated_data(draft))
        outgoing = self._outgoing[to, seq] = Outgoing(draft.id.hex(), recipient, seq)
        await self._hand(e.Composed((msgspec.structs.replace(draft, body=body),)))
        return outgoing

    async def check_friend(self, name: str) -> None:
        """Return if messages can be sent to this user.

        Raises Refused when they cannot (no friends, oneself, nobody), BackendUnavailable when nobody can tell now.
        """
        self._check()
        await self._people.key_for(name)

    async def settled(self) -> None:
        """Wait until all that was sent is safe in the mesh, the receipts of `mark_read` too.

        Raises what ended the client.
        """
        self._check()
        while self._core.outbox.unsettled:
            await self._progress_made()

    async def _progress_made(self) -> None:
        self._progressed.clear()
        await self._progressed.wait()
        self._check()

    def _progress(self, action: e.Progress) -> None:
        self._progressed.set()
        if action.code == Code.NOT_FRIENDS:
            self._people.invalidate(action.to.id)
        if (outgoing := self._outgoing.get((action.to, action.seq))) is not None:
            outgoing.advance(action.state, action.code, action.sentence)

    # ---------------------------------------------------------------- receiving

    async def messages(self) -> AsyncIterator[Message]:
        """Messages in order, each once; waits for more.  For one reader at a time.

        A message counts as handled when the next one is asked for, or when `done` or `mark_read` were called on
        it: until then it is given again after a restart.  Raises what ended the client.
        """
        async for message in self._reading.messages():
            yield message

    async def _mark_read(self, stream: Stream, seq: int) -> None:
        self._check()
        await self._hand(e.MessagesRead(((stream, seq),)))

    def _note_delayed(self, action: e.StoredDelayed) -> None:
        self.stored_delayed = action.delayed

    async def _hand(self, event: e.Event) -> None:
        """Hand something to the core; returns when what it made of it is in the state file."""
        self._driver.receive(event)
        if self._driver.failed.done():
            await asyncio.sleep(0)  # until `_ended` knows
            self._check()
        await self._saver.saved()


async def _opened(path: Path) -> StateFile:
    """Open the state file in a thread, which nobody can call off: who is cancelled meanwhile leaves it closed."""
    opening = asyncio.ensure_future(asyncio.to_thread(StateFile, path))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _close_unused(opening: asyncio.Future[StateFile]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _encoded(text: str) -> bytes:
    try:
        return encode_content(Text(text))
    except UnicodeEncodeError as error:
        raise UsageError(f"the text cannot be sent, it is not Unicode: {error.reason}") from None


def _wall_ms() -> int:
    return int(time.time() * 1000)
