"""From entries of the log to rows of `im_offline`: what is refused, what is left out, what is written.

Pure, and the same for every archive.  The limits are those of the tables; a transfer that
checks `defect` before it publishes will have nothing refused by a writer.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from meshim.wire.envelope import EPHEMERAL_FROM, Envelope, decode_envelope
from meshim.wire.log import Entry

ROW_FORMAT = 1
"""Version of a row: its content is an envelope in msgpack, whose own version is inside."""

CONTENT_BYTES_MAX = 1 << 20
"""Of an envelope in a row: more than any message of the log may have, and what every server takes in a statement."""

_MESSAGE_ID_BYTES = 16
_ID_MAX = (1 << 63) - 1
_DESTINATION_TYPE_MAX = (1 << 15) - 1


class Draft(NamedTuple):
    """An entry that can be written, before it is known for which devices; `place` is its index in the bundle."""

    entry: Entry
    envelope: Envelope
    position: int
    place: int


class NewRow(NamedTuple):
    """A row to write; `epoch` is unsigned, `place` the index in the bundle."""

    msg_id: bytes
    msg_type: int
    content: bytes
    to_user_id: int
    to_device: int
    from_user_id: int
    from_device: int
    epoch: int
    destination_type: int
    destination_id: int
    destination_device: int
    seq: int
    position: int
    place: int


class Drafts(NamedTuple):
    """What can be written, and what cannot, as (position, entry, reason)."""

    drafts: list[Draft]
    refused: list[tuple[int, Entry, str]]


def draft(records: Sequence[tuple[int, Sequence[Entry]]]) -> Drafts:
    """Decode the envelopes of every (position, entries) and check them against the limits of the table."""
    drafts: list[Draft] = []
    refused: list[tuple[int, Entry, str]] = []
    for position, entries in records:
        for place, entry in enumerate(entries):
            try:
                envelope = decode_envelope(entry.envelope)
            except msgspec.DecodeError as error:
                refused.append((position, entry, f"the envelope does not decode: {error}"))
                continue
            reason = defect(entry, envelope)
            if reason is None:
                drafts.append(Draft(entry, envelope, position, place))
            else:
                refused.append((position, entry, reason))
    return Drafts(drafts, refused)


def defect(entry: Entry, envelope: Envelope) -> str | None:
    """Why this can never be a row, or None."""
    e = envelope
    if len(entry.envelope) > CONTENT_BYTES_MAX:
        return f"the envelope has {len(entry.envelope)} bytes, more than {CONTENT_BYTES_MAX}"
    if len(e.id) != _MESSAGE_ID_BYTES:
        return f"the message id has {len(e.id)} bytes, not {_MESSAGE_ID_BYTES}"
    if not 0 <= e.kind < EPHEMERAL_FROM:
        return f"kind {e.kind} is never stored"
    if not 0 <= e.epoch < 1 << 64:
        return "the epoch does not fit in 64 bits"
    if not 1 <= e.to.type <= _DESTINATION_TYPE_MAX:
        return f"destination type {e.to.type} is out of range"
    for name, number, least in (
        ("recipient", entry.user, 1),
        ("sender", e.user, 1),
        ("sending device", e.device, 1),
        ("destination", e.to.id, 1),
        ("destination device", e.to.device, 0),
        ("seq", e.seq, 1),
    ):
        if not least <= number <= _ID_MAX:
            return f"the {name} {number} is out of range"
    return None


def expand(drafts: Sequence[Draft], registry: Mapping[int, Collection[int]]) -> tuple[list[NewRow], int]:
    """Rows for the devices of each entry, all of the user's where it names none.

    The second is how many copies were for nobody.  `registry` holds the devices of the users of the drafts.
    """
    rows: list[NewRow] = []
    left_out = 0
    for entry, e, position, place in drafts:
        known = registry.get(entry.user, ())
        wanted = entry.devices or known
        for device in wanted:
            if device in known:
                rows.append(
                    NewRow(
                        e.id,
                        e.kind,
                        entry.envelope,
                        entry.user,
                        device,
                        e.user,
                        e.device,
                        e.epoch,
                        e.to.type,
                        e.to.id,
                        e.to.device,
                        e.seq,
                        position,
                        place,
                    )
                )
            else:
                left_out += 1
        if not wanted:
            left_out += 1
    return rows, left_out
