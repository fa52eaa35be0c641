"""What has to be done with a state file before a core is made from it.

An unsettled message that no connector would take ends every link on which it is submitted, so that the device could
never send again.  Such a message is found here, and rejected by the core:

    it does not decode            its envelope is out of bounds, or the file is damaged
    it cannot be sealed again     another device sends it now, and its key is lost

The server drops a device that was idle for `device_idle_s`, and its next login registers a new one.  Connectors refuse
envelopes from the old one, so unsettled messages get the new device as their sender.
"""

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from meshim.client.events import AddToOutbox, Snapshot, UnsendableFound
from meshim.client.identity import Identity
from meshim.client.session import Session
from meshim.client.state import StateFile
from meshim.errors import SealBroken, UsageError, one_line
from meshim.runtime.crypto import open_sealed, seal
from meshim.wire.envelope import Destination, Envelope, associated_data, decode_envelope, encode_envelope

_Keys = dict[tuple[int, int], bytes]
"""(user id, version) to key."""


class Recovered(NamedTuple):
    """The contents of a state file, and the event for the core if some of its messages cannot be sent."""

    snapshot: Snapshot
    unsendable: UnsendableFound


async def recover(session: Session, state: StateFile, identity: Identity) -> Recovered:
    """Give the unsettled messages of the file to this device, and return what the core needs at its start.

    A key that is not in the file is asked for.  Raises UsageError when the file is damaged; where a key is missing also
    ApiError or BackendUnavailable, when REST does not answer.
    """
    with reading(state):
        snapshot = await asyncio.to_thread(state.load)
        for user in _lacking(snapshot.unsettled, identity, await _keys(state)):
            await session.persist_relations(await session.relations(user))
        changed, unsendable = _reassigned(snapshot.unsettled, identity, await _keys(state))
        if changed:
            await asyncio.to_thread(state.reassign_outbox, changed)
            snapshot = await asyncio.to_thread(state.load)
        for early in snapshot.early:
            decode_envelope(early.envelope)
    return Recovered(snapshot, UnsendableFound(unsendable))


@contextmanager
def reading(state: StateFile) -> Iterator[None]:
    """Use what the file holds; raises UsageError when it is damaged: values of other types, or contradictions."""
    try:
        yield
    except (msgspec.DecodeError, sqlite3.DatabaseError, AssertionError, OverflowError, TypeError, ValueError) as error:
        raise UsageError(f"The state file {state.path} is damaged: {one_line(error)}.") from error


async def _keys(state: StateFile) -> _Keys:
    return {(user, version): key for user, version, key in await asyncio.to_thread(state.content_keys)}


def _decoded(message: AddToOutbox) -> Envelope | None:
    try:
        return decode_envelope(message.envelope)
    except msgspec.DecodeError:
        return None


def _lacking(messages: Iterable[AddToOutbox], identity: Identity, keys: _Keys) -> set[int]:
    """The users whose keys are needed to seal messages again, and are not in the file."""
    return {
        old.to.id
        for message in messages
        if (old := _decoded(message)) and old.device != identity.device and old.key and (old.to.id, old.key) not in keys
    }


def _reassigned(
    messages: Iterable[AddToOutbox], identity: Identity, keys: _Keys
) -> tuple[list[tuple[Destination, int, bytes]], list[tuple[Destination, int, str]]]:
    """(new envelopes, messages that cannot be sent): each as (destination, seq, envelope or sentence)."""
    changed: list[tuple[Destination, int, bytes]] = []
    unsendable: list[tuple[Destination, int, str]] = []
    for message in messages:
        old = _decoded(message)
        if old is None:
            unsendable.append((message.to, message.seq, "the message in the state file is damaged"))
        elif old.device != identity.device:
            new = _resealed(old, identity, keys)
            if new is None:
                unsendable.append((message.to, message.seq, "the key of the message is lost"))
            else:
                changed.append((message.to, message.seq, encode_envelope(new)))
    return changed, unsendable


def _resealed(old: Envelope, identity: Identity, keys: _Keys) -> Envelope | None:
    """The message with this device as its sender; None without its key."""
    new = msgspec.structs.replace(old, device=identity.device)
    if not old.key:
        return new
    key = keys.get((old.to.id, old.key))
    if key is None:
        return None
    try:
        plain = open_sealed(key, old.body, associated_data(old))
    except SealBroken:
        return None
    return msgspec.structs.replace(new, body=seal(key, plain, associated_data(new)))
