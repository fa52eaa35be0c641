"""The rules for what a client submits.

    does not decode, another version            MALFORMED, VERSION        the session is cut
    not the session's user, device, epoch       IMPERSONATION             the session is cut
    body over the limit                         TOO_LARGE                 rejected
    more around the body than there are fields  MALFORMED                 the session is cut
    no such type of destination, or oneself     NO_SUCH_RECIPIENT         rejected
    a receipt: to one device                    passes, friends or not    (it answers what was allowed)
    anything else: to a friend                  passes
    anything else                               NOT_FRIENDS               after relations were read again

Ephemeral kinds that do not pass are dropped: nothing is ever said of them.
"""

from typing import NamedTuple

import msgspec

from meshim.connector.session import Session
from meshim.errors import Code, PeerError
from meshim.protocol.outcome import AFTER_MAX
from meshim.wire.bounds import Positions
from meshim.wire.client import Submit
from meshim.wire.envelope import EPHEMERAL_FROM, WIRE_VERSION, DestinationType, Envelope, Kind, decode_envelope
from meshim.wire.mesh import Stamp
from meshim.wire.outcome import Outcome, OutcomeStatus

RECEIPT_BYTES = 4_096
"""A receipt needs no friendship, so that its body is kept small."""
FIELDS_BYTES = 4_096
"""Of an envelope beside its body: far more than its fields take, also with some of a later version."""

# As plain numbers: what is compared with every message.
_RECEIPT, _USER, _DEVICE = int(Kind.RECEIPT), int(DestinationType.USER), int(DestinationType.DEVICE)


class Rejection(NamedTuple):
    """The envelope may not pass, for this reason."""

    envelope: Envelope
    code: Code
    sentence: str


def authorize(session: Session, submit: Submit, origin: int, body_bytes: int) -> Stamp | Rejection:
    """The stamp of an envelope that may pass, or why it may not.

    Raises PeerError when the session has to be cut.
    """
    login = session.login
    try:
        envelope = decode_envelope(submit.envelope)
    except msgspec.DecodeError as error:
        raise PeerError(Code.MALFORMED, f"the envelope does not decode: {error}") from None
    if envelope.version != WIRE_VERSION:
        raise PeerError(Code.VERSION, f"envelope version {envelope.version} is not spoken here, {WIRE_VERSION} is")
    if envelope.user != login.user or envelope.device != login.device or envelope.epoch != login.epoch:
        raise PeerError(Code.IMPERSONATION, "the envelope names another user, device or epoch than the session's")
    if envelope.seq < 1 or envelope.base < 1 or envelope.base > envelope.seq or len(envelope.id) != 16:
        raise PeerError(Code.MALFORMED, "seq, base or id of the envelope is out of range")
    if len(submit.envelope) - len(envelope.body) > FIELDS_BYTES:
        # All limits behind us, of bundles, records and pages, rest on that of the body.
        raise PeerError(Code.MALFORMED, f"the envelope has over {FIELDS_BYTES} bytes beside its body")
    receipt = envelope.kind == _RECEIPT
    limit = RECEIPT_BYTES if receipt else body_bytes
    if len(envelope.body) > limit:
        return Rejection(envelope, Code.TOO_LARGE, f"the body has {len(envelope.body)} bytes, {limit} are allowed")
    to = envelope.to
    to_device = to.type == _DEVICE
    if not (to_device or to.type == _USER) or to.id == login.user or to_device != (to.device > 0):
        return Rejection(envelope, Code.NO_SUCH_RECIPIENT, "there is no such destination")
    if to.id not in session.friends and not (receipt and to_device):
        return Rejection(envelope, Code.NOT_FRIENDS, "sender and recipient are not friends")
    # The sender's other devices get a copy too, of everything but receipts.
    others = () if receipt else session.others
    after = submit.after if len(submit.after) <= AFTER_MAX else _concerning((to.id, login.user), submit.after)
    return Stamp(origin, login.user, login.device, login.epoch, to, envelope.seq, envelope.kind, after, others)


def _concerning(users: tuple[int, ...], after: Positions) -> Positions:
    """One position for each of those who get a copy: what waits on its way is bounded by its envelopes."""
    highest: dict[int, int] = {}
    for user, _, position in after:
        if user in users:
            highest[user] = max(position, highest.get(user, 0))
    return tuple((user, 0, position) for user, position in highest.items())


def rejected(refusal: Rejection) -> Outcome | None:
    """What the sender is told; None for ephemeral kinds."""
    envelope = refusal.envelope
    if envelope.kind >= EPHEMERAL_FROM:
        return None
    status = OutcomeStatus.BUSY if refusal.code == Code.BUSY else OutcomeStatus.REJECTED
    return Outcome(
        0, envelope.user, envelope.device, envelope.epoch, envelope.to, envelope.seq, envelope.seq, status,
        code=refusal.code, sentence=refusal.sentence,
    )  # fmt: skip


def busy(stamp: Stamp) -> Outcome | None:
    """The mesh cannot take it now."""
    if stamp.kind >= EPHEMERAL_FROM:
        return None
    return Outcome(
        0, stamp.user, stamp.device, stamp.epoch, stamp.to, stamp.seq, stamp.seq, OutcomeStatus.BUSY,
        code=Code.BUSY, sentence="no transfer can take it now",
    )  # fmt: skip
