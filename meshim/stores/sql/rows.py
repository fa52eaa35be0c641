"""From entries of the log to rows of `im_offline`: what is refused, what is left out, what is written.

Pure, and the same for every database.  Decoding an envelope checks nearly all that the columns demand
(`meshim.wire.bounds`); `defect` checks the rest.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from meshim.wire.envelope import EPHEMERAL_FROM, Envelope, decode_envelope
from meshim.wire.offline_log import Entry

ROW_FORMAT = 1
"""Version of a row: its content is an envelope in msgpack, whose own version is inside."""

CONTENT_BYTES_MAX = 1 << 20
"""Of an envelope in a row: more than any message of the log may have, and what every server takes in a statement."""


def first_device(user: int) -> int:
    """What stands in `to_device` while the user has no device: the first one to log in gets these rows.

    It is never an id, and another number for each user, so that the index of the drains finds what waits for one.
    """
    return -user


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
    """Decode the envelopes of every (position, entries), and refuse those that cannot be rows."""
    drafts: list[Draft] = []
    refused: list[tuple[int, Entry, str]] = []
    for position, entries in records:
        for place, entry in enumerate(entries):
            try:
                envelope = decode_envelope(entry.envelope)
            except msgspec.DecodeError as error:
                refused.append((position, entry, f"the envelope does not decode: {error}"))
                continue
            reason = defect(entry.envelope, envelope)
            if reason is None:
                drafts.append(Draft(entry, envelope, position, place))
            else:
                refused.append((position, entry, reason))
    return Drafts(drafts, refused)


def defect(data: bytes, envelope: Envelope) -> str | None:
    """Why this envelope, encoded as `data`, can never be a row; None when it can."""
    if len(data) > CONTENT_BYTES_MAX:
        return f"the envelope has {len(data)} bytes, more than {CONTENT_BYTES_MAX}"
    if envelope.kind >= EPHEMERAL_FROM:
        return f"kind {envelope.kind} is never stored"
    return None


def expand(drafts: Sequence[Draft], registry: Mapping[int, Collection[int]]) -> tuple[list[NewRow], int]:
    """Rows for the devices of each entry; where it names none, for all of the user's, or for her first one to come.

    The second is how many copies were for nobody.  `registry` holds the devices of the users of the drafts,
    also of those who have none; a user who is not there does not exist.
    """
    rows: list[NewRow] = []
    left_out = 0
    for entry, e, position, place in drafts:
        known = registry.get(entry.user)
        if known is None:
            left_out += max(1, len(entry.devices))
            continue
        for device in entry.devices or known or (first_device(entry.user),):
            if device > 0 and device not in known:
                left_out += 1
                continue
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
    return rows, left_out
