"""The client library: one device of one user, for applications and bots.

::

    async with Client("http://127.0.0.1:8100", "ann", password, device="bot", state="ann.db") as ann:
        outgoing = await ann.send("ben", "hello")
        await outgoing.wait_delivered()
        async for message in ann.messages():
            print(message.sender, message.text)
            await message.mark_read()

The state file is the device: it holds the login, the outbox and the inbox.  Keep it, and let one process at a time use
it.  This file is what an application sees: `ClientCore` decides, and `Shell` performs.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from meshim.client import events as e
from meshim.client.application.event_stream import Subscription
from meshim.client.application.message import Message, Outgoing
from meshim.client.application.public_events import Presence
from meshim.client.connection import Transport
from meshim.client.core import ClientCore
from meshim.client.friends.relations import Friend
from meshim.client.options import DEFAULTS, ClientOptions
from meshim.client.recovery import reading, recover
from meshim.client.rest import Api
from meshim.client.session import Credentials, Session, opened
from meshim.client.shell import Shell
from meshim.client.state import StateFile
from meshim.client.statistics import Statistics
from meshim.client.wall_clock import wall_ms
from meshim.errors import UsageError, as_sentence
from meshim.wire.envelope import Destination, DestinationType


class Client:
    """One device of one user.

    ::

        async with Client("http://127.0.0.1:8100", "ann", password, device="bot", state="ann.db") as ann:
            await (await ann.send("ben", "hello")).wait_sent()

    Use it in `async with`, and call its methods from any task of that event loop.  An error that ends the client (the
    device was taken over, its state file cannot be written, `async with` was left) is raised by every method that
    waits, now and later: it is a MeshimError, as Refused, UsageError or ClientClosed.

    The methods for friends that ask the REST service raise ApiError when the service refuses (`code` says why, as
    docs/rest.md lists them), BackendUnavailable when it does not answer, or the error that ended the client.
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
        self._entered = False

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
            state = await opened(self._path)
            try:
                await self._start(state)
            except BaseException:
                state.close()
                raise
        except BaseException:
            await self._api.close()
            raise
        return self

    async def _start(self, state: StateFile) -> None:
        session = Session(self._api, state, self._credentials)
        identity = await session.open()
        self.user_id, self.device_id = identity.user, identity.device
        snapshot, unsendable = await recover(session, state, identity)
        now = asyncio.get_running_loop().time()
        with reading(state):
            core = ClientCore(identity, self._options, snapshot, lambda: secrets.token_bytes(16), wall_ms, now)
            self._shell = Shell(core, session, state, self._options, self._transport, insecure=self._insecure)
        self._shell.start()
        if unsendable.messages:
            self._shell.driver.receive(unsendable)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client.  Unsettled messages stay in the state file; the next client with it submits them."""
        await asyncio.shield(asyncio.ensure_future(self._close()))  # closing goes on when this task is cancelled

    async def _close(self) -> None:
        try:
            await self._shell.close()
        finally:
            await self._api.close()

    def _running(self) -> Shell:
        """The shell.  Raises the error that ended the client."""
        self._shell.check()
        return self._shell

    # ---------------------------------------------------------------- connection

    async def online(self) -> None:
        """Wait until a connector has welcomed this client.  Raises the error that ended it."""
        await self._shell.wait_for(self._shell.connection.online)

    async def offline(self) -> None:
        """Wait until there is no connection.  The client reconnects by itself.  Raises the error that ended it."""
        await self._shell.wait_for(self._shell.connection.offline)

    @property
    def connector(self) -> str | None:
        """The endpoint of the connector that has welcomed this client; None while there is no connection."""
        return self._shell.connection.endpoint

    @property
    def last_failure(self) -> str | None:
        """Why the latest attempt to connect failed, as a sentence; None once a connector has welcomed this client.

        Attempts that fail are no events, because the client goes on by itself: show this where `online` takes long.
        """
        return self._shell.connection.failure

    @property
    def stored_delayed(self) -> bool:
        """True while stored messages for this device are delayed because the mesh's database is away."""
        return self._shell.stored_delayed

    @property
    def statistics(self) -> Statistics:
        """The counters of this client; read them with `msgspec.structs.asdict`."""
        return self._shell.core.statistics

    # ---------------------------------------------------------------- messages

    async def send(self, recipient: str, text: str) -> Outgoing:
        """Send a text to a friend; returns once it is in the state file, where it survives kill -9 and a power loss.

        Waits while 256 messages to this friend, from the lowest unsettled one on, are under way.  The encoded text is
        65,508 bytes at most, unless the connectors' topology sets another `body_bytes`.

        Raises Refused when the user is not a friend or the text too large, UsageError when it is not Unicode,
        BackendUnavailable when the friend's key must be fetched and the REST service is unavailable, or the error that
        ended the client.
        """
        return await self._shell.sender.send(recipient, text)

    async def settled(self) -> None:
        """Wait until every message is settled (`sent` or `rejected`), read receipts included.  It has no timeout.

        Raises the error that ended the client.
        """
        await self._shell.sender.settled()

    async def messages(self) -> AsyncIterator[Message]:
        """Yield received messages in order, each once, and wait for more.

        A message counts as handled when the loop asks for the next one, or after its `done` or `mark_read`; until then
        it is given again after a restart.

        Raises UsageError when a later call of this method has begun to read, or the error that ended the client.
        """
        async for message in self._shell.reader.messages():
            yield message

    def state_of(self, message: Message) -> str:
        """Return `sent`, `delivered` or `read`, as far as receipts have told this device.

        An own message (`own`) is `delivered` when it is on any device of the recipient, and `read` when the recipient
        has read it.  A message of another user is `read` when this user has read it, on any device, and `delivered`
        until then.
        """
        receipts = self._shell.core.receipts
        return receipts.state(message.stream, message.seq) or ("sent" if message.own else "delivered")

    def delayed(self, outgoing: Outgoing) -> str:
        """Return why the mesh does not take a message now; empty when it does, or has it.

        The message is kept, and goes out by itself when there is room.  `MessagesDelayed` is the event.
        """
        sentence = self._shell.core.outbox.delayed(outgoing.stream.to) if outgoing.state == "pending" else ""
        return sentence and as_sentence(sentence)

    # ---------------------------------------------------------------- events

    def events(self) -> Subscription:
        """Return the events from now on, to be read with `async for`; `meshim.client.Event` names them all.

        What happens while the loop handles an event waits for it, coalesced: a slow loop ends with the state that
        holds, and may miss states that have passed.  At most 1,024 events wait (`ClientOptions.events_max`); then
        EventsLost says how many found no room.  Events are for showing, and are not kept in the state file: what was
        before is asked for, after this call, with `friends`, `presence`, `state_of` and `connector`.  Each call is a
        reader of its own, until its `close`, or until nothing refers to it.

        The loop raises the error that ended the client, after the last event.
        """
        return self._shell.subscribe()

    # ---------------------------------------------------------------- friends

    async def friends(self) -> list[Friend]:
        """Ask the REST service for all relations, and return those that have not ended, sorted by name.

        `state` is `friends`; `asked` by the other user, which `accept` or `refuse` answers; `requested` by this user;
        or `blocked` by this user.  Raises as `Client` says.
        """
        return await self._running().relations.friends()

    async def add(self, name: str) -> Friend:
        """Ask a user for friendship, or accept that user's request if there is one.  Raises as `Client` says."""
        return await self._running().relations.change(lambda api: api.request(name))

    async def accept(self, name: str) -> Friend:
        """Accept a request for friendship; ApiError `not_asked` where there is none.  Raises as `Client` says."""
        return await self._running().relations.change(lambda api: api.accept(name))

    async def refuse(self, name: str) -> None:
        """Refuse a request for friendship; the user may ask again.  Raises as `Client` says."""
        await self._running().relations.end(name, lambda api: api.refuse(name))

    async def remove(self, name: str) -> None:
        """End a friendship, or withdraw a request.  Raises as `Client` says."""
        await self._running().relations.end(name, lambda api: api.remove(name))

    async def block(self, name: str) -> Friend:
        """End any relation to this user, who cannot ask again until `unblock`.  Raises as `Client` says."""
        return await self._running().relations.change(lambda api: api.block(name))

    async def unblock(self, name: str) -> Friend:
        """Let this user ask for friendship again; the two are not friends then.  Raises as `Client` says."""
        return await self._running().relations.change(lambda api: api.unblock(name))

    async def check_friend(self, name: str) -> None:
        """Return if this user is a friend, to whom messages can be sent.

        Raises Refused when the user is no friend, is oneself or does not exist, BackendUnavailable when that must be
        fetched and the REST service is unavailable, or the error that ended the client.
        """
        await self._running().contacts.key_for(name)

    # ---------------------------------------------------------------- presence and typing

    def watch(self, *names: str) -> None:
        """Have PresenceChanged come for these friends while there is a reader of `events` and a connection.

        Watch those whom the user looks at, not all: the REST service is asked for them every 10 s
        (`ClientOptions.presence_poll_s`).  Raises UsageError for what cannot be a name, and beyond 500 friends.
        """
        self._running().presence.watch(names)

    def unwatch(self, *names: str) -> None:
        """Ask for these friends no more; `presence` of them is `unknown` from now on.

        Raises UsageError for what cannot be a name.
        """
        self._running().presence.unwatch(names)

    def presence(self, name: str) -> Presence:
        """Return what the latest PresenceChanged of this friend said: `online`, `offline`, or `unknown`.

        Raises UsageError for what cannot be a name.
        """
        return self._shell.presence.presence(name)

    async def typing(self, name: str) -> None:
        """Tell the devices of a friend that this user types a message now; call it with each keystroke.

        It is sent at most once in 3 s (`ClientOptions.typing_every_s`), and dropped without a connection: typing is
        not kept or sent again, and none is received by friends who are away.  Raises as `check_friend`.
        """
        shell = self._running()
        user, _, _ = await shell.contacts.key_for(name)
        shell.driver.receive(e.UserTyped(Destination(DestinationType.USER, user)))
