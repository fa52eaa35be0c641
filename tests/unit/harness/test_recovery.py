"""The recovery times of a chaos run, read from a history."""

from typing import Any

from scripts.harness.chaos.injector import Injection
from scripts.harness.chaos.recovery import RecoveryTimes, by_kind

C1, C2 = "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"


class History:
    """A history, in the order of time."""

    def __init__(self) -> None:
        self.recoveries = RecoveryTimes()
        self._users = {"1": "ann", "2": "ben", "3": "cy"}
        for device, user in self._users.items():
            self.add(0.0, "device", device, user=user)
            self.add(0.0, "online", device)
        self.connector(0.1, "1", C1)
        self.connector(0.1, "2", C2)
        self.connector(0.1, "3", C2)

    def add(self, at: float, kind: str, device: str, **fields: Any) -> None:
        user = self._users[device]
        self.recoveries.add({"type": kind, "at": at, "device": device, "user": user} | fields)

    def connector(self, at: float, device: str, connector: str | None) -> None:
        self.add(at, "note", device, connector=connector)

    def send(self, at: float, device: str, to: str, message: str) -> None:
        self.add(at, "send", device, to=to, message=message)

    def seen(self, at: float, device: str, message: str) -> None:
        self.add(at, "seen", device, message=message)


def killed(kind: str = "kill-connector", endpoint: str | None = C1) -> Injection:
    return Injection(kind, "c1", 10.0, endpoint)


def test_talking_s_is_of_the_last_conversation_with_an_end_on_the_connector() -> None:
    history = History()
    history.send(10.1, "1", "ben", "from it")
    history.send(10.2, "3", "ann", "to it")
    history.send(10.3, "3", "ben", "past it")
    history.seen(11.0, "2", "from it")
    history.seen(11.5, "1", "to it")
    history.seen(14.0, "2", "past it")
    found = history.recoveries.of(killed())
    assert (found.talking_s, found.conversations) == (1.5, 2)
    assert history.recoveries.of(killed("kill-transfer")).talking_s == 4.0


def test_only_the_first_message_after_the_fault_counts() -> None:
    history = History()
    history.send(9.9, "1", "ben", "before")
    history.send(10.1, "1", "ben", "first")
    history.send(10.2, "1", "ben", "second")
    history.send(11.1, "3", "ann", "too late")
    history.seen(10.5, "2", "first")
    for name in ("before", "second"):
        history.seen(20.0, "2", name)
    history.seen(20.0, "1", "too late")
    assert history.recoveries.of(killed()).talking_s == 0.5


def test_a_copy_on_a_device_of_the_sender_is_no_recovery() -> None:
    history = History()
    history.send(10.1, "1", "ben", "m")
    history.seen(10.2, "3", "m")
    history.seen(12.0, "2", "m")
    assert history.recoveries.of(killed()).talking_s == 2.0


def test_a_message_that_is_never_seen_is_no_recovery() -> None:
    history = History()
    history.send(10.1, "1", "ben", "m")
    assert history.recoveries.of(killed()).talking_s == float("inf")


def test_a_conversation_with_an_end_that_disconnected_does_not_count() -> None:
    history = History()
    history.send(10.1, "1", "ben", "m")
    history.send(10.1, "1", "cy", "n")
    history.add(10.2, "offline", "2")
    history.seen(10.5, "3", "n")
    history.add(30.0, "online", "2")
    history.connector(30.1, "2", C2)
    history.seen(31.0, "2", "m")
    found = history.recoveries.of(killed())
    assert (found.talking_s, found.conversations) == (0.5, 1)


def test_moved_s_is_of_the_last_device_on_another_connector() -> None:
    history = History()
    history.connector(10.1, "1", None)
    history.connector(10.4, "1", C2)
    history.connector(10.2, "2", None)
    history.connector(19.0, "2", C1)
    found = history.recoveries.of(killed("term-connector"))
    assert found.moved is not None
    assert (round(found.moved_s or 0, 3), found.moved) == (0.4, 1)


def test_recoveries_are_summed_up_by_kind() -> None:
    history = History()
    history.send(10.1, "1", "ben", "m")
    history.seen(10.5, "2", "m")
    history.connector(10.75, "1", C2)
    injector = [killed(), killed("kill-nats", None), Injection("kill-connector", "c2", 50.0, C2)]
    assert by_kind(history.recoveries.of(injection) for injection in injector) == {
        "kill-connector": {"times": 2, "max": 0.5, "median": 0.5, "moved_max": 0.75, "moved_median": 0.75, "never": 1},
        "kill-nats": {"times": 1, "max": 0.5, "median": 0.5},
    }
