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
from meshim.client.session import Credentials, Session
from meshim.client.state import StateFile
from meshim.errors import ClientClosed, Code, MeshimError, Refused
from meshim.protocol.link import LinkOptions
from meshim.protocol.ordering import OrderingOptions
from meshim.protocol.window import WindowOptions
from meshim.runtime.crank import Crank
from meshim.runtime.crypto import seal
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    Envelope,
    Kind,
    Stream,
    Text,
    To,
    associated_data,
    encode_content,
)

BODY_BYTES = 65_536
"""What connectors take at most unless their topology says otherwise; theirs counts."""

DEFAULTS = ClientOptions(
    link=LinkOptions(
        WindowOptions(credit=32, queue=1024, frame_items=64, frame_bytes=196_608, resend_s=1.0, give_up_s=4.0),
        heartbeat_s=10.0,
        silence_s=25.0,
    ),
    outbox=OutboxOptions(),
    ordering=OrderingOptions(gap_release_s=30.0),
)


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
        """`state` is the file of this device, `NAME-DEVICE.db` by default.

        `password` may be a function that asks for it; it is called, in a thread, only when a login is needed.

        `insecure` allows plain HTTP to another host.
        """
        self._credentials = Credentials(name, password, device)
        self._path = Path(state if state is not None else f"{name}-{device}.db")
        self._api = Api(api, insecure=insecure)
        self._options = options
        self._failure: MeshimError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        # Only what the application still holds is worth telling.
        self._outgoing: WeakValueDictionary[tuple[Destination, int], Outgoing] = WeakValueDictionary()
        self._saves: list[e.Save] = []
        self._save_due = asyncio.Event()
        self._saved_serial = 0
        self._save_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._progressed = asyncio.Event()
        self.stored_delayed = False
        """Messages that were stored for us come later: the database is away."""

    # ---------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        """Open the state file and log in if it holds no token; then connect in the background.

        Raises UsageError (the file is in use or somebody else's), ApiError (wrong password, …), BackendUnavailable.
        """
        self._state = await asyncio.to_thread(StateFile, self._path)
        try:
            self._session = Session(self._api, self._state, self._credentials)
            identity = await self._session.open()
            self._people = People(self._api, self._state, self._session.lock, identity.user, self._session.name)
            await self._start(identity)
        except BaseException:
            self._state.close()
            await self._api.close()
            raise
        return self

    async def _start(self, identity: Identity) -> None:
        self.user_id, self.device_id = identity.user, identity.device
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            e.SendFrame: lambda action: self._connection.send(action.frame),
            e.Save: self._save,
            e.Disconnect: lambda action: self._connection.ended(action),
            e.Online: lambda action: self._connection.welcomed(),
            e.StoredDelayed: self._note_delayed,
            e.Progress: self._progress,
            e.InboxGrew: lambda action: self._reading.grew(),
        }
        snapshot = await asyncio.to_thread(self._state.load)
        loop = asyncio.get_running_loop()
        self._core = ClientCore(
            identity, self._options, snapshot, lambda: secrets.token_bytes(16), _wall_ms, loop.time()
        )  # fmt: skip
        self._crank: Crank[e.Event, e.Action] = Crank(self._core, lambda action: self._performers[type(action)](action))
        self._reading = Reading(self._state, self._session.lock, self._people, self._mark_read)
        self._connection = Connection(self._crank, self._session.connectors, self._session.token)
        self._crank.failed.add_done_callback(self._ended)
        for work in (self._connection.run(), self._saver()):
            task = asyncio.create_task(work)
            task.add_done_callback(self._ended)
            self._tasks.append(task)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; what is not settled stays in the state file and goes on next time."""
        for action in self._core.farewell():
            self._performers[type(action)](action)
        self._fail(ClientClosed("the client was closed"))
        self._crank.stop()
        connecting, _ = self._tasks
        connecting.cancel()  # the saver ends by itself: nothing stops a thread in the middle of a transaction
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with self._session.lock:
            if self._saves:
                await asyncio.to_thread(self._state.apply, [change for save in self._saves for change in save.changes])
            await asyncio.to_thread(self._state.close)  # SQLite syncs the file once more
        self._connection.close()
        await self._api.close()

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
        for outgoing in list(self._outgoing.values()):
            outgoing.fail(error)
        for _, future in self._save_waiters:
            if not future.done():
                future.set_exception(error)
        self._reading.fail(error)
        self._progressed.set()
        self._save_due.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def online(self) -> None:
        """Wait until a connector has welcomed us.  Raises what ended the client."""
        waiting = asyncio.ensure_future(self._connection.online.wait())
        await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        self._check()

    # ---------------------------------------------------------------- sending

    async def send(self, recipient: str, text: str) -> Outgoing:
        """Send a text to a friend; returns once it is in the durable outbox.

        Waits while too many messages to this friend are unsettled.  Raises Refused (not friends, too large),
        BackendUnavailable (a friend not known yet, and REST does not answer), or what ended the client.
        """
        self._check()
        peer, version, key = await self._people.key_for(recipient)
        to = Destination(To.USER, peer)
        plain = encode_content(Text(text))
        if len(plain) + 28 > BODY_BYTES:
            raise Refused(Code.TOO_LARGE, f"the message has {len(plain):,} bytes, {BODY_BYTES - 28:,} are allowed")
        while self._core.outbox.full(to):
            self._progressed.clear()
            await self._progressed.wait()
            self._check()
        seq, base = self._core.reserve(to)
        identity = self._core.identity
        draft = Envelope(
            WIRE_VERSION, secrets.token_bytes(16), identity.user, identity.device, identity.epoch, to, seq, base,
            Kind.TEXT, version, _wall_ms(), b"",
        )  # fmt: skip
        body = seal(key, plain, associated_data(draft))
        outgoing = self._outgoing[to, seq] = Outgoing(draft.id.hex(), recipient, seq)
        self._crank.receive(e.Composed((msgspec.structs.replace(draft, body=body),)))
        await self._until_saved()
        return outgoing

    def _progress(self, action: e.Progress) -> None:
        self._progressed.set()
        key = (action.to, action.seq)
        if (outgoing := self._outgoing.get(key)) is not None:
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
        self._crank.receive(e.MessagesRead(((stream, seq),)))
        await self._until_saved()

    def _note_delayed(self, action: e.StoredDelayed) -> None:
        self.stored_delayed = action.delayed

    # ---------------------------------------------------------------- the state file

    def _save(self, action: e.Save) -> None:
        self._saves.append(action)
        self._save_due.set()

    async def _saver(self) -> None:
        """Writes what has gathered, in one transaction; the next gathers meanwhile."""
        while self._failure is None:
            await self._save_due.wait()
            self._save_due.clear()
            saves = self._saves.copy()
            if not saves:
                continue
            changes = [change for save in saves for change in save.changes]
            async with self._session.lock:
                await asyncio.to_thread(self._state.apply, changes)
                del self._saves[: len(saves)]
            self._saved_serial = saves[-1].serial
            self._crank.receive(e.Saved(self._saved_serial))
            for serial, future in self._save_waiters:
                if serial <= self._saved_serial and not future.done():
                    future.set_result(None)
            self._save_waiters = [(serial, future) for serial, future in self._save_waiters if not future.done()]

    async def _until_saved(self) -> None:
        """Wait for everything that was handed to the saver so far."""
        if not self._saves:
            return
        self._check()
        future = asyncio.get_running_loop().create_future()
        self._save_waiters.append((self._saves[-1].serial, future))
        await future


def _wall_ms() -> int:
    return int(time.time() * 1000)
