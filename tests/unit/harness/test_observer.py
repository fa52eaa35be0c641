"""The observer of a chaos run reads journals that several processes append to, at any moment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scripts.harness.chaos.observer import Observer
from scripts.harness.chaos.users import ClientsConfig, DeviceConfig

ANN, BEN, LAPTOP = "1", "2", "3"


class Files:
    """Two processes: ann's phone and ben's laptop are in the first, ben's phone in the second."""

    def __init__(self, folder: Path, minimal: Sequence[DeviceConfig] = ()) -> None:
        devices = (
            DeviceConfig("ann", "phone", "", 0, ANN),
            DeviceConfig("ben", "phone", "", 1, BEN),
            DeviceConfig("ben", "laptop", "", 0, LAPTOP),
        )
        self.config = ClientsConfig(
            api="", password="", start=0.0, seed=1, rate=1.0, journals=str(folder), friends={}, devices=devices
        )
        self.observer = Observer(self.config, 2, minimal)
        self._clock = 0.0

    def append(self, process: int, kind: str, **fields: Any) -> None:
        self._clock += 1.0
        line = msgspec.json.encode({"type": kind, "at": self._clock, **fields}) + b"\n"
        with self.config.journal_of(process).open("ab") as file:
            file.write(line)

    def send(self, message: str) -> None:
        self.append(0, "send", user="ann", device=ANN, to="ben", message=message)

    def outcome(self, message: str, outcome: str) -> None:
        self.append(0, "outcome", message=message, outcome=outcome)

    def seen(self, process: int, device: str, message: str) -> None:
        self.append(process, "seen", user="ben", device=device, message=message)

    @property
    def open(self) -> set[str]:
        self.observer.catch_up()
        return set(self.observer.open)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_message_is_open_until_it_is_settled_and_seen_by_every_device(files: Files) -> None:
    files.send("m")
    assert files.open == {"m"}
    files.seen(1, BEN, "m")
    files.outcome("m", "sent")
    assert files.open == {"m"}
    files.seen(0, LAPTOP, "m")
    assert files.open == set()
    assert files.observer.sent == 1
    assert files.observer.max_settle_s == 2.0


def test_a_message_that_is_seen_before_its_send_is_read_counts_as_seen(files: Files) -> None:
    files.seen(1, BEN, "m")
    assert files.open == set()
    files.send("m")
    files.outcome("m", "sent")
    files.seen(0, LAPTOP, "m")
    assert files.open == set()


def test_an_incomplete_line_is_read_once_it_is_complete(files: Files) -> None:
    files.send("m")
    path = files.config.journal_of(0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert files.open == set()
    path.write_bytes(whole)
    assert files.open == {"m"}


def test_a_rejected_message_is_not_open(files: Files) -> None:
    files.send("m")
    files.outcome("m", "rejected")
    assert files.open == set()


def test_a_message_in_doubt_is_open_once_a_device_has_seen_it(files: Files) -> None:
    files.send("m")
    files.append(0, "killed", user="ann", device=ANN)
    assert files.open == set()
    files.seen(1, BEN, "m")
    assert files.open == {"m"}
    files.seen(0, LAPTOP, "m")
    assert files.open == set()


def test_a_queued_message_stays_open_after_a_kill(files: Files) -> None:
    files.send("m")
    files.outcome("m", "queued")
    files.append(0, "killed", user="ann", device=ANN)
    assert files.open == {"m"}


def test_a_sender_that_was_offline_does_not_count_for_the_settle_time(files: Files) -> None:
    files.send("m")
    files.append(0, "offline", user="ann", device=ANN)
    files.append(0, "online", user="ann", device=ANN)
    files.outcome("m", "sent")
    assert files.open == {"m"}
    assert files.observer.max_settle_s == 0.0


def test_online_and_connected_devices_are_known(files: Files) -> None:
    files.append(0, "online", user="ann", device=ANN)
    files.append(0, "note", user="ann", device=ANN, connector="tcp://127.0.0.1:1")
    files.append(1, "online", user="ben", device=BEN)
    files.append(1, "note", user="ben", device=BEN, problem="the client ended: so it goes")
    files.observer.catch_up()
    assert files.observer.online == {0: {ANN}, 1: {BEN}}
    assert files.observer.connected == {ANN}
    assert files.observer.problems == ["ben: the client ended: so it goes"]
    files.append(0, "killed", user="ann", device=ANN)
    files.append(1, "offline", user="ben", device=BEN)
    files.observer.catch_up()
    assert (files.observer.online, files.observer.connected) == ({0: set(), 1: set()}, set())


def test_minimal_clients_await_that_a_queued_message_is_read(tmp_path: Path) -> None:
    minimal = (DeviceConfig("ann", "phone", "", 0, ANN), DeviceConfig("ben", "phone", "", 1, BEN))
    files = Files(tmp_path, minimal)
    observer = files.observer
    files.send("m")
    files.outcome("m", "queued")
    files.send("doubtful")  # the client is killed before it says that it has it
    files.append(0, "killed", user="ann", device=ANN)
    observer.catch_up()
    assert observer.unread == {"m"}
    files.outcome("m", "sent")
    files.seen(1, BEN, "m")
    files.seen(0, LAPTOP, "m")
    observer.catch_up()
    assert (len(observer.open), observer.awaited) == (0, 1)
    files.outcome("m", "read")
    observer.catch_up()
    assert observer.awaited == 0


def test_the_client_library_marks_few_messages_as_read_and_awaits_none(files: Files) -> None:
    files.send("m")
    files.outcome("m", "queued")
    files.observer.catch_up()
    assert files.observer.unread == set()
