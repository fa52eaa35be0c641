"""Mutations of the mesh for `--break`: each takes one mechanism away, and the judge has to notice.

A break patches one method of the real code, or of the model of a server, while the simulation runs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

import msgspec

from meshim.client.streams.inbox import Inbox, InboxUpdate
from meshim.connector import accounting, submissions
from meshim.connector import events as connector_events
from meshim.connector.authorization import authorize
from meshim.connector.handshake import Handshake
from meshim.connector.offline_sync import OfflineSync
from meshim.connector.outcomes import Outcomes
from meshim.connector.session import Session
from meshim.connector.shell import Shell as ConnectorShell
from meshim.protocol.ordering import Flag, Released, StreamOrder
from meshim.protocol.outcome import outcomes_of
from meshim.protocol.token_bucket import UnnumberedBudget
from meshim.protocol.window import Window
from meshim.rest.sessions import Sessions
from meshim.rest.tokens import Tokens
from meshim.runtime.send_result import SendResult
from meshim.stores.memory.database import MemoryPartitions, MemoryQueues
from meshim.stores.memory.redis import MemoryPresence, MemorySessionCache
from meshim.stores.ports import Binding, Login, Page
from meshim.transfer import events as transfer_events
from meshim.transfer.core import TransferCore
from meshim.transfer.presence_cache import Locations, PresenceCache
from meshim.wire.client import Submit
from meshim.wire.envelope import Envelope, Kind, decode_envelope, decode_receipt
from meshim.wire.mesh import Route
from meshim.wire.outcome import OutcomeStatus
from meshim.writer import events as writer_events
from meshim.writer.pipeline import Pipeline
from meshim.writer.post_commit import PostCommit

Patch = tuple[object, str, Any]
"""An object, the name of an attribute, and the value that replaces it."""


def _dedup() -> list[Patch]:
    """The recipient shows a message again that it has shown already."""
    receive = StreamOrder.receive

    def without_dedup(self: StreamOrder[Any], seq: int, base: int, item: Any, now: float) -> list[Released[Any]]:
        released = receive(self, seq, base, item, now)
        return [Released(seq, item, Flag.IN_ORDER)] if released is None and seq not in self.early else released or []

    return [(StreamOrder, "receive", without_dedup)]


def _gap() -> list[Patch]:
    """A frame that finds no room is dropped, and the window takes the frame behind it."""

    def send_client(self: ConnectorShell, action: connector_events.SendClient) -> None:
        if self._transports[action.peer[0]].send(action.peer, action.frame) is SendResult.GONE:
            self.driver.receive(connector_events.ClientGone(action.peer))

    def receive(self: Window[Any], number: int) -> None:
        self.received_number = number
        if not self._manual_ack:
            self.processed_number = number

    return [(ConnectorShell, "_send_client", send_client), (Window, "receive", receive)]


def _queue_lease() -> list[Patch]:
    """Any connector may claim a queue at any time, and no fencing token is checked."""

    async def claim(self: MemoryQueues, device: int, owner: str, session: int, lease_s: float) -> int | None:
        return 1 if device in self._database.devices else None

    return [(MemoryQueues, "claim", claim), (MemoryQueues, "_fenced", _unfenced)]


def _unfenced(self: MemoryQueues, device: int, fence: int) -> Any:
    return self._database.devices[device]


def _read_before_ack() -> list[Patch]:
    """Rows are marked read when they are pushed, before the device acknowledged them."""
    page_read = OfflineSync.page_read

    def mark_at_once(self: OfflineSync, rows: Page, room: int, now: float) -> Sequence[Any]:
        pushed = page_read(self, rows, room, now)
        self._acknowledged.extend(row.row_id for row in pushed)
        return pushed

    return [(OfflineSync, "page_read", mark_at_once)]


def _sent_before_puback() -> list[Patch]:
    """The sender gets the outcome STORED when a copy is handed to the log, before the log acknowledged it."""
    flush = TransferCore._flush

    def report_at_once(self: TransferCore, now: float) -> Sequence[Any]:
        actions = list(flush(self, now))
        for action in actions:
            if isinstance(action, transfer_events.Publish):
                _, batch = self._batcher._records[action.record]
                done = [(pending.stamp, pending.done) for pending in batch]
                for outcome in outcomes_of(done, OutcomeStatus.STORED, 1):
                    self._send_outcome(outcome)
        return [*actions, *flush(self, now)]

    return [(TransferCore, "_flush", report_at_once)]


def _sent_on_first_copy() -> list[Patch]:
    """A message is `sent` with one copy accounted for, instead of all."""
    return [(accounting, "_complete", lambda accounted, copies: bool(accounted))]


def _cookie() -> list[Patch]:
    """Connectors ignore cookies: a live message does not wait for messages that were stored before it."""
    return [(Outcomes, "positions", lambda self, stream, cookie: ())]


def _wake_up() -> list[Patch]:
    """The writer sends no wake-ups."""

    def silent(self: PostCommit, event: writer_events.PresenceRead, now: float) -> None:
        self._end_wake_up()

    return [(PostCommit, "_presence_read", silent)]


def _queue_check() -> list[Patch]:
    """A connector does not check the queue of a device after it wrote its binding."""
    written = Handshake.bindings_written

    def without_check(self: Handshake, event: connector_events.BindingsWritten, now: float) -> None:
        with patch.object(self._sessions, "check_queue", lambda session: None):
            written(self, event, now)

    return [(Handshake, "bindings_written", without_check)]


def _late_goodbye() -> list[Patch]:
    """A binding is erased even when it belongs to another session."""
    offline = MemoryPresence.offline

    async def offline_any(self: MemoryPresence, bindings: Sequence[Binding]) -> None:
        held = (self._redis.presence.get((self._namespace, binding.user)) for binding in bindings)
        found = [
            e.bindings.get(binding.device, binding) if e else binding for e, binding in zip(held, bindings, strict=True)
        ]
        await offline(self, found)

    return [(MemoryPresence, "offline", offline_any)]


def _epoch() -> list[Patch]:
    """The recipient ignores the epoch: a new state file of a device continues the streams of the old one."""
    receive = Inbox.receive

    def without_epoch(self: Inbox, envelope: Envelope, data: bytes, *, stored: bool, now: float) -> InboxUpdate:
        return receive(self, msgspec.structs.replace(envelope, epoch=0), data, stored=stored, now=now)

    return [(Inbox, "receive", without_epoch)]


def _fencing() -> list[Patch]:
    """A writer that lost a partition goes on writing to it."""
    write = MemoryPartitions.write

    async def unfenced(self: MemoryPartitions, partition: int, fence: int, *arguments: Any) -> Any:
        return await write(self, partition, self._database.partitions[partition].lease.fence, *arguments)

    return [(MemoryPartitions, "write", unfenced)]


def _ack_before_commit() -> list[Patch]:
    """The writer acknowledges records to the log before their transaction committed."""
    advance = Pipeline.advance

    def acknowledge_at_once(self: Pipeline, now: float) -> list[Any]:
        actions = advance(self, now)
        writes = [action for action in actions if isinstance(action, writer_events.Write)]
        for write in writes:
            self._post_commit._to_acknowledge.extend(position for position, _ in write.records)
        return [*actions, *self._post_commit.advance(now)] if writes else actions

    return [(Pipeline, "advance", acknowledge_at_once)]


def _revoke() -> list[Patch]:
    """The session cache keeps tokens that a later login revoked."""

    async def drop_logins(self: MemorySessionCache, token_hashes: Sequence[bytes]) -> None:
        """Drop nothing."""

    return [(MemorySessionCache, "drop_logins", drop_logins)]


def _takeover() -> list[Patch]:
    """Every login may take its device over: a state file that lost the device takes it back by itself."""
    issue = Tokens.issue

    async def issue_to_any(
        self: Tokens, user: int, device: str, epoch: int, token_hash: bytes, expires_at: float, now: float, _: bool
    ) -> Login:
        return await issue(self, user, device, epoch, token_hash, expires_at, now, True)

    return [(Tokens, "issue", issue_to_any)]


def _logout() -> list[Patch]:
    """A logout revokes the token in the database, and leaves cache and session as they are."""

    async def log_out_in_database(self: Sessions, token_hash: bytes) -> None:
        await self._accounts.log_out(token_hash)

    return [(Sessions, "logout", log_out_in_database)]


def _kick() -> list[Patch]:
    """A session that was replaced by one on another connector is not told."""
    written = Handshake.bindings_written

    def without_kick(self: Handshake, event: connector_events.BindingsWritten, now: float) -> None:
        written(self, event, now)
        self._actions[:] = [each for each in self._actions if not isinstance(each, connector_events.SendKick)]

    return [(Handshake, "bindings_written", without_kick)]


def _devices_lost() -> list[Patch]:
    """The list of devices that a registration writes is lost, as if another one at the same time had the last word."""

    async def lost(self: MemoryPresence, user: int, devices: Sequence[int], removed: Sequence[int] = ()) -> None:
        self._redis.publish(self._namespace, [user])

    return [(MemoryPresence, "update_devices", lost)]


def _charge() -> list[Patch]:
    """What a client sends outside of its window is not charged."""
    return [(UnnumberedBudget, "charge", lambda self, now: None)]


def _receipt_scope() -> list[Patch]:
    """A receipt may go to anybody, as before receipts were messages (adr/0033)."""

    def authorize_receipts(session: Session, submit: Submit, *rest: Any) -> Any:
        friends = session.friends
        with suppress(msgspec.DecodeError):
            envelope = decode_envelope(submit.envelope)
            if envelope.kind == Kind.RECEIPT:
                session.friends = friends | {envelope.to.id}
        try:
            return authorize(session, submit, *rest)
        finally:
            session.friends = friends

    return [(submissions, "authorize", authorize_receipts)]


def _devices_agree() -> list[Patch]:
    """A receipt reaches one device only, of those of the sender of the messages; no other device of its own sender."""
    send_copies = TransferCore._send_copies

    def to_one(self: TransferCore, route: Route, recipient: Locations, sender: Locations | None) -> None:
        if route.stamp.kind == Kind.RECEIPT:
            stamp = msgspec.structs.replace(route.stamp, copies=())
            route = msgspec.structs.replace(route, stamp=stamp)
            one = decode_receipt(decode_envelope(route.envelope).body).device
            recipient = _only(recipient, stamp.to.id, one)
        send_copies(self, route, recipient, sender)

    return [(TransferCore, "_send_copies", to_one)]


def _only(all_devices: Locations, user: int, device: int) -> Locations:
    """The presence of one device of a user."""
    locations = Locations(user, None)
    locations.copies = ((user, device),)
    locations.bound, locations.unbound = all_devices.split((device,))
    return locations


def _quota() -> list[Patch]:
    """Transfers ignore that a queue is full."""
    return [(PresenceCache, "is_full", lambda self, user, devices, sender: False)]


BREAKS: dict[str, Callable[[], list[Patch]]] = {
    "gap": _gap,
    "dedup": _dedup,
    "queue-lease": _queue_lease,
    "read-before-ack": _read_before_ack,
    "sent-before-puback": _sent_before_puback,
    "sent-on-first-copy": _sent_on_first_copy,
    "cookie": _cookie,
    "wake-up": _wake_up,
    "queue-check": _queue_check,
    "late-goodbye": _late_goodbye,
    "epoch": _epoch,
    "fencing": _fencing,
    "ack-before-commit": _ack_before_commit,
    "revoke": _revoke,
    "takeover": _takeover,
    "logout": _logout,
    "kick": _kick,
    "devices-lost": _devices_lost,
    "charge": _charge,
    "receipt-scope": _receipt_scope,
    "devices-agree": _devices_agree,
    "quota": _quota,
}


@contextmanager
def broken(name: str | None) -> Iterator[None]:
    """Take away the mechanism of this name during the block; None takes nothing away."""
    patches = [] if name is None else BREAKS[name]()
    running = [patch.object(target, attribute, new, create=True) for target, attribute, new in patches]
    for each in running:
        each.start()
    try:
        yield
    finally:
        for each in reversed(running):
            each.stop()
