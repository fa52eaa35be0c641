"""The rules by which a connector authorizes the envelopes that a client submits, in this order.

    does not decode, another version            MALFORMED, VERSION        the session is cut
    not the session's user, device, epoch       IMPERSONATION             the session is cut
    seq, base or id out of range                MALFORMED                 the session is cut
    too many bytes besides the body             MALFORMED                 the session is cut
    body over the limit                         TOO_LARGE                 rejected
    no such type of destination, or oneself     NO_SUCH_RECIPIENT         rejected
    to a friend                                 authorized
    anything else                               NOT_FRIENDS               rejected, after relations were read again

The cookie of an authorized envelope that cannot be read now is BUSY: without it a message could overtake one that was
stored.

An ephemeral envelope that is rejected is dropped: there are no outcomes for ephemeral kinds.
"""

from typing import NamedTuple

import msgspec

from meshim.connector.outcomes import Outcomes
from meshim.connector.session import Session
from meshim.errors import Code, PeerError
from meshim.wire.client import Outcome, Submit
from meshim.wire.envelope import EPHEMERAL_FROM, WIRE_VERSION, DestinationType, Envelope, decode_envelope
from meshim.wire.mesh import Stamp
from meshim.wire.outcome import OutcomeStatus
from meshim.wire.sizes import ENVELOPE_FIELDS_BYTES

_USER = int(DestinationType.USER)  # a plain number, because it is compared for every message


class Rejection(NamedTuple):
    """The envelope is not authorized, for this reason."""

    envelope: Envelope
    code: Code
    sentence: str


def authorize(session: Session, submit: Submit, outcomes: Outcomes, origin: int, body_bytes: int) -> Stamp | Rejection:
    """The stamp of an authorized envelope, or the reason of its rejection.

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
    if len(submit.envelope) - len(envelope.body) > ENVELOPE_FIELDS_BYTES:
        # The limits of bundles, records and pages rest on the limit of the body.
        raise PeerError(Code.MALFORMED, f"the envelope has over {ENVELOPE_FIELDS_BYTES} bytes beside its body")
    if len(envelope.body) > body_bytes:
        return Rejection(envelope, Code.TOO_LARGE, f"the body has {len(envelope.body)} bytes, {body_bytes} are allowed")
    to = envelope.to
    if to.type != _USER or to.device or to.id == login.user:
        return Rejection(envelope, Code.NO_SUCH_RECIPIENT, "there is no such destination")
    if to.id not in session.friends:
        return Rejection(envelope, Code.NOT_FRIENDS, "sender and recipient are not friends")
    after = outcomes.positions(envelope.stream, submit.cookie) if submit.cookie else ()
    if after is None:
        return Rejection(envelope, Code.BUSY, "the cookie cannot be read now: send it again")
    return Stamp(
        origin=origin,
        session=session.binding.session,
        user=login.user,
        device=login.device,
        epoch=login.epoch,
        to=to,
        seq=envelope.seq,
        kind=envelope.kind,
        after=after,
        copies=session.others,  # the sender's other devices get a copy too
    )


def rejected(rejection: Rejection) -> Outcome | None:
    """The outcome for the sender; None for ephemeral kinds."""
    envelope = rejection.envelope
    if envelope.kind >= EPHEMERAL_FROM:
        return None
    status = OutcomeStatus.BUSY if rejection.code == Code.BUSY else OutcomeStatus.REJECTED
    return Outcome(
        to=envelope.to,
        first=envelope.seq,
        last=envelope.seq,
        status=status,
        code=rejection.code,
        sentence=rejection.sentence,
    )


def busy(stamp: Stamp) -> Outcome | None:
    """The outcome when no transfer can take the envelope now; None for ephemeral kinds."""
    if stamp.kind >= EPHEMERAL_FROM:
        return None
    return Outcome(
        to=stamp.to,
        first=stamp.seq,
        last=stamp.seq,
        status=OutcomeStatus.BUSY,
        code=Code.BUSY,
        sentence="no transfer can take it now",
    )
