"""Cookies: they open for their stream alone, and never lose a position that a copy must not overtake."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.connector.cookies import POSITIONS_MAX, StoredPositions, make_cookie, read_cookie
from meshim.wire.bounds import Positions
from meshim.wire.codec import encode
from meshim.wire.envelope import Destination, DestinationType, Stream

SECRET = bytes(range(32))
ALICE, BOB = 1, 2
TO = Destination(DestinationType.USER, BOB)
STREAM = Stream(ALICE, 11, 5, TO)
POSITIONS: Positions = ((ALICE, 12, 3), (BOB, 0, 7))
PHONE, LAPTOP, TABLET, OWN = (BOB, 21), (BOB, 22), (BOB, 23), (ALICE, 12)

thorough = settings(max_examples=300)


# ---------------------------------------------------------------- authentic for one stream


def test_a_cookie_opens_for_its_stream() -> None:
    assert read_cookie(SECRET, STREAM, make_cookie(SECRET, STREAM, POSITIONS)) == POSITIONS
    assert make_cookie(SECRET, STREAM, ()) == b""


@pytest.mark.parametrize(
    "stream",
    [
        Stream(BOB, 11, 5, TO),
        Stream(ALICE, 12, 5, TO),
        Stream(ALICE, 11, 6, TO),
        Stream(ALICE, 11, 5, Destination(DestinationType.USER, 3)),
        Stream(ALICE, 11, 5, Destination(DestinationType.GROUP, BOB)),
        Stream(ALICE, 11, 5, Destination(DestinationType.USER, BOB, 1)),
    ],
)
def test_a_cookie_does_not_open_for_another_stream(stream: Stream) -> None:
    assert read_cookie(SECRET, stream, make_cookie(SECRET, STREAM, POSITIONS)) is None


def test_a_cookie_does_not_open_under_another_secret() -> None:
    assert read_cookie(bytes(32), STREAM, make_cookie(SECRET, STREAM, POSITIONS)) is None


@thorough
@given(st.binary(max_size=1_024))
def test_what_was_made_up_does_not_open(cookie: bytes) -> None:
    assert read_cookie(SECRET, STREAM, cookie) is None


def test_a_cookie_does_not_open_when_any_bit_changes() -> None:
    cookie = make_cookie(SECRET, STREAM, POSITIONS)
    for bit in range(8 * len(cookie)):
        changed = bytearray(cookie)
        changed[bit // 8] ^= 1 << bit % 8
        assert read_cookie(SECRET, STREAM, bytes(changed)) is None
    for size in range(len(cookie)):
        assert read_cookie(SECRET, STREAM, cookie[:size]) is None


def test_an_authentic_cookie_that_does_not_decode_does_not_open() -> None:
    strange: Positions = (encode("of another version"),)  # type: ignore[assignment]  # not what this version makes
    assert read_cookie(SECRET, STREAM, make_cookie(SECRET, STREAM, strange)) is None


def test_the_largest_cookie_is_within_its_bound() -> None:
    largest = tuple((2**63 - 1, 2**63 - 1 - n, 2**63 - 1) for n in range(POSITIONS_MAX))
    assert len(make_cookie(SECRET, STREAM, largest)) <= 1_024


# ---------------------------------------------------------------- the positions


def test_the_highest_position_of_each_copy_counts() -> None:
    stored = StoredPositions()
    assert stored.stored(TO, (PHONE, OWN), 5, ()) == ((*OWN, 5), (*PHONE, 5))
    assert stored.stored(TO, (PHONE,), 4, ((*OWN, 9),)) == ((*OWN, 9), (*PHONE, 5))
    assert stored.stored(TO, (PHONE,), 6, ()) == ((*OWN, 5), (*PHONE, 6)), "the submit did not carry the 9"


def test_a_position_for_all_devices_covers_the_lower_ones_of_each() -> None:
    stored = StoredPositions()
    stored.stored(TO, (PHONE,), 5, ())
    assert stored.stored(TO, ((BOB, 0),), 6, ()) == ((BOB, 0, 6),)
    assert stored.stored(TO, (LAPTOP,), 7, ()) == ((BOB, 0, 6), (*LAPTOP, 7))


def test_what_a_device_has_synced_is_forgotten() -> None:
    stored = StoredPositions()
    stored.stored(TO, (PHONE,), 5, ())
    assert stored.delivered(TO, (PHONE,), (PHONE,), ()) == ((*PHONE, 5),), "the message was sent before it was stored"
    assert stored.delivered(TO, (LAPTOP,), (PHONE, LAPTOP), ((*PHONE, 5),)) == ((*PHONE, 5),), "another device"
    assert len(stored.streams) == 1
    assert stored.delivered(TO, (PHONE,), (PHONE,), ((*PHONE, 5), (*OWN, 2))) == ((*OWN, 2),)
    assert len(stored.streams) == 0


def test_a_position_for_all_devices_goes_on_for_those_that_have_not_synced_it() -> None:
    stored = StoredPositions()
    stored.stored(TO, ((BOB, 0),), 5, ())
    after: Positions = ((BOB, 0, 5),)
    assert stored.delivered(TO, (PHONE,), ((BOB, 0),), after) == after, "which devices there are is not known"
    assert stored.delivered(TO, (PHONE,), (PHONE, LAPTOP, OWN), after) == ((*LAPTOP, 5),)
    assert stored.delivered(TO, (PHONE, LAPTOP), (PHONE, LAPTOP, OWN), ((*LAPTOP, 5),)) == ()
    assert len(stored.streams) == 0


def test_positions_of_many_devices_become_one_for_all_of_each_user() -> None:
    stored = StoredPositions()
    for device in range(1, POSITIONS_MAX):
        positions = stored.stored(TO, ((BOB, device),), 100 + device, ((*OWN, 7),))
    assert len(positions) == POSITIONS_MAX
    assert stored.stored(TO, ((BOB, POSITIONS_MAX),), 99, ((*OWN, 7),)) == (
        (ALICE, 0, 7),
        (BOB, 0, 100 + POSITIONS_MAX - 1),
    )


class Sending(RuleBasedStateMachine):
    """One stream of a client that connects again and again, and what each device has stored and synced.

    Outcomes come in any order, for submits with old cookies too, and are lost.
    """

    DEVICES = (PHONE, LAPTOP, TABLET, OWN)

    def __init__(self) -> None:
        super().__init__()
        self.position = 0
        self.synced = dict.fromkeys(self.DEVICES, 0)
        self.told = dict.fromkeys(self.DEVICES, 0)
        """The highest position that the client was told, for each device."""
        self.in_table = dict.fromkeys(self.DEVICES, 0)
        """The same, with what was stored in this session and not told yet."""
        self.cookie = b""
        self.session = StoredPositions()
        self.submits: list[bytes] = [b""]
        """The cookies of the submits in this session."""

    def _after(self, submit: int) -> Positions:
        cookie = self.submits[submit % len(self.submits)]
        positions = read_cookie(SECRET, STREAM, cookie) if cookie else ()
        assert positions is not None
        return positions

    def _tell(self, positions: Positions, *, lost: bool) -> None:
        if lost:
            return
        self.cookie = make_cookie(SECRET, STREAM, positions)
        self.told = {device: max(at, self.told[device]) for device, at in self.in_table.items()}

    @rule()
    def submit(self) -> None:
        self.submits.append(self.cookie)

    @rule(
        submit=st.integers(0, 50), done=st.sets(st.sampled_from((*DEVICES, (BOB, 0))), min_size=1), lost=st.booleans()
    )
    def store(self, submit: int, done: set[tuple[int, int]], lost: bool) -> None:
        self.position += 1
        for copy in done:
            for device in self.DEVICES:
                if device == copy or copy == (device[0], 0):
                    self.in_table[device] = self.position
        self._tell(self.session.stored(TO, tuple(done), self.position, self._after(submit)), lost=lost)

    @rule(submit=st.integers(0, 50), device=st.sampled_from(DEVICES), lost=st.booleans())
    def deliver(self, submit: int, device: tuple[int, int], lost: bool) -> None:
        after = self._after(submit)
        for user, number, position in after:  # the connector has waited for that
            if (user, number) in (device, (device[0], 0)):
                self.synced[device] = max(position, self.synced[device])
        self._tell(self.session.delivered(TO, (device,), self.DEVICES, after), lost=lost)

    @precondition(lambda self: self.position)
    @rule()
    def connect_again(self) -> None:
        self.session = StoredPositions()
        self.in_table = dict(self.told)
        self.submits = [self.cookie]

    @invariant()
    def the_cookie_has_every_position_that_was_told_and_is_not_synced(self) -> None:
        positions = read_cookie(SECRET, STREAM, self.cookie) if self.cookie else ()
        assert positions is not None
        for device in self.DEVICES:
            held = max((at for u, d, at in positions if (u, d) in (device, (device[0], 0))), default=0)
            assert held >= self.told[device] or self.told[device] <= self.synced[device]
            assert held <= self.position


Sending.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestSending = Sending.TestCase
