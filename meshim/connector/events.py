"""What happens to a connector, and what its core asks to be done.

Events are in the past tense and carry whole batches; actions are imperatives.  The shell
turns one into the other's answer and decides nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

from meshim.errors import Code
from meshim.stores.ports import Account, Binding, Login, Page
from meshim.wire.notification import Kick, Notification

# ---------------------------------------------------------------- events


class ClientsSent(NamedTuple):
    """Frames from clients, each (peer, frame), in the order they came."""

    batch: Sequence[tuple[bytes, bytes]]


class ClientGone(NamedTuple):
    """The socket has no connection to this peer any more."""

    peer: bytes


class TransferSent(NamedTuple):
    transfer: int
    batch: Sequence[bytes]


class TransfersLiving(NamedTuple):
    """The incarnations whose leases last."""

    transfers: Sequence[int]


class TransferConnected(NamedTuple):
    transfer: int


class TransferLost(NamedTuple):
    """The connection broke or could not be made."""

    transfer: int


class GreetAccepted(NamedTuple):
    """The token is good.  `session` is the number of the session to be."""

    peer: bytes
    link: int
    token_hash: bytes
    login: Login
    account: Account
    session: int


class GreetRefused(NamedTuple):
    peer: bytes
    link: int
    code: Code
    sentence: str


class BindingsWritten(NamedTuple):
    """For each binding: False if a higher session number holds it, the Binding it replaced, or None."""

    results: Sequence[tuple[Binding, Binding | bool | None]]


class BindingsUnwritten(NamedTuple):
    """Presence did not answer."""

    bindings: Sequence[Binding]


class TokensRevoked(NamedTuple):
    """These came in with a token that the database does not know any more; their bindings were not written."""

    bindings: Sequence[Binding]


class QueuesPeeked(NamedTuple):
    """`devices` as they were asked for; `through` by user's partition; `waiting` are devices with unread rows."""

    devices: Sequence[tuple[int, int, int]]
    through: dict[int, int]
    waiting: set[int]


class QueueClaimed(NamedTuple):
    """`fence` is None while another connector syncs."""

    device: int
    session: int
    fence: int | None


class PageRead(NamedTuple):
    device: int
    session: int
    page: Page


class RowsMarked(NamedTuple):
    device: int
    session: int
    row_ids: Sequence[int]


class RowsUnmarked(NamedTuple):
    """The database did not answer; or, if `fenced`, another connector claimed the queue after `fence`."""

    device: int
    session: int
    fence: int
    fenced: bool


class QueueFenced(NamedTuple):
    """Another connector claimed the queue after us."""

    device: int
    session: int


class QueuesUnreachable(NamedTuple):
    """The database did not answer what these, as (device, session), had under way."""

    devices: Sequence[tuple[int, int]]


class NotificationReceived(NamedTuple):
    notification: Notification


class AccountsRead(NamedTuple):
    """Of a user that there is not any more: one without devices and friends."""

    accounts: Sequence[Account]


class AccountsUnreadable(NamedTuple):
    users: Sequence[int]


class PresenceLost(NamedTuple):
    """Our lease ended: to the others we are not here, and nobody wake-ups us.  `PresenceDisturbed` ends that."""


class PresenceDisturbed(NamedTuple):
    """Our lease or the presence backend was away: what it says of us may be wrong or gone."""


class StopRequested(NamedTuple):
    pass


Event = (
    ClientsSent
    | ClientGone
    | TransferSent
    | TransfersLiving
    | TransferConnected
    | TransferLost
    | GreetAccepted
    | GreetRefused
    | BindingsWritten
    | BindingsUnwritten
    | TokensRevoked
    | QueuesPeeked
    | QueueClaimed
    | PageRead
    | RowsMarked
    | RowsUnmarked
    | QueueFenced
    | QueuesUnreachable
    | NotificationReceived
    | AccountsRead
    | AccountsUnreadable
    | PresenceLost
    | PresenceDisturbed
    | StopRequested
)

# ---------------------------------------------------------------- actions


class SendClient(NamedTuple):
    peer: bytes
    frame: bytes


class ClosePeer(NamedTuple):
    """End the connection of a client, after the frames that were sent to it before.  Not answered."""

    peer: bytes


class SendTransfer(NamedTuple):
    transfer: int
    frame: bytes


class ConnectTransfer(NamedTuple):
    """Answered by TransferConnected or TransferLost."""

    transfer: int


class DisconnectTransfer(NamedTuple):
    """Close the socket at once; what is queued in it is forgotten (LINGER 0)."""

    transfer: int


class CheckGreet(NamedTuple):
    """Answered by GreetAccepted or GreetRefused."""

    peer: bytes
    link: int
    token: bytes
    epoch: int


class Renewal(NamedTuple):
    """A binding with all devices of its user, and the SHA-256 of the token that its session came in with."""

    binding: Binding
    devices: tuple[int, ...]
    token_hash: bytes


class WriteBindings(NamedTuple):
    """Each binding with all devices of its user.  Answered by BindingsWritten or BindingsUnwritten."""

    bindings: Sequence[tuple[Binding, tuple[int, ...]]]


class RenewBindings(NamedTuple):
    """As WriteBindings, where the token was not revoked meanwhile; else answered by TokensRevoked."""

    renewals: Sequence[Renewal]


class EraseBindings(NamedTuple):
    """Not answered: a binding that stays is corrected by whoever is sent there."""

    bindings: Sequence[Binding]


class PeekQueues(NamedTuple):
    """For each (user, device, session).  Answered by QueuesPeeked or QueuesUnreachable."""

    devices: Sequence[tuple[int, int, int]]


class ClaimQueue(NamedTuple):
    """Answered by QueueClaimed or QueuesUnreachable."""

    device: int
    session: int


class ReadPage(NamedTuple):
    """Answered by PageRead, QueueFenced or QueuesUnreachable."""

    user: int
    device: int
    session: int
    fence: int
    after: tuple[int, int]


class MarkRead(NamedTuple):
    """Answered by RowsMarked or RowsUnmarked."""

    device: int
    session: int
    fence: int
    row_ids: Sequence[int]


class ReleaseQueue(NamedTuple):
    """Not answered: a lease that stays ends by itself."""

    device: int
    fence: int


class ReadAccounts(NamedTuple):
    """Answered by AccountsRead or AccountsUnreadable, never from a cache."""

    users: Sequence[int]


class TellKick(NamedTuple):
    """Tell another connector incarnation that its session was replaced."""

    incarnation: int
    kick: Kick


class NoteSeen(NamedTuple):
    """These devices are connected now."""

    devices: Sequence[int]


Action = (
    SendClient
    | ClosePeer
    | SendTransfer
    | ConnectTransfer
    | DisconnectTransfer
    | CheckGreet
    | WriteBindings
    | RenewBindings
    | EraseBindings
    | PeekQueues
    | ClaimQueue
    | ReadPage
    | MarkRead
    | ReleaseQueue
    | ReadAccounts
    | TellKick
    | NoteSeen
)
