"""The rules of the REST service: names, friendship, rates of requests.  Pure.

Friendship is a table: the row is the state of my relation to a peer, the column is what I ask for, and the cell is the
transition.  A missing cell is a refusal:

    state       REQUEST    ACCEPT     REFUSE     REMOVE     BLOCK      UNBLOCK
    (none)      ASK                                         BLOCK
    removed     ASK                                         BLOCK
    requested   NONE                             END        BLOCK
    asked       ACCEPT     ACCEPT     END        END        BLOCK
    friends     NONE       NONE                  END        BLOCK
    blocked                                                 NONE       UNBLOCK

`requested` and `asked` are one database row, seen from its two ends.  So a request to a peer who has asked already
accepts the peer's request.  `blocked` is seen from the end of the blocker alone: the peer goes on in the other rows, as
if the blocker had removed the friendship, withdrawn the request, or not answered.
"""

import enum
import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from meshim.errors import ApiError
from meshim.protocol.names import fold_name, is_device_name
from meshim.stores.ports import Lease
from meshim.wire import rest

PASSWORD_CHARACTERS_MAX = 256
IMPORT_USERS_MAX = 500
"""In one request: they take some seconds of hashing on two cores."""
PRESENCE_IDS_MAX = 100
"""In one request: a URL of these is shorter than 4 KiB."""


# ---------------------------------------------------------------- refusals


class Problem(NamedTuple):
    """The HTTP status of a code, and a title for people (RFC 9457)."""

    status: int
    title: str


PROBLEMS = {
    "malformed": Problem(400, "The request cannot be read"),
    "bad_name": Problem(400, "Not a name"),
    "bad_password": Problem(400, "Not a password"),
    "bad_device": Problem(400, "Not a device name"),
    "bad_credentials": Problem(401, "Wrong name or password"),
    "bad_token": Problem(401, "Not logged in"),
    "forbidden": Problem(403, "Not allowed"),
    "registration_closed": Problem(403, "Registration is closed"),
    "bad_invite": Problem(403, "No valid invite"),
    "not_found": Problem(404, "Nothing here"),
    "no_such_user": Problem(404, "No such user"),
    "no_such_relation": Problem(404, "No such relation"),
    "method_not_allowed": Problem(405, "Method not allowed"),
    "too_slow": Problem(408, "Too slow"),
    "name_taken": Problem(409, "Name taken"),
    "not_asked": Problem(409, "No request to answer"),
    "blocked": Problem(409, "You have blocked this user"),
    "not_blocked": Problem(409, "Not blocked"),
    "device_in_use": Problem(409, "Device in use"),
    "yourself": Problem(409, "That is you"),
    "too_many_devices": Problem(409, "Too many devices"),
    "too_many_relations": Problem(409, "Too many relations"),
    "too_many_requests": Problem(409, "Too many requests without an answer"),
    "too_many_friendships": Problem(409, "Too many friendships of the same two users"),
    "changed_meanwhile": Problem(409, "Changed meanwhile"),
    "too_large": Problem(413, "Too large"),
    "unsupported_media_type": Problem(415, "Not JSON"),
    "slow_down": Problem(429, "Too many requests"),
    "asked_lately": Problem(429, "Asked a short while ago"),
    "headers_too_large": Problem(431, "Headers too large"),
    "internal": Problem(500, "Internal error"),
    "wrong_master_key": Problem(500, "Wrong master key"),
    "busy": Problem(503, "Busy"),
    "backend_unavailable": Problem(503, "A backend is away"),
}
"""Every `code` that the service answers with; `docs/rest.md` lists the same."""


def refusal(code: str, sentence: str, retry_after_s: float | None = None) -> ApiError:
    """Return the error to raise for a code of `PROBLEMS`."""
    return ApiError(PROBLEMS[code].status, code, sentence, retry_after_s)


def bad_token() -> ApiError:
    """Return the error to raise for a token that is not valid."""
    return refusal("bad_token", "The token is unknown or has ended: log in again.")


def problem(error: ApiError) -> rest.Problem:
    """Return the body of the answer for an error."""
    title = PROBLEMS[error.code].title
    return rest.Problem(f"urn:meshim:problem:{error.code}", title, error.status, error.sentence, error.code)


# ---------------------------------------------------------------- names and passwords


def checked_name(name: str) -> str:
    """Return the name in lower case.  Raises ApiError when it is no valid name."""
    folded = fold_name(name)
    if folded is None:
        raise refusal(
            "bad_name",
            "A name is 1 to 64 letters a to z, digits, dots, dashes and underscores, and does not begin with a dash.",
        )
    return folded


def check_password(password: str) -> None:
    """Raise ApiError when a new password is empty or too long.  There is no rule about its strength."""
    if not 0 < len(password) <= PASSWORD_CHARACTERS_MAX:
        raise refusal("bad_password", f"A password is 1 to {PASSWORD_CHARACTERS_MAX} characters long.")


def check_device(device: str) -> None:
    """Raise ApiError when this is no valid device name."""
    if not is_device_name(device):
        raise refusal("bad_device", "A device name is 1 to 64 printable characters without spaces around them.")


