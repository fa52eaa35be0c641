"""Takes the deliveries of a connector, and gives each to the part of the client that it concerns.

::

    of this very device     dropped
    typing                  shown, unless the message that was typed is here already: it may have come first
    receipt                 applied when it arrives; then as a base update
    base update             takes its place in the order of its stream: the inbox drops it then
    text, unknown kinds     the inbox puts it in order; a `delivered` receipt is owed to a friend who sent it

Receipts about messages of this device go to the outbox, those about messages of others to `Receipts`.
"""

import msgspec

from meshim.client import events as e
from meshim.client.identity import Identity
from meshim.client.statistics import Statistics
from meshim.client.streams.inbox import Inbox
from meshim.client.streams.outbox import Outbox
from meshim.client.streams.receipts import NOW, Receipts
from meshim.client.streams.typing_state import TypingState
from meshim.wire.client import Delivery
from meshim.wire.envelope import (
    EPHEMERAL_FROM,
    HIDDEN,
    Envelope,
    Kind,
    decode_envelope,
    decode_receipt,
    encode_envelope,
)

ADDED_BYTES_MAX = 256
"""Of an envelope beside its body: beyond, the state file gets it without the elements that this version does not know.

They may be arrays within arrays, so deep that they decode here and not further down in the stack of an application: it
could never read this message, nor any behind it.
"""


class Deliveries:
    """What one device receives from others."""

    def __init__(
        self,
        identity: Identity,
        delivered_delay_s: float,
        inbox: Inbox,
        outbox: Outbox,
        receipts: Receipts,
        typing: TypingState,
        statistics: Statistics,
        changes: list[e.Change],
        actions: list[e.Action],
    ) -> None:
        """`changes` and `actions` are those of the core, which get what follows from a delivery."""
        self._identity = identity
        self._delivered_delay_s = delivered_delay_s
        self._inbox = inbox
        self._outbox = outbox
        self._receipts = receipts
        self._typing = typing
        self._statistics = statistics
        self._changes = changes
        self._actions = actions

    def receive(self, delivery: Delivery, now: float) -> bool:
        """Take in one delivery; return whether it releases messages to the application."""
        try:
            envelope = decode_envelope(delivery.envelope)
        except msgspec.DecodeError:
            # From a later version: connectors forward only what decodes in theirs.
            self._statistics.unreadable += 1
            return False
        if envelope.device == self._identity.device:
            return False
        if envelope.kind >= EPHEMERAL_FROM:
            self._ephemeral(envelope, now)
            return False
        if envelope.kind == Kind.RECEIPT:
            self._receipt(envelope)
        data = delivery.envelope
        if len(data) - len(envelope.body) > ADDED_BYTES_MAX:
            data = encode_envelope(envelope)
        changes, available = self._inbox.receive(envelope, data, stored=delivery.stored, now=now)
        self._changes.extend(changes)
        if envelope.kind in HIDDEN:
            self._receipts.hidden(envelope.stream, envelope.seq)
        elif envelope.user != self._identity.user:
            self._actions.extend(self._typing.stop(envelope.user))
            due = NOW if delivery.stored else now + self._delivered_delay_s
            self._receipts.owe_delivered(envelope.stream, envelope.seq, due)
        return available

    def _ephemeral(self, envelope: Envelope, now: float) -> None:
        mine = envelope.user == self._identity.user
        if envelope.kind == Kind.TYPING and not mine and not self._inbox.has_message(envelope.stream, envelope.seq):
            self._actions.extend(self._typing.start(envelope.user, now))

    def _receipt(self, envelope: Envelope) -> None:
        try:
            receipt = decode_receipt(envelope.body)
        except msgspec.DecodeError:
            self._statistics.unreadable += 1
            return
        if envelope.user == self._identity.user or receipt.device != self._identity.device:
            self._actions.extend(self._receipts.apply(envelope, receipt, self._inbox.has))
        elif receipt.epoch == self._identity.epoch:
            update = self._outbox.receipt(envelope.user, receipt)  # no base updates: a receipt settles nothing
            self._changes.extend(update.changes)
            self._actions.extend(update.statuses)
