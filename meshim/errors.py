"""Every error meshim raises or sends, as one tree.

::

    MeshimError                 sentence
    ├── UsageError              the person at the keyboard can mend it (exit code 2)
    │   └── TopologyError       a topology file is wrong; `path` says where
    ├── BackendUnavailable      Redis, NATS or the database does not answer; try again later
    ├── StoreConflict           the row is not as the caller believed (name taken, no such user, fenced off)
    │   └── Fenced              somebody with a higher fencing number took over
    ├── SealBroken              sealed bytes were altered, or sealed with another key or for another purpose
    ├── ClientClosed            the client library stopped while something waited for it
    ├── PeerError               the other end broke the protocol; carries the code that is sent to it
    ├── Refused                 the other end refused us; carries the code it sent
    └── ApiError                the REST service refused us; carries its status and code

Codes are the wire's: `docs/protocol.md` lists them with their numbers.  A bug of
ours is none of these: it is an AssertionError and ends the process.
"""

import enum
import errno
import os


class Code(enum.IntEnum):
    """Why something was refused.  The numbers are part of the protocol and never change."""

    MALFORMED = 1
    """The frame or envelope does not decode, or a field is out of range."""
    VERSION = 2
    """The version is not spoken here."""
    NOT_GREETED = 3
    """Data before a greeting, or a greeting that came twice."""
    BAD_TOKEN = 4
    """The token is unknown, expired or revoked: log in again."""
    IMPERSONATION = 5
    """The envelope names another user, device or epoch than the session's."""
    NOT_FRIENDS = 6
    """Sender and recipient are not friends."""
    NO_SUCH_RECIPIENT = 7
    """There is no such user, device or destination type."""
    TOO_LARGE = 8
    """The body or frame is over the limit."""
    WINDOW_EXCEEDED = 9
    """More frames unacknowledged than credit was given for."""
    BUSY = 10
    """The mesh cannot take it now; nothing is wrong with it: send it again later."""
    REPLACED = 11
    """Another connection of the same device took over."""
    LOGGED_OUT = 12
    """The token of this session was revoked."""
    UNRESPONSIVE = 13
    """The device did not acknowledge in time, or was silent for too long."""
    SHUTTING_DOWN = 14
    """This process is leaving: connect to another connector."""
    UNKNOWN_EPOCH = 15
    """The link epoch is not known here: greet again."""


def one_line(said: object) -> str:
    """Return what an error, or its message, says: on one line, without a final period; its type where it is empty."""
    return " ".join(str(said).split()).rstrip(".") or type(said).__name__


def innermost(error: BaseException) -> str:
    """Return the reason at the bottom of a chain of errors, on one line; the system's words where it has an errno."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno).lower()
    return one_line(error)


class MeshimError(Exception):
    """The root: everything meshim raises on purpose."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class UsageError(MeshimError):
    """Something the person who typed the command can mend; the sentence says how."""


class TopologyError(UsageError):
    """A topology is wrong.  The sentence carries the path of the field, as `$.timers.sweep_s`."""


class BackendUnavailable(MeshimError):
    """Redis, NATS or the database did not answer in time or refused the connection."""


class StoreConflict(MeshimError):
    """The store is not in the state the caller asked for; nothing was changed."""


class Fenced(StoreConflict):
    """A higher fencing number exists: the caller no longer owns what it tried to change."""


class SealBroken(MeshimError):
    """What was sealed does not open: altered on the way, another key, or other associated data."""


class PeerError(MeshimError):
    """The other end broke the protocol.  The link ends, and it is told the code and the sentence."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Refused(MeshimError):
    """The other end refused what we asked, with this code."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class ApiError(MeshimError):
    """The REST service refused a request.

    `status` is that of HTTP, `code` the word of the problem (`meshim.wire.rest.Problem`), and
    `retry_after_s` how long the service asks to wait, where it said.
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
    """The client was closed, or failed, while something waited for it."""
