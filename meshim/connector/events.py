"""Events and actions of the core of a connector.

Events are in the past tense and carry whole batches; actions are imperatives.  The shell performs the actions, answers
with events, and decides nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

from meshim.errors import Code
from meshim.stores.ports import Account, Binding, Login, Page
from meshim.wire.notification import Kick, Notification

# ---------------------------------------------------------------- events


class ClientsSent(NamedTuple):
    """Frames from clients, each (peer, frame), in the order of arrival."""

    batch: Sequence[tuple[bytes, bytes]]


class ClientGone(NamedTuple):
    """The transport has no connection to this peer any more."""

    peer: bytes


class TransferSent(NamedTuple):
    """Frames from one transfer, in the order of arrival."""

    transfer: int
    batch: Sequence[bytes]


class TransfersDiscovered(NamedTuple):
    """The incarnations of all transfers that hold a lease now."""

    transfers: Sequence[int]


class TransferConnected(NamedTuple):
    """The connection that ConnectTransfer asked for is made."""

    transfer: int


class TransferLost(NamedTuple):
    """The connection broke or could not be made."""

    transfer: int


class GreetAccepted(NamedTuple):
    """The token is valid.  `session` is the number of the new session."""

    peer: bytes
    link: int
    token_hash: bytes
    login: Login
    account: Account
    session: int


class GreetRefused(NamedTuple):
    """The token is not valid, or a backend that verifies it did not answer."""

    peer: bytes
    link: int
    code: Code
    sentence: str


class BindingsWritten(NamedTuple):
    """For each binding: False when a higher session number holds it, else the Binding that it replaced, or None."""

    results: Sequence[tuple[Binding, Binding | bool | None]]


class BindingsWriteFailed(NamedTuple):
    """Presence did not answer."""

    bindings: Sequence[Binding]


class TokensRevoked(NamedTuple):
    """The sessions of these bindings greeted with a token that is revoked by now; the bindings were not written."""

    bindings: Sequence[Binding]


class QueuesChecked(NamedTuple):
    """`devices` as in CheckQueues; `through` is the written position by partition; `waiting` have unread rows."""

    devices: Sequence[tuple[int, int, int]]
    through: dict[int, int]
    waiting: set[int]


class QueueClaimed(NamedTuple):
    """`fence` is the fencing token of the claim; None while another connector holds the queue."""

    device: int
    session: int
    fence: int | None


class PageRead(NamedTuple):
    """The next rows of a queue that is claimed."""

    device: int
    session: int
    page: Page


class RowsMarked(NamedTuple):
    """These rows are marked as read."""

    device: int
    session: int
    row_ids: Sequence[int]


class RowMarkingFailed(NamedTuple):
    """Rows were not marked: another connector has claimed the queue (`fenced`), or the database did not answer."""

    device: int
    session: int
    fence: int
    fenced: bool


class QueueFenced(NamedTuple):
    """Another connector has claimed the queue since."""

    device: int
    session: int


class QueuesUnreachable(NamedTuple):
    """The database did not answer the operation that these, as (device, session), had under way."""

    devices: Sequence[tuple[int, int]]


class NotificationReceived(NamedTuple):
    """A wake-up, a kick, or the news that accounts changed."""

    notification: Notification


class AccountsRead(NamedTuple):
    """The accounts as the database has them; a user that was deleted has one without devices and friends."""

    accounts: Sequence[Account]


class AccountsReadFailed(NamedTuple):
    """The database did not answer."""

    users: Sequence[int]


class SecretRead(NamedTuple):
    """The secret of the mesh, with which cookies are made; the shell reads it at the start."""

    secret: bytes


class LeaseLost(NamedTuple):
    """Our lease ended: our bindings do not count, and no writer wakes us up.  `PresenceRecovered` ends that."""


class PresenceRecovered(NamedTuple):
    """Our lease or the presence backend was away, and is back: our bindings in presence may be wrong or gone."""


class StopRequested(NamedTuple):
    """The process received SIGTERM or SIGINT."""


Event = (
    ClientsSent
    | ClientGone
    | TransferSent
    | TransfersDiscovered
    | TransferConnected
    | TransferLost
    | GreetAccepted
    | GreetRefused
    | BindingsWritten
    | BindingsWriteFailed
    | TokensRevoked
    | QueuesChecked
    | QueueClaimed
    | PageRead
    | RowsMarked
    | RowMarkingFailed
    | QueueFenced
    | QueuesUnreachable
    | NotificationReceived
    | AccountsRead
    | AccountsReadFailed
    | SecretRead
    | LeaseLost
    | PresenceRecovered
    | StopRequested
)

# ---------------------------------------------------------------- actions


class SendClient(NamedTuple):
    """Send one frame.  Answered by ClientGone when the client is not connected."""

    peer: bytes
    frame: bytes


class ClosePeer(NamedTuple):
    """End the connection of a client, after the frames that were sent to it before.  Not answered."""

    peer: bytes
    had_session: bool = False


class SendTransfer(NamedTuple):
    """Send one frame; a frame for a transfer that is not connected is dropped."""

    transfer: int
    frame: bytes


class ConnectTransfer(NamedTuple):
    """Answered by TransferConnected or TransferLost."""

    transfer: int


class DisconnectTransfer(NamedTuple):
    """Close the socket at once and drop the frames that are queued in it (LINGER 0)."""

    transfer: int


class CheckGreet(NamedTuple):
    """Answered by GreetAccepted or GreetRefused."""

    peer: bytes
    link: int
    token: bytes
    epoch: int


class BindingRenewal(NamedTuple):
    """A binding with all devices of its user, and the SHA-256 of the token with which its session greeted."""

    binding: Binding
    devices: tuple[int, ...]
    token_hash: bytes


class WriteBindings(NamedTuple):
    """Of new sessions.  Answered by BindingsWritten or BindingsWriteFailed.

    Where the token was revoked after it was verified, TokensRevoked comes before BindingsWritten, or soon after it.
    """

    renewals: Sequence[BindingRenewal]


class RenewBindings(NamedTuple):
    """As WriteBindings for each whose token is not revoked; the others are answered by TokensRevoked alone."""

    renewals: Sequence[BindingRenewal]


class EraseBindings(NamedTuple):
    """Not answered: a binding that stays is corrected when the next message for its device arrives."""

    bindings: Sequence[Binding]


class CheckQueues(NamedTuple):
    """Are there unread rows, for each (user, device, session)?  Answered by QueuesChecked or QueuesUnreachable."""

    devices: Sequence[tuple[int, int, int]]


class ClaimQueue(NamedTuple):
    """Answered by QueueClaimed, QueueFenced or QueuesUnreachable."""

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
    """Answered by RowsMarked or RowMarkingFailed."""

    device: int
    session: int
    fence: int
    row_ids: Sequence[int]


class ReleaseQueue(NamedTuple):
    """Not answered: a claim that stays ends with its lease."""

    device: int
    fence: int


class ReadAccounts(NamedTuple):
    """Answered by AccountsRead, from the database and not from a cache, or AccountsReadFailed."""

    users: Sequence[int]


class SendKick(NamedTuple):
    """Have another connector end a session that was replaced.  Not answered."""

    incarnation: int
    kick: Kick


class RecordLastSeen(NamedTuple):
    """Record that these devices are connected now.  Not answered."""

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
    | CheckQueues
    | ClaimQueue
    | ReadPage
    | MarkRead
    | ReleaseQueue
    | ReadAccounts
    | SendKick
    | RecordLastSeen
)
