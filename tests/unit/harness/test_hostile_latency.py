"""Which messages count for the latency of honest clients: those whose ends stay online, by their own will."""

import pytest

from scripts.harness.chaos.hostile.latency import SETTLED_S, Latencies, Percentiles
from scripts.harness.history.format import Record

PHONE, LAPTOP, BOB = "1", "2", "3"


def online(device: str, at: float) -> Record:
    return {"type": "online", "at": at, "device": device}


def sent(message: str, at: float) -> Record:
    return {"type": "send", "at": at, "device": PHONE, "to": "bob", "message": message}


def seen(message: str, at: float, device: str = BOB, user: str = "bob") -> Record:
    return {"type": "seen", "at": at, "device": device, "user": user, "message": message}


def latencies(*records: Record) -> Latencies:
    made = Latencies()
    for record in (online(PHONE, 0.0), online(BOB, 0.0), *records):
        made.add(record)
    return made


def test_a_message_counts_in_the_phase_in_which_it_was_sent() -> None:
    made = latencies(sent("a", 10.0), sent("b", 20.0), seen("b", 20.5), seen("a", 20.1))
    assert made.between(10.0, 20.0) == Percentiles(1, 10_100.0, 10_100.0)
    assert made.between(20.0, 30.0) == Percentiles(1, 500.0, 500.0)
    assert made.between(30.0, 40.0) == Percentiles(0, 0.0, 0.0)


def test_the_first_device_of_the_recipient_counts_and_no_device_of_the_sender() -> None:
    made = latencies(
        online(LAPTOP, 0.0), online("4", 0.0), sent("a", 10.0),
        seen("a", 10.1, LAPTOP, "alice"), seen("a", 10.4, "4"), seen("a", 10.2),
    )  # fmt: skip
    assert made.between(0.0, 20.0) == Percentiles(1, 200.0, 200.0)


@pytest.mark.parametrize("device", [PHONE, BOB])
@pytest.mark.parametrize("kind", ["offline", "killed"])
def test_a_message_does_not_count_when_an_end_left_meanwhile_or_has_just_come(device: str, kind: str) -> None:
    left: Record = {"type": kind, "at": 10.1, "device": device}
    assert latencies(sent("a", 10.0), left, online(device, 10.2), seen("a", 10.3)).between(0.0, 20.0).messages == 0
    come_s = 10.2 + SETTLED_S
    again = latencies(left, online(device, 10.2), sent("a", come_s - 0.1), seen("a", come_s))
    assert again.between(0.0, 20.0).messages == 0
    settled = latencies(left, online(device, 10.2), sent("a", come_s + 0.1), seen("a", come_s + 0.2))
    assert settled.between(0.0, 20.0).messages == 1


def test_a_message_counts_although_the_connection_of_an_end_was_cut_or_it_was_stored() -> None:
    cut: Record = {"type": "note", "at": 10.1, "device": BOB, "connector": None}
    made = latencies(sent("a", 10.0), cut, {**seen("a", 13.0), "stored": True})
    assert made.between(0.0, 20.0) == Percentiles(1, 3_000.0, 3_000.0, cut=1)
    assert made.between(10.2, 20.0).cut == 0


def test_the_slowest_hundredth() -> None:
    records = [each for number in range(200) for each in (sent(str(number), 10.0), seen(str(number), 10.0 + number))]
    assert latencies(*records).between(0.0, 20.0) == Percentiles(200, 100_000.0, 198_000.0)
