"""What the REST service decides, without asking anybody: names, friendship, who may try again when.

Friendship is a table.  A row is how I stand with a peer and what I want; the cell is the
step that gets there, and a missing cell is a refusal:

    state       request    accept     refuse     remove
    (none)      ASK
    removed     ASK
    requested   STAY                             END
    asked       ACCEPT     ACCEPT     END        END
    friends     STAY       STAY                  END

`requested` and `asked` are one row of the database seen from its two ends, so asking
somebody who has asked is saying yes.
"""

import enum
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from meshim.errors import ApiError
from meshim.protocol.names import fold_name, is_device_name
from meshim.wire import rest

PASSWORD_CHARACTERS_MAX = 256
IMPORT_USERS_MAX = 500
"""Of one request: some seconds of hashing on two cores."""


# ---------------------------------------------------------------- refusals


class Problem(NamedTuple):
    """One way to be refused."""

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
    "not_found": Problem(404, "Nothing here"),
    "no_such_user": Problem(404, "No such user"),
    "no_such_relation": Problem(404, "No such relation"),
    "method_not_allowed": Problem(405, "Method not allowed"),
    "name_taken": Problem(409, "Name taken"),
    "not_asked": Problem(409, "No request to answer"),
    "yourself": Problem(409, "That is you"),
    "too_many_devices": Problem(409, "Too many devices"),
    "too_many_relations": Problem(409, "Too many relations"),
    "changed_meanwhile": Problem(409, "Changed meanwhile"),
    "too_large": Problem(413, "Too large"),
    "unsupported_media_type": Problem(415, "Not JSON"),
    "slow_down": Problem(429, "Too many failed logins"),
    "internal": Problem(500, "Internal error"),
    "wrong_master_key": Problem(500, "Wrong master key"),
    "busy": Problem(503, "Busy"),
    "backend_unavailable": Problem(503, "A backend is away"),
}
"""Every `code` the service answers with."""


def refusal(code: str, sentence: str, retry_after_s: float | None = None) -> ApiError:
    """The error to raise for a code of the table."""
    return ApiError(PROBLEMS[code].status, code, sentence, retry_after_s)


def problem(error: ApiError) -> rest.Problem:
    """The body that tells the client."""
    title = PROBLEMS[error.code].title
    return rest.Problem(f"urn:meshim:problem:{error.code}", title, error.status, error.sentence, error.code)


# ---------------------------------------------------------------- what people type


def checked_name(name: str) -> str:
    """The folded name; raises ApiError when nobody can be called that."""
    folded = fold_name(name)
    if folded is None:
        raise refusal(
            "bad_name",
            "A name is 1 to 64 letters a to z, digits, dots, dashes and underscores, and does not begin with a dash.",
        )
    return folded


def check_password(password: str) -> None:
    """Raise ApiError for a new password that cannot be one.  How strong it must be is not ours to say."""
    if not 0 < len(password) <= PASSWORD_CHARACTERS_MAX:
        raise refusal("bad_password", f"A password is 1 to {PASSWORD_CHARACTERS_MAX} characters long.")


def check_device(device: str) -> None:
    """Raise ApiError for what cannot name a device."""
    if not is_device_name(device):
        raise refusal("bad_device", "A device name is 1 to 64 printable characters without spaces around them.")


class ImportPlan:
    """Which users of an import to register, and what to answer about each of them.

    `accepted` are those to register, with folded names, in the order of the request.
    """

    def __init__(self, users: Sequence[rest.Credentials]) -> None:
        """Raises ApiError when there are more than `IMPORT_USERS_MAX`."""
        if len(users) > IMPORT_USERS_MAX:
            raise refusal("too_large", f"Import at most {IMPORT_USERS_MAX} users in one request.")
        self._users = users
        self._refused: dict[int, ApiError] = {}
        self.accepted: list[rest.Credentials] = []
        seen: set[str] = set()
        for place, user in enumerate(users):
            try:
                name = checked_name(user.name)
                check_password(user.password)
                if name in seen:
                    raise refusal("name_taken", f"{name} stands twice in this import.")
            except ApiError as error:
                self._refused[place] = error
            else:
                seen.add(name)
                self.accepted.append(rest.Credentials(name, user.password))

    def answer(self, registered: Iterable[rest.User | None]) -> rest.ImportAnswer:
        """The answer, given what became of `accepted` (None: the name was taken)."""
        outcomes = iter(registered)
        answers = []
        for place, user in enumerate(self._users):
            error = self._refused.get(place)
            made = None if error else next(outcomes)
            if made is None and error is None:
                error = name_taken(user.name)
            answers.append(
                rest.Imported(user.name, code=error.code, detail=error.sentence)
                if error
                else rest.Imported(user.name, made)
            )
        return rest.ImportAnswer(tuple(answers))


def name_taken(name: str) -> ApiError:
    return refusal("name_taken", f"The name {name} is taken: choose another.")


# ---------------------------------------------------------------- friendship


class FriendAction(enum.Enum):
    """What one wants of a peer."""

    REQUEST = enum.auto()
    ACCEPT = enum.auto()
    REFUSE = enum.auto()
    REMOVE = enum.auto()


class Transition(enum.Enum):
    """What the store is asked to do."""

    ASK = enum.auto()
    ACCEPT = enum.auto()
    END = enum.auto()
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
}


def transition(state: str | None, action: FriendAction, peer: str) -> Transition:
    """How to fulfil a wish towards a peer we stand so with (None: not at all); raises ApiError where it cannot be."""
    step = _TRANSITIONS.get((state, action))
    if step is not None:
        return step
    if action is FriendAction.REMOVE:
        raise refusal("no_such_relation", f"You and {peer} are not friends, and neither has asked.")
    if state == "requested":
        raise refusal("not_asked", f"You have asked {peer} already: now it is for {peer} to accept.")
    raise refusal("not_asked", f"{peer} has not asked for your friendship.")


def online_friends(
    friends: Iterable[tuple[rest.User, Iterable[int]]], living: Collection[int]
) -> tuple[rest.PeerPresence, ...]:
    """Who is connected, of (friend, connector incarnations of the bindings), given the incarnations that live."""
    return tuple(
        rest.PeerPresence(peer, any(incarnation in living for incarnation in incarnations))
        for peer, incarnations in friends
    )


# ---------------------------------------------------------------- guessing passwords


class FailureLimit:
    """Refuses more logins after `most` failures for the same key within `window_s`.

    Remembers at most `keys` of them and forgets the longest unchanged first: whoever can fill that
    many tries as many passwords anyway, and pays for each with a connection.
    """

    def __init__(self, most: int = 10, window_s: float = 60.0, keys: int = 10_000) -> None:
        self._most = most
        self._window_s = window_s
        self._keys = keys
        self._failures: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def wait_s(self, key: tuple[str, str], now: float) -> float:
        """How long the key has to wait; 0 when it may try now."""
        since, count = self._failures.get(key, (now, 0))
        return max(0.0, since + self._window_s - now) if count >= self._most else 0.0

    def failed(self, key: tuple[str, str], now: float) -> None:
        """Count a failure.  The window begins with the first one."""
        since, count = self._failures.pop(key, (now, 0))
        if since + self._window_s <= now:
            since, count = now, 0
        self._failures[key] = (since, count + 1)
        if len(self._failures) > self._keys:
            self._failures.popitem(last=False)

    def succeeded(self, key: tuple[str, str]) -> None:
        """The right password clears the key."""
        self._failures.pop(key, None)
