"""Performs the actions of the core, and runs what is beside it: the connection, the state file, requests to REST.

SQLite runs in threads, beside the event loop.  The first error of a part ends the client: every task of the application
that waits gets this error, and so does every later call.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from meshim.client import events as e
from meshim.client.application.event_stream import Publisher, Subscription
from meshim.client.connection import Connection, Transport
from meshim.client.core import ClientCore
from meshim.client.event_translator import EventTranslator
from meshim.client.friends.contacts import Contacts
from meshim.client.friends.presence import PresencePoller
from meshim.client.friends.relations import Relations
from meshim.client.inbox_reader import InboxReader
from meshim.client.options import ClientOptions
from meshim.client.persister import Persister
from meshim.client.sender import Sender
from meshim.client.session import Session
from meshim.client.state import StateFile
from meshim.errors import ClientClosed, MeshimError
from meshim.runtime.driver import Driver
from meshim.wire.envelope import Stream


class Shell:
    """The parts of one client, from `start` to `close`."""

    def __init__(
        self,
        core: ClientCore,
        session: Session,
        state: StateFile,
        options: ClientOptions,
        transport: Transport,
        *,
        insecure: bool,
    ) -> None:
        statistics = core.statistics
        self.core = core
        self.driver: Driver[e.Event, e.Action] = Driver(core, self._perform)
        self._session = session
        self._state = state
        self._persister = Persister(state, session.lock, self._persisted)
        self._inbox_bytes_max = options.inbox_bytes_max
        self._publisher = Publisher(options.events_max, statistics)
        self.contacts = Contacts(session, state, self._publisher.publish)
        self.sender = Sender(core, self.contacts, self._persist)
        self.reader = InboxReader(state, session.lock, self.contacts, core.receipts, self._mark_read, statistics)
        self.reader.on_handled = self._handled
        self.connection = Connection(self.driver, session.connectors, session.token, transport, insecure=insecure)
        self.relations = Relations(session, self.contacts, self._publisher, statistics)
        self.presence = PresencePoller(
            session, self.contacts, self._publisher, self.connection.online, options, statistics
        )
        translate = self._translator = EventTranslator(
            core.identity, self.contacts, self.relations, self.presence, self._publisher
        )
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            e.SendFrame: self._send_frame,
            e.Persist: self._persister.add,
            e.Disconnect: self._disconnect,
            e.Online: self._welcomed,
            e.StoredDelayed: self._set_delayed,
            e.StatusChanged: self._status_changed,
            e.StreamDelayed: translate.stream_delayed,
            e.StreamProgressed: translate.stream_progressed,
            e.TypingChanged: translate.typing_changed,
            e.AccountChanged: translate.account_changed,
            e.MessagesAvailable: self._messages_available,
        }
        self.stored_delayed = False
        self._failure: MeshimError | None = None
        self._ended = asyncio.Event()

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Connect, and run, in the background."""
        self._stop_receiving_if_full()  # the file may be full already
        self.driver.failed.add_done_callback(self._task_done)
        running = (each.run() for each in (self._persister, self.connection, self.relations, self.presence))
        self._persisting, *self._tasks = map(asyncio.create_task, running)
        for task in (self._persisting, *self._tasks):
            task.add_done_callback(self._task_done)

    async def close(self) -> None:
        """End the client, and close its state file once everything is in it."""
        if self._failure is None:
            for action in self.core.farewell():
                self._perform(action)
        self._fail(ClientClosed("The client was closed."))
        await asyncio.wait((self._persisting, *self._tasks))
        try:
            async with self._session.lock:
                await asyncio.to_thread(self._state.close)  # a thread: SQLite syncs the file once more
        finally:
            self.connection.close()

    def _task_done(self, task: asyncio.Future[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, MeshimError):
            asyncio.get_running_loop().call_exception_handler({"message": "meshim client failed", "exception": error})
            error = ClientClosed(f"The client failed: {error!r}")
        self._fail(error)

    def _fail(self, error: MeshimError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self.driver.stop()
        for task in self._tasks:
            task.cancel()
        self._persister.stop()
        self.sender.fail(error)
        self.reader.fail(error)
        self._translator.failed(error)
        self._ended.set()

    def check(self) -> None:
        """Raise the error that ended the client, if one has."""
        if self._failure is not None:
            raise self._failure

    # ---------------------------------------------------------------- for the application

    async def wait_for(self, event: asyncio.Event) -> None:
        """Wait for this event.  Raises the error that ended the client."""
        tasks = [asyncio.ensure_future(each.wait()) for each in (event, self._ended)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        self.check()

    def subscribe(self) -> Subscription:
        """Return a new reader of events."""
        subscription = self._publisher.subscribe()
        self._translator.subscribed()
        return subscription

    async def _mark_read(self, stream: Stream, seq: int) -> None:
        self.check()
        await self._persist(e.MessagesRead(((stream, seq),)))

    async def _persist(self, event: e.Event) -> None:
        """Give an event to the core; return when the changes it led to are in the state file."""
        self.driver.receive(event)
        if self.driver.failed.done():
            await asyncio.sleep(0)  # let `_task_done` set the error that ended the client
            self.check()
        await self._persister.wait_persisted()

    # ---------------------------------------------------------------- an application that reads too little

    def _persisted(self, serial: int) -> None:
        self.driver.receive(e.Persisted(serial))
        self._stop_receiving_if_full()

    def _stop_receiving_if_full(self) -> None:
        """End the connection when the application has left too much unread: the mesh keeps what comes then.

        To stay connected and acknowledge nothing would not do: outcomes come over the same link.
        """
        if self._state.unread_bytes < self._inbox_bytes_max or self.connection.paused:
            return
        self.core.statistics.inbox_full += 1
        sentence = (
            f"The application has {self._state.unread_bytes:,} bytes of messages to read: "
            "this device connects again when it has handled a quarter of them."
        )
        for action in self.core.farewell(sentence):
            self._perform(action)
        self.connection.pause(sentence)

    def _handled(self) -> None:
        if self.connection.paused and self._state.unread_bytes <= self._inbox_bytes_max * 3 // 4:
            self.connection.resume()

    # ---------------------------------------------------------------- actions of the core

    def _perform(self, action: e.Action) -> None:
        self._performers[type(action)](action)

    def _send_frame(self, action: e.SendFrame) -> None:
        self.connection.send(action.frame)

    def _disconnect(self, action: e.Disconnect) -> None:
        self._translator.disconnected(action)
        self.connection.ended(action)

    def _welcomed(self, action: e.Online) -> None:
        self.sender.body_bytes = action.body_bytes
        self.connection.welcomed()
        self._translator.welcomed(self.connection.endpoint or "")

    def _set_delayed(self, action: e.StoredDelayed) -> None:
        self.stored_delayed = action.delayed

    def _status_changed(self, action: e.StatusChanged) -> None:
        self._translator.status_changed(action)
        self.sender.status_changed(action)

    def _messages_available(self, action: e.MessagesAvailable) -> None:
        self.reader.notify()
