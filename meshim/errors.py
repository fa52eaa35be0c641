"""Every error meshim raises or sends, as one tree.

::

    MeshimError                 sentence
    ├── UsageError              the person who typed the command can correct it (exit code 2)
    │   └── TopologyError       a topology file is wrong; the sentence names the field
    ├── BackendUnavailable      Redis, NATS or the database does not answer; try again later
    │   └── StorageFailed       it answers, and cannot write: its disk is full or broken
    ├── StoreConflict           the row is not as the caller believed (name taken, no such user, fenced off)
    │   ├── Fenced              a process with a higher fencing token took over
    │   ├── DeviceInUse         the device has the epoch of another state file
    │   ├── NoSuchInvite        the invite is unknown, used or over
    │   ├── TooManyKeys         a pair has as many key versions as may be needed
    │   ├── TooManyRelations    one of the two users has as many relations as there may be
    │   ├── TooManyRequests     as many requests for friendship of this user wait as may
    │   └── AskedLately         the last request of this user to this peer ended a short while ago
    ├── SealBroken              sealed bytes were altered, or sealed with another key or for another purpose
    ├── ClientClosed            the client library stopped while a caller waited for it
    ├── PeerError               the peer broke the protocol; carries the code that is sent to it
    ├── Refused                 the peer refused a request; carries the code that it sent
    └── ApiError                the REST service refused a request; carries its status and code

Codes are part of the protocol: `docs/protocol.md` lists them with their numbers.  A bug of meshim is none of these: it
is an AssertionError and ends the process.
"""

import enum
import errno
import os


class Code(enum.IntEnum):
    """The reason of a refusal.  The numbers are part of the protocol and never change."""

    MALFORMED = 1
    """The frame or envelope does not decode, or a field is out of range."""
    VERSION = 2
    """This end does not support the version."""
    NOT_GREETED = 3
    """A frame came before the greeting, or a second greeting."""
    BAD_TOKEN = 4
    """The token is unknown, expired or revoked: log in again."""
    IMPERSONATION = 5
    """The envelope names another user, device or epoch than the session's, or a Hello another incarnation than that of
    its key."""
    NOT_FRIENDS = 6
    """Sender and recipient are not friends."""
    NO_SUCH_RECIPIENT = 7
    """There is no such user, device or destination type."""
    TOO_LARGE = 8
    """The body or the frame is larger than the limit."""
    WINDOW_EXCEEDED = 9
    """More unacknowledged frames than the credit allows."""
    BUSY = 10
    """The mesh cannot take the message now.  The message is valid: submit it again later."""
    REPLACED = 11
    """Another connection of the same device took over the session."""
    LOGGED_OUT = 12
    """The token of this session was revoked."""
    UNRESPONSIVE = 13
    """The device did not acknowledge a frame in time, or was silent for too long."""
    SHUTTING_DOWN = 14
    """This process shuts down: connect to another connector."""
    UNKNOWN_EPOCH = 15
    """This end does not know the link epoch: greet again."""
    QUIT = 16
    """From a client: its user quits, and it does not come back by itself."""
    QUEUE_FULL = 17
    """Too much waits for a device of the recipient.  The message is valid: submit it again later."""


def one_line(error: object) -> str:
    """Return the text of an error, or of a message, on one line and without a final period; its type if it is empty."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def as_sentence(text: str) -> str:
    """Return what a peer said as a sentence of an error: on the wire it has no capital and no period."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def innermost(error: BaseException) -> str:
    """Return the text of the first error of a chain, on one line; for an errno the text of the operating system."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno).lower()
    return one_line(error)


class MeshimError(Exception):
    """The root of every error that meshim raises on purpose.  `sentence` is for people."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class UsageError(MeshimError):
    """The person who typed the command can correct this; the sentence says how."""


class TopologyError(UsageError):
    """A topology is wrong.  The sentence contains the path of the field, such as `$.timers.sweep_s`."""


class BackendUnavailable(MeshimError):
    """Redis, NATS or the database did not answer in time or refused the connection."""


class StorageFailed(BackendUnavailable):
    """NATS or the database answers, but the system refuses its writes: a disk is full, read-only or broken."""


class StoreConflict(MeshimError):
    """The store is not in the state that the call requires; the call changed nothing."""


class Fenced(StoreConflict):
    """A higher fencing token exists: the caller no longer owns the row or partition that it tried to change."""


class DeviceInUse(StoreConflict):
    """The device has logged in with another state file, and this login did not ask to take it over."""


class TooManyKeys(StoreConflict):
    """The pair has as many versions of its content key as there may be, and each may still be needed."""


class NoSuchInvite(StoreConflict):
    """There is no such invite: it is unknown, was used, or is over."""


class TooManyRelations(StoreConflict):
    """One of the two users has as many relations as there may be."""


class TooManyRequests(StoreConflict):
    """As many requests of this user wait for an answer as may."""


class AskedLately(StoreConflict):
    """The last request of this user to this peer ended in vain: the next one has to wait for `wait_s` seconds."""

    def __init__(self, sentence: str, wait_s: float) -> None:
        super().__init__(sentence)
        self.wait_s = wait_s


class SealBroken(MeshimError):
    """Sealed bytes do not open: they were altered, or the key or the associated data is another one."""


class PeerError(MeshimError):
    """The peer broke the protocol.  The link ends with a Close that carries `code` and the sentence."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Refused(MeshimError):
    """The peer refused a request, with `code`."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class ApiError(MeshimError):
    """The REST service refused a request.

    `status` is that of HTTP, `code` that of the problem (`meshim.wire.rest.Problem`), and `retry_after_s` the value of
    Retry-After, or None.
    """

    def __init__(self, status: int, code: str, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status == 429 or self.status >= 500


class ClientClosed(MeshimError):
    """The client was closed, or failed, while a caller waited for it."""
