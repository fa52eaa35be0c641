"""The client library: one device of one user, for applications and bots.

::

    async with Client("http://127.0.0.1:8100", "ann", password, device="bot", state="ann.db") as ann:
        outgoing = await ann.send("ben", "hello")
        await outgoing.wait_delivered()
        async for message in ann.messages():
            print(message.sender, message.text)
            await message.mark_read()

The state file is the device: it holds the login, the outbox and the inbox.  Keep it, and let one process at a time use
it.  `ClientCore` decides, and this file performs its actions.  SQLite runs in threads, beside the event loop.
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
from meshim.client.connection import Connection, Transport
from meshim.client.core import ClientCore
from meshim.client.event_stream import Publisher, Subscription
from meshim.client.event_translator import EventTranslator
from meshim.client.friends.contacts import Contacts
from meshim.client.friends.interface import FriendsInterface
from meshim.client.friends.presence import PresencePoller
from meshim.client.friends.relations import Relations
from meshim.client.identity import Identity
from meshim.client.inbox_reader import InboxReader
from meshim.client.message import Message, Outgoing
from meshim.client.options import DEFAULTS, ClientOptions
from meshim.client.persister import Persister
from meshim.client.rest import Api
from meshim.client.session import Credentials, Session, opened, reassign_outbox
from meshim.client.statistics import Statistics
from meshim.errors import ClientClosed, Code, MeshimError, Refused, UsageError
from meshim.runtime.crypto import seal
from meshim.runtime.driver import Driver
from meshim.wire.envelope import (
    Destination,
    DestinationType,
    Kind,
    Stream,
    Text,
    associated_data,
    encode_content,
)

BODY_BYTES = 65_536
"""The default limit of connectors, used before the first welcome; each welcome brings the limit of its connector."""
_SEAL_BYTES = 28
"""Nonce and tag: what sealing adds to a body."""


class Client(FriendsInterface):
    """One device of one user.

    ::

        async with Client("http://127.0.0.1:8100", "ann", password, device="bot", state="ann.db") as ann:
            await (await ann.send("ben", "hello")).wait_sent()

    Use it in `async with`, and call its methods from any task of that event loop.  An error that ends the client (the
    device was taken over, its state file cannot be written, `async with` was left) is raised by every method that
    waits, now and later: it is a MeshimError, as Refused, UsageError or ClientClosed.
    """

    def __init__(
        self,
        api: str,
        name: str,
        password: str | Callable[[], str],
        *,
        device: str = "default",
        state: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        transport: Transport = "auto",
        options: ClientOptions = DEFAULTS,
    ) -> None:
        """`api` is the URL of the REST service, `name` the user's name.

        `password` may be a function that returns it; it is called, in a thread, only when a login is needed.
        `device` names the device among those of the user.  `state` is its file, `NAME-DEVICE.db` in the working
        directory by default.  `insecure` allows plain HTTP and ws:// to another host.  `transport` is how to reach a
        connector: `zeromq`, `websocket`, or `auto`, which is ZeroMQ where the connector has it.

        Raises UsageError when `api` is no http(s) URL, or is one of plain HTTP to another host without `insecure`.
        """
        self._credentials = Credentials(name, password, device)
        self._path = Path(state if state is not None else f"{quote(name.lower(), safe='')}-{quote(device, safe='')}.db")
        self._api = Api(api, insecure=insecure)
        self._options = options
        self._transport: Transport = transport
        self._insecure = insecure
        self._failure: MeshimError | None = None
        # Weak: a message whose `Outgoing` the application has dropped needs no updates.
        self._outgoing: WeakValueDictionary[tuple[Destination, int], Outgoing] = WeakValueDictionary()
        self._status_change = asyncio.Event()
        self._ended = asyncio.Event()
        self._body_bytes = BODY_BYTES
        self._entered = False
        self.stored_delayed = False
        """True while stored messages for this device are delayed because the mesh's database is away."""

    # ---------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        """Open the state file, log in if it holds no valid token, and connect in the background.

        Raises UsageError when the file is in use, has no folder, or is of another user or device; Refused when another
        state file took the device over; ApiError when the service refuses the login; BackendUnavailable when the file
        holds no login and the service is unavailable.
        """
        if self._entered:
            raise UsageError("A client is for one `async with`: make another one.")
        self._entered = True
        try:
            self._state = await opened(self._path)
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
        await asyncio.to_thread(reassign_outbox, self._state, identity)
        snapshot = await asyncio.to_thread(self._state.load)
        self._core = ClientCore(
            identity, self._options, snapshot, lambda: secrets.token_bytes(16), _wall_ms,
            asyncio.get_running_loop().time(),
        )  # fmt: skip
        self._driver: Driver[e.Event, e.Action] = Driver(self._core, self._perform)
        self._persister = Persister(
            self._state, self._session.lock, lambda serial: self._driver.receive(e.Persisted(serial))
        )
        self._events = Publisher(self._options.events_max, self._core.statistics)
        self._contacts = Contacts(self._session, self._state, self._events.publish)
        self._reader = InboxReader(
            self._state, self._session.lock, self._contacts, self._core.receipts, self._mark_read, self._core.statistics
        )
        self._connection = Connection(
            self._driver, self._session.connectors, self._session.token, self._transport, insecure=self._insecure
        )
        self._relations = Relations(self._session, self._contacts, self._events, self._core.statistics)
        self._presence = PresencePoller(
            self._session, self._contacts, self._events, self._connection.online, self._options, self._core.statistics
        )
        translate = self._translator = EventTranslator(
            identity, self._contacts, self._relations, self._presence, self._events
        )
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            e.SendFrame: self._send_frame,
            e.Persist: self._persister.add,
            e.Disconnect: self._disconnect,
            e.Online: self._welcomed,
            e.StoredDelayed: self._set_delayed,
            e.StatusChanged: self._status_changed,
            e.StreamProgressed: translate.stream_progressed,
            e.TypingChanged: translate.typing_changed,
            e.AccountChanged: translate.account_changed,
            e.MessagesAvailable: self._messages_available,
        }
        self._driver.failed.add_done_callback(self._task_done)
        running = (each.run() for each in (self._persister, self._connection, self._relations, self._presence))
        self._persisting, *self._tasks = map(asyncio.create_task, running)
        for task in (self._persisting, *self._tasks):
            task.add_done_callback(self._task_done)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client.  Unsettled messages stay in the state file; the next client with it submits them."""
        await asyncio.shield(asyncio.ensure_future(self._close()))  # closing goes on when this task is cancelled

    async def _close(self) -> None:
        if self._failure is None:
            for action in self._core.farewell():
                self._perform(action)
        self._fail(ClientClosed("The client was closed."))
        await asyncio.wait((self._persisting, *self._tasks))
        try:
            async with self._session.lock:
                await asyncio.to_thread(self._state.close)  # a thread: SQLite syncs the file once more
        finally:
            self._connection.close()
            await self._api.close()

    def _task_done(self, task: asyncio.Future[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, MeshimError):
            asyncio.get_running_loop().call_exception_handler({"message": "meshim client failed", "exception": error})
            error = ClientClosed(f"The client failed: {error!r}")
        self._fail(error)

    def _fail(self, error: MeshimError) -> None:
        """End the client: every task that waits gets this error."""
        if self._failure is not None:
            return
        self._failure = error
        self._driver.stop()
        for task in self._tasks:
            task.cancel()
        self._persister.stop()
        for outgoing in list(self._outgoing.values()):
            outgoing.fail(error)
        self._reader.fail(error)
        self._translator.failed(error)
        self._status_change.set()
        self._ended.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def online(self) -> None:
        """Wait until a connector has welcomed this client.  Raises the error that ended it."""
        await self._either(self._connection.online)

    async def offline(self) -> None:
        """Wait until there is no connection.  The client reconnects by itself.  Raises the error that ended it."""
        await self._either(self._connection.offline)

    @property
    def connector(self) -> str | None:
        """The endpoint of the connector that has welcomed this client; None while there is no connection."""
        return self._connection.endpoint

    @property
    def statistics(self) -> Statistics:
        """The counters of this client; read them with `msgspec.structs.asdict`."""
        return self._core.statistics

    async def _either(self, event: asyncio.Event) -> None:
        """Wait for this event or the end of the client."""
        tasks = [asyncio.ensure_future(each.wait()) for each in (event, self._ended)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        self._check()

    # ---------------------------------------------------------------- actions of the core

    def _perform(self, action: e.Action) -> None:
        self._performers[type(action)](action)

    def _send_frame(self, action: e.SendFrame) -> None:
        self._connection.send(action.frame)

    def _disconnect(self, action: e.Disconnect) -> None:
        self._translator.disconnected(action)
        self._connection.ended(action)

    def _welcomed(self, action: e.Online) -> None:
        self._body_bytes = action.body_bytes
        self._connection.welcomed()
        self._translator.welcomed(self._connection.endpoint or "")

    def _set_delayed(self, action: e.StoredDelayed) -> None:
        self.stored_delayed = action.delayed

    def _status_changed(self, action: e.StatusChanged) -> None:
        self._status_change.set()
        if action.code == Code.NOT_FRIENDS:
            self._contacts.invalidate(action.to.id)
        self._translator.status_changed(action)
        if (outgoing := self._outgoing.get((action.to, action.seq))) is not None:
            outgoing.advance(action.state, action.code, action.sentence)

    def _messages_available(self, action: e.MessagesAvailable) -> None:
        self._reader.notify()

    # ---------------------------------------------------------------- sending

    async def send(self, recipient: str, text: str) -> Outgoing:
        """Send a text to a friend; returns once it is in the state file, where it survives kill -9 and a power loss.

        Waits while 256 messages to this friend, from the lowest unsettled one on, are under way.  The encoded text is
        65,508 bytes at most, unless the connectors' topology sets another `body_bytes`.

        Raises Refused when the user is not a friend or the text too large, UsageError when it is not Unicode,
        BackendUnavailable when the friend's key must be fetched and the REST service is unavailable, or the error that
        ended the client.
        """
        self._check()
        peer, version, key = await self._contacts.key_for(recipient)
        to = Destination(DestinationType.USER, peer)
        plain = _encoded(text)
        if len(plain) + _SEAL_BYTES > self._body_bytes:
            bytes_max = self._body_bytes - _SEAL_BYTES
            raise Refused(Code.TOO_LARGE, f"The message has {len(plain):,} bytes, {bytes_max:,} are allowed.")
        while self._core.outbox.full(to):
            await self._wait_for_status_change()
        self._check()
        seq, base = self._core.reserve(to)
        draft = self._core.identity.envelope(
            to, seq, base, Kind.TEXT, id=secrets.token_bytes(16), sent_at=_wall_ms(), key=version
        )
        body = seal(key, plain, associated_data(draft))
        outgoing = self._outgoing[to, seq] = Outgoing(draft.id.hex(), recipient, draft.stream, seq)
        await self._receive_and_persist(e.Composed((msgspec.structs.replace(draft, body=body),)))
        return outgoing

    async def settled(self) -> None:
        """Wait until every message is settled (`sent` or `rejected`), read receipts included.  It has no timeout.

        Raises the error that ended the client.
        """
        self._check()
        while self._core.unsettled:
            await self._wait_for_status_change()

    async def _wait_for_status_change(self) -> None:
        self._status_change.clear()
        await self._status_change.wait()
        self._check()

    # ---------------------------------------------------------------- receiving

    async def messages(self) -> AsyncIterator[Message]:
        """Yield received messages in order, each once, and wait for more.

        A message counts as handled when the loop asks for the next one, or after its `done` or `mark_read`; until then
        it is given again after a restart.

        Raises UsageError when a later call of this method has begun to read, or the error that ended the client.
        """
        async for message in self._reader.messages():
            yield message

    def events(self) -> Subscription:
        """Return the events from now on, to be read with `async for`; `client.public_events` lists them.

        What happens while the loop handles an event waits for it, coalesced: a slow loop ends with the state that
        holds, and may miss states that have passed.  At most 1,024 events wait (`ClientOptions.events_max`); then
        EventsLost says how many found no room.  Events are for showing, and are not kept in the state file: what was
        before is asked for, after this call, with `friends`, `presence`, `state_of` and `connector`.  Each call is a
        reader of its own, until its `close`, or until nothing refers to it.

        The loop raises the error that ended the client, after the last event.
        """
        subscription = self._events.subscribe()
        self._translator.subscribed()
        return subscription

    def state_of(self, message: Message) -> str:
        """Return `sent`, `delivered` or `read`, as far as receipts have told this device.

        An own message (`own`) is `delivered` when it is on any device of the recipient, and `read` when the recipient
        has read it.  A message of another user is `read` when this user has read it, on any device, and `delivered`
        until then.
        """
        return self._core.receipts.state(message.stream, message.seq) or ("sent" if message.own else "delivered")

    async def _mark_read(self, stream: Stream, seq: int) -> None:
        self._check()
        await self._receive_and_persist(e.MessagesRead(((stream, seq),)))

    async def _receive_and_persist(self, event: e.Event) -> None:
        """Give an event to the core; return when the changes it led to are in the state file."""
        self._driver.receive(event)
        if self._driver.failed.done():
            await asyncio.sleep(0)  # let `_task_done` set the error that ended the client
            self._check()
        await self._persister.wait_persisted()


def _encoded(text: str) -> bytes:
    try:
        return encode_content(Text(text))
    except UnicodeEncodeError as error:
        raise UsageError(f"The text cannot be sent, it is not Unicode: {error.reason}.") from None


def _wall_ms() -> int:
    return int(time.time() * 1000)
