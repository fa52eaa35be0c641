"""Typing is sent now and then, and shown until it stops."""

from meshim.client.events import TypingChanged
from meshim.client.streams.typing_state import TypingState

BOB, CAROL = 2, 3


def test_it_is_sent_once_in_three_seconds_to_each_friend_and_anew_after_a_message() -> None:
    state = TypingState(3.0, 6.0)
    assert [state.may_send(BOB, 0.0), state.may_send(BOB, 2.9), state.may_send(CAROL, 2.9)] == [True, False, True]
    assert [state.may_send(BOB, 3.0), state.may_send(BOB, 3.1)] == [True, False]
    state.composed(BOB)
    assert state.may_send(BOB, 3.2)
    assert state.may_send(CAROL, 100.0)
    assert len(state._sent) == 1, "those that are over are forgotten"


def test_it_is_shown_once_and_ends_when_it_is_not_repeated() -> None:
    state = TypingState(3.0, 6.0)
    assert state.next_deadline() is None
    assert state.start(BOB, 0.0) == [TypingChanged(BOB, typing=True)]
    assert state.start(CAROL, 1.0) == [TypingChanged(CAROL, typing=True)]
    assert state.start(BOB, 3.0) == []
    assert state.next_deadline() == 7.0
    assert state.tick(6.9) == []
    assert state.tick(7.0) == [TypingChanged(CAROL, typing=False)]
    assert (state.stop(BOB), state.stop(BOB)) == ([TypingChanged(BOB, typing=False)], [])
    assert state.next_deadline() is None
