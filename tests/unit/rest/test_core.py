"""The rules of the REST service."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.errors import ApiError
from meshim.protocol.names import fold_name, is_device_name
from meshim.rest import core
from meshim.rest.core import FriendAction, ImportPlan, LoginThrottle, Transition
from meshim.stores.ports import Lease
from meshim.wire import rest
from meshim.wire.rest import Credentials

# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("typed", "folded"),
    [("alice", "alice"), ("Alice", "alice"), ("a.b_c-9", "a.b_c-9"), ("_", "_"), ("X" * 64, "x" * 64)],
)
def test_names_are_folded_to_lower_case(typed: str, folded: str) -> None:
    assert fold_name(typed) == folded
    assert core.checked_name(typed) == folded


@pytest.mark.parametrize(
    "typed", ["", "x" * 65, ".", "..", "a b", "a/b", "ümlaut", "\u212aelvin", "a\n", "a%2f", "İ", "-", "-x"]
)
def test_an_invalid_name_is_refused(typed: str) -> None:
    assert fold_name(typed) is None
    with pytest.raises(ApiError) as refused:
        core.checked_name(typed)
    assert (refused.value.status, refused.value.code) == (400, "bad_name")


@given(st.text(max_size=70))
def test_folding_twice_is_folding_once(typed: str) -> None:
    folded = fold_name(typed)
    assert folded is None or fold_name(folded) == folded


@pytest.mark.parametrize(
    ("device", "fine"),
    [("phone", True), ("Ann's phone", True), ("Ännchen", True), ("x" * 64, True)]
    + [(name, False) for name in ("", "x" * 65, " phone", "phone ", "a\tb", "a\0b", "a\u202eb")],
)
def test_device_names_are_checked(device: str, fine: bool) -> None:
    assert is_device_name(device) is fine
    if not fine:
        with pytest.raises(ApiError, match="device name"):
            core.check_device(device)


@pytest.mark.parametrize("password", ["", "x" * 257])
def test_an_empty_or_long_password_is_refused(password: str) -> None:
    with pytest.raises(ApiError, match="256 characters"):
        core.check_password(password)


# ---------------------------------------------------------------- imports


def test_an_import_answers_every_name_in_order() -> None:
    plan = ImportPlan(
        [
            Credentials("Alice", "1"),
            Credentials("bad name", "2"),
            Credentials("bob", ""),
            Credentials("alice", "3"),
            Credentials("carol", "4"),
        ]
    )
    assert plan.accepted == [Credentials("alice", "1"), Credentials("carol", "4")]
    answer = plan.answer([None, rest.User(7, "carol")])
    assert [(each.name, each.user, each.code) for each in answer.users] == [
        ("Alice", None, "name_taken"),
        ("bad name", None, "bad_name"),
        ("bob", None, "bad_password"),
        ("alice", None, "name_taken"),
        ("carol", rest.User(7, "carol"), ""),
    ]
    assert all(each.detail.endswith(".") for each in answer.users if each.user is None)


def test_an_import_is_bounded() -> None:
    with pytest.raises(ApiError, match="at most 500"):
        ImportPlan([Credentials(f"u{n}", "x") for n in range(501)])


# ---------------------------------------------------------------- friendship


class Pair:
    """Both ends of one relation, changed by transitions as a database does it."""

    def __init__(self) -> None:
        self.states: dict[str, str | None] = {"alice": None, "bob": None}
        """Without blocks."""
        self.blocked_by: set[str] = set()
        self.keys = 0

    def sees(self, me: str) -> str | None:
        return "blocked" if me in self.blocked_by else self.states[me]

    def action(self, me: str, action: FriendAction) -> None:
        peer = "bob" if me == "alice" else "alice"
        match core.transition(self.sees(me), action, peer):
            case Transition.ASK:
                self.states = {me: "requested", peer: "asked"}
            case Transition.ACCEPT:
                self.states = {me: "friends", peer: "friends"}
                self.keys += 1
            case Transition.END:
                self.states = {me: "removed", peer: "removed"}
            case Transition.BLOCK:
                self.blocked_by.add(me)
                if self.states[me] in {"friends", "requested"}:
                    self.states = {me: "removed", peer: "removed"}
            case Transition.UNBLOCK:
                self.blocked_by.remove(me)
            case Transition.NONE:
                pass


@given(st.lists(st.tuples(st.sampled_from(["alice", "bob"]), st.sampled_from(FriendAction))))
def test_friendship_needs_both_users_and_ends_for_both(actions: list[tuple[str, FriendAction]]) -> None:
    pair = Pair()
    for me, action in actions:
        before, blocked_by = dict(pair.states), set(pair.blocked_by)
        try:
            pair.action(me, action)
        except ApiError:
            assert (pair.states, pair.blocked_by) == (before, blocked_by)
            continue
        after = pair.states
        assert sorted(map(str, after.values())) in (
            ["asked", "requested"],
            ["friends", "friends"],
            ["removed", "removed"],
            ["None", "None"],
        )
        if after[me] == "friends" != before[me]:
            assert before[me] == "asked", "the peer must have asked"
        if action in (FriendAction.REMOVE, FriendAction.REFUSE):
            assert after[me] == "removed"
        assert (me in pair.blocked_by) == (action is FriendAction.BLOCK), "a blocker unblocks before anything else"
        assert not (pair.blocked_by and after[me] == "friends")


def test_a_request_to_a_peer_who_has_asked_accepts() -> None:
    pair = Pair()
    pair.action("alice", FriendAction.REQUEST)
    pair.action("bob", FriendAction.REQUEST)
    assert pair.states == {"alice": "friends", "bob": "friends"}
    pair.action("alice", FriendAction.REQUEST)
    pair.action("bob", FriendAction.ACCEPT)
    assert pair.keys == 1, "accepting twice makes no second key"


@pytest.mark.parametrize(
    ("state", "action", "code"),
    [
        (None, FriendAction.ACCEPT, "not_asked"),
        ("requested", FriendAction.ACCEPT, "not_asked"),
        ("requested", FriendAction.REFUSE, "not_asked"),
        ("friends", FriendAction.REFUSE, "not_asked"),
        (None, FriendAction.REMOVE, "no_such_relation"),
        ("removed", FriendAction.REMOVE, "no_such_relation"),
        *((state, FriendAction.UNBLOCK, "not_blocked") for state in (None, "removed", "requested", "asked", "friends")),
        ("blocked", FriendAction.REQUEST, "blocked"),
        ("blocked", FriendAction.ACCEPT, "blocked"),
        ("blocked", FriendAction.REFUSE, "blocked"),
        ("blocked", FriendAction.REMOVE, "blocked"),
    ],
)
def test_a_missing_cell_is_a_refusal(state: str | None, action: FriendAction, code: str) -> None:
    with pytest.raises(ApiError) as refused:
        core.transition(state, action, "bob")
    assert refused.value.code == code
    assert "bob" in refused.value.sentence


# ---------------------------------------------------------------- presence, connectors


def test_friends_are_online_on_living_connectors_only() -> None:
    ann, ben, cid = rest.User(1, "ann"), rest.User(2, "ben"), rest.User(3, "cid")
    found = core.online_friends([(ann, [7, 9]), (ben, [8]), (cid, [])], living={9})
    assert [(each.peer.name, each.online) for each in found] == [("ann", True), ("ben", False), ("cid", False)]


def test_connectors_with_one_endpoint_and_key_are_one_entry() -> None:
    """Those behind a load balancer.  Another key at the same endpoint, or no key, is another entry."""
    balancer, key = "tcp://chat.example:5000", "k" * 40

    def lease(name: str, endpoint: str, key: str) -> Lease:
        return Lease("connector", name, incarnation=len(name), endpoint=endpoint, key=key, mesh_key=f"mesh {name}")

    assert core.connector_entries(
        [
            lease("c1", balancer, key),
            lease("c2", "tcp://10.0.0.2:7100", key),
            lease("c3", balancer, key),
            lease("c4", balancer, "j" * 40),
        ]
    ) == (
        rest.Connector("c1,c3", balancer, key),
        rest.Connector("c2", "tcp://10.0.0.2:7100", key),
        rest.Connector("c4", balancer, "j" * 40),
    )
    assert core.connector_entries([]) == ()


# ---------------------------------------------------------------- problems


def test_every_problem_is_as_in_rfc_9457() -> None:
    for code, (status, title) in core.PROBLEMS.items():
        body = core.problem(core.refusal(code, "A sentence."))
        assert body == rest.Problem(f"urn:meshim:problem:{code}", title, status, "A sentence.", code)


# ---------------------------------------------------------------- guessing

ALICE = ("alice", "127.0.0.1")


def attempt(throttle: LoginThrottle, key: tuple[str, str], now: float, *, right: bool = False) -> float:
    """Try a password; return how long the key has to wait, and nothing else happened, or 0."""
    wait_s = throttle.begin(key, now)
    if not wait_s:
        if right:
            throttle.succeeded(key)
        else:
            throttle.failed(key, now)
        throttle.end(key)
    return wait_s


def test_a_key_with_too_many_failures_has_to_wait() -> None:
    throttle = LoginThrottle(failures_max=3, window_s=60.0)
    assert [attempt(throttle, ALICE, now) for now in (0.0, 10.0, 20.0)] == [0.0, 0.0, 0.0]
    assert attempt(throttle, ALICE, 20.0) == 40.0
    assert attempt(throttle, ("bob", "127.0.0.1"), 20.0) == 0.0
    assert attempt(throttle, ("alice", "10.0.0.1"), 20.0) == 0.0, "another address must still be able to log in"
    assert attempt(throttle, ALICE, 61.0) == 0.0
    assert attempt(throttle, ALICE, 61.0) == 0.0, "a new window"


def test_the_right_password_clears_the_failures() -> None:
    throttle = LoginThrottle(failures_max=2)
    assert not attempt(throttle, ALICE, 0.0)
    assert not attempt(throttle, ALICE, 0.0, right=True)
    assert not attempt(throttle, ALICE, 1.0)
    assert not attempt(throttle, ALICE, 1.0)


def test_the_number_of_remembered_keys_is_bounded() -> None:
    throttle = LoginThrottle(failures_max=1, keys_max=3)
    for number in range(4):
        attempt(throttle, (f"user{number}", ""), 0.0)
    assert [throttle.begin((f"user{number}", ""), 0.0) > 0 for number in range(4)] == [False, True, True, True]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=60))
def test_no_more_are_checked_than_may_fail(steps: list[tuple[int, int]]) -> None:
    """However many begin at once: within one window, all of them wrong."""
    throttle, under_way, checked = LoginThrottle(failures_max=10), 0, 0
    for begins, ends in steps:
        for _ in range(begins):
            begun = not throttle.begin(ALICE, 0.0)
            under_way, checked = under_way + begun, checked + begun
        for _ in range(min(ends, under_way)):
            throttle.failed(ALICE, 0.0)
            throttle.end(ALICE)
            under_way -= 1
        assert checked <= 10


def test_those_that_are_given_up_do_not_count() -> None:
    throttle = LoginThrottle(failures_max=2)
    for _ in range(20):
        assert not throttle.begin(ALICE, 0.0)
        throttle.end(ALICE)
