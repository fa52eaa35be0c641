"""How soon people talk again after a fault, out of a history: who counts, and until when."""

from typing import Any

from scripts.harness.chaos.injector import Strike
from scripts.harness.chaos.recovery import Recoveries, by_kind

C1, C2 = "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"


class Story:
    """A history, told in order."""

    def __init__(self) -> None:
        self.recoveries = Recoveries()
        self._users = {"1": "ann", "2": "ben", "3": "cy"}
        for device, user in self._users.items():
            self.tell(0.0, "device", device, user=user)
            self.tell(0.0, "online", device)
        self.at(0.1, "1", C1)
        self.at(0.1, "2", C2)
        self.at(0.1, "3", C2)

    def tell(self, at: float, kind: str, device: str, **fields: Any) -> None:
        user = self._users[device]
        self.recoveries.take({"type": kind, "at": at, "device": device, "user": user} | fields)

    def at(self, at: float, device: str, connector: str | None) -> None:
        self.tell(at, "note", device, connector=connector)

    def send(self, at: float, device: str, to: str, message: str) -> None:
        self.tell(at, "send", device, to=to, message=message)

    def seen(self, at: float, device: str, message: str) -> None:
        self.tell(at, "seen", device, message=message)


def killed(kind: str = "kill-connector", endpoint: str | None = C1) -> Strike:
    return Strike(kind, "c1", 10.0, endpoint)


def test_talking_is_over_with_the_last_conversation_of_either_end() -> None:
    story = Story()
    story.send(10.1, "1", "ben", "from it")
    story.send(10.2, "3", "ann", "to it")
    story.send(10.3, "3", "ben", "past it")
    story.seen(11.0, "2", "from it")
    story.seen(11.5, "1", "to it")
    story.seen(14.0, "2", "past it")
    found = story.recoveries.of(killed())
    assert (found.talking_s, found.conversations) == (1.5, 2)
    assert story.recoveries.of(killed("kill-transfer")).talking_s == 4.0


def test_the_first_message_after_the_signal_counts_and_no_other() -> None:
    story = Story()
    story.send(9.9, "1", "ben", "before")
    story.send(10.1, "1", "ben", "first")
    story.send(10.2, "1", "ben", "second")
    story.send(11.1, "3", "ann", "too late")
    story.seen(10.5, "2", "first")
    for name in ("before", "second"):
        story.seen(20.0, "2", name)
    story.seen(20.0, "1", "too late")
    assert story.recoveries.of(killed()).talking_s == 0.5


def test_what_another_device_of_the_sender_shows_is_no_delivery() -> None:
    story = Story()
    story.send(10.1, "1", "ben", "m")
    story.seen(10.2, "3", "m")
    story.seen(12.0, "2", "m")
    assert story.recoveries.of(killed()).talking_s == 2.0


def test_what_is_never_seen_is_never_over() -> None:
    story = Story()
    story.send(10.1, "1", "ben", "m")
    assert story.recoveries.of(killed()).talking_s == float("inf")


def test_whoever_goes_away_by_itself_says_nothing() -> None:
    story = Story()
    story.send(10.1, "1", "ben", "m")
    story.send(10.1, "1", "cy", "n")
    story.tell(10.2, "offline", "2")
    story.seen(10.5, "3", "n")
    story.tell(30.0, "online", "2")
    story.at(30.1, "2", C2)
    story.seen(31.0, "2", "m")
    found = story.recoveries.of(killed())
    assert (found.talking_s, found.conversations) == (0.5, 1)


def test_moving_is_over_when_the_last_device_is_elsewhere() -> None:
    story = Story()
    story.at(10.1, "1", None)
    story.at(10.4, "1", C2)
    story.at(10.2, "2", None)
    story.at(19.0, "2", C1)
    found = story.recoveries.of(killed("term-connector"))
    assert found.moved is not None
    assert (round(found.moved_s or 0, 3), found.moved) == (0.4, 1)


def test_kinds_are_summed_up() -> None:
    story = Story()
    story.send(10.1, "1", "ben", "m")
    story.seen(10.5, "2", "m")
    story.at(10.75, "1", C2)
    strikes = [killed(), killed("kill-nats", None), Strike("kill-connector", "c2", 50.0, C2)]
    assert by_kind(story.recoveries.of(strike) for strike in strikes) == {
        "kill-connector": {"times": 2, "max": 0.5, "median": 0.5, "moved_max": 0.75, "moved_median": 0.75, "never": 1},
        "kill-nats": {"times": 1, "max": 0.5, "median": 0.5},
    }