class ImportPlan:
    """Which users of an import to register, and the answer for each.

    `accepted` are those to register, with names in lower case, in the order of the request.
    """

    def __init__(self, users: Sequence[rest.Credentials]) -> None:
        """Raises ApiError when there are more than `IMPORT_USERS_MAX`."""
        if len(users) > IMPORT_USERS_MAX:
            raise refusal("too_large", f"Import at most {IMPORT_USERS_MAX} users in one request.")
        self._users = users
        self._refused: dict[int, ApiError] = {}
        self.accepted: list[rest.Credentials] = []
        seen: set[str] = set()
        for index, user in enumerate(users):
            try:
                name = checked_name(user.name)
                check_password(user.password)
                if name in seen:
                    raise refusal("name_taken", f"{name} stands twice in this import.")
            except ApiError as error:
                self._refused[index] = error
            else:
                seen.add(name)
                self.accepted.append(rest.Credentials(name, user.password))

    def answer(self, registered: Iterable[rest.User | None]) -> rest.ImportAnswer:
        """Return the answer; `registered` holds a result for each of `accepted` (None: the name was taken)."""
        accepted = iter(registered)
        results = []
        for index, user in enumerate(self._users):
            error = self._refused.get(index)
            made = None if error else next(accepted)
            if made is None and error is None:
                error = name_taken(user.name)
            results.append(
                rest.ImportResult(user.name, code=error.code, detail=error.sentence)
                if error
                else rest.ImportResult(user.name, made)
            )
        return rest.ImportAnswer(tuple(results))


def name_taken(name: str) -> ApiError:
    """Return the error for a name that another user has."""
    return refusal("name_taken", f"The name {name} is taken: choose another.")


# ---------------------------------------------------------------- friendship


class FriendAction(enum.Enum):
    """A request of a user that concerns a peer."""

    REQUEST = enum.auto()
    ACCEPT = enum.auto()
    REFUSE = enum.auto()
    REMOVE = enum.auto()
    BLOCK = enum.auto()
    UNBLOCK = enum.auto()


class Transition(enum.Enum):
    """The change that the database makes."""

    ASK = enum.auto()
    ACCEPT = enum.auto()
    END = enum.auto()
    BLOCK = enum.auto()
    UNBLOCK = enum.auto()
    NONE = enum.auto()


_TRANSITIONS: dict[tuple[str | None, FriendAction], Transition] = {
    (None, FriendAction.REQUEST): Transition.ASK,
    ("removed", FriendAction.REQUEST): Transition.ASK,
    ("requested", FriendAction.REQUEST): Transition.NONE,
    ("asked", FriendAction.REQUEST): Transition.ACCEPT,
    ("friends", FriendAction.REQUEST): Transition.NONE,
    ("asked", FriendAction.ACCEPT): Transition.ACCEPT,
    ("friends", FriendAction.ACCEPT): Transition.NONE,
    ("asked", FriendAction.REFUSE): Transition.END,
    ("requested", FriendAction.REMOVE): Transition.END,
    ("asked", FriendAction.REMOVE): Transition.END,
    ("friends", FriendAction.REMOVE): Transition.END,
    (None, FriendAction.BLOCK): Transition.BLOCK,
    ("removed", FriendAction.BLOCK): Transition.BLOCK,
    ("requested", FriendAction.BLOCK): Transition.BLOCK,
    ("asked", FriendAction.BLOCK): Transition.BLOCK,
    ("friends", FriendAction.BLOCK): Transition.BLOCK,
    ("blocked", FriendAction.BLOCK): Transition.NONE,
    ("blocked", FriendAction.UNBLOCK): Transition.UNBLOCK,
}


def transition(state: str | None, action: FriendAction, peer: str) -> Transition:
    """Return the cell of this state of the relation (None: there is none).  Raises ApiError when it is missing."""
    found = _TRANSITIONS.get((state, action))
    if found is not None:
        return found
    if state == "blocked":
        raise refusal("blocked", f"You have blocked {peer}: unblock first.")
    if action is FriendAction.UNBLOCK:
        raise refusal("not_blocked", f"You have not blocked {peer}.")
    if action is FriendAction.REMOVE:
        raise refusal("no_such_relation", f"You and {peer} are not friends, and neither has asked.")
    if state == "requested":
        raise refusal("not_asked", f"You have asked {peer} already: now it is for {peer} to accept.")
    raise refusal("not_asked", f"{peer} has not asked for your friendship.")


def online_friends(
    friends: Iterable[tuple[rest.User, Iterable[int]]], living: Collection[int]
) -> tuple[rest.PeerPresence, ...]:
    """Return the presence of each (friend, incarnations of its connectors), given the incarnations that live."""
    return tuple(
        rest.PeerPresence(peer, any(incarnation in living for incarnation in incarnations))
        for peer, incarnations in friends
    )


def connector_entries(living: Iterable[Lease]) -> tuple[rest.Connector, ...]:
    """Return one entry for each address: behind a load balancer connectors have it in common (adr/0037)."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for lease in living:
        names.setdefault((lease.endpoint, lease.key, lease.url), []).append(lease.name)
    return tuple(rest.Connector(",".join(behind), *address) for address, behind in names.items())


# ---------------------------------------------------------------- times


def in_words(seconds: float) -> str:
    """Return a time to wait in the largest unit that it is twice, rounded up."""
    for unit, unit_s in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds > 2 * unit_s:
            return f"{math.ceil(seconds / unit_s)} {unit}"
    return f"{math.ceil(seconds)} s"
