"""What a chaos run waits for: read from files that several processes append to, at any moment."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from scripts.harness.chaos.observer import Follower
from scripts.harness.chaos.users import Cast, Part

ANN, BEN, LAPTOP = "1", "2", "3"


class Files:
    """Two processes: ann's phone and ben's laptop are in the first, ben's phone in the second."""

    def __init__(self, folder: Path) -> None:
        parts = (
            Part("ann", "phone", "", 0, ANN),
            Part("ben", "phone", "", 1, BEN),
            Part("ben", "laptop", "", 0, LAPTOP),
        )
        self.cast = Cast("", "", 0.0, 1, 1.0, str(folder), {}, parts)
        self.follower = Follower(self.cast, 2)
        self._clock = 0.0

    def append(self, process: int, kind: str, **fields: Any) -> None:
        self._clock += 1.0
        line = msgspec.json.encode({"type": kind, "at": self._clock, **fields}) + b"\n"
        with self.cast.file_of(process).open("ab") as file:
            file.write(line)

    def send(self, message: str) -> None:
        self.append(0, "send", user="ann", device=ANN, to="ben", message=message)

    def outcome(self, message: str, outcome: str) -> None:
        self.append(0, "outcome", message=message, outcome=outcome)

    def seen(self, process: int, device: str, message: str) -> None:
        self.append(process, "seen", user="ben", device=device, message=message)

    @property
    def open(self) -> set[str]:
        self.follower.catch_up()
        return set(self.follower.open)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_message_is_under_way_until_it_is_settled_and_seen_by_everybody(files: Files) -> None:
    files.send("m")
    assert files.open == {"m"}
    files.seen(1, BEN, "m")
    files.outcome("m", "sent")
    assert files.open == {"m"}
    files.seen(0, LAPTOP, "m")
    assert files.open == set()
    assert files.follower.sent == 1
    assert files.follower.max_settle_s == 2.0


def test_what_is_seen_before_its_send_is_read_counts(files: Files) -> None:
    files.seen(1, BEN, "m")
    assert files.open == set()
    files.send("m")
    files.outcome("m", "sent")
    files.seen(0, LAPTOP, "m")
    assert files.open == set()


def test_a_line_that_is_being_written_is_read_when_it_is_whole(files: Files) -> None:
    files.send("m")
    path = files.cast.file_of(0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert files.open == set()
    path.write_bytes(whole)
    assert files.open == {"m"}


def test_what_was_rejected_is_not_waited_for(files: Files) -> None:
    files.send("m")
    files.outcome("m", "rejected")
    assert files.open == set()


def test_what_send_may_not_have_taken_is_waited_for_once_somebody_saw_it(files: Files) -> None:
    files.send("m")
    files.append(0, "killed", user="ann", device=ANN)
    assert files.open == set()
    files.seen(1, BEN, "m")
    assert files.open == {"m"}
    files.seen(0, LAPTOP, "m")
    assert files.open == set()


def test_what_send_had_taken_is_waited_for_also_after_a_kill(files: Files) -> None:
    files.send("m")
    files.outcome("m", "queued")
    files.append(0, "killed", user="ann", device=ANN)
    assert files.open == {"m"}


def test_a_sender_that_was_away_does_not_count_for_the_longest_wait(files: Files) -> None:
    files.send("m")
    files.append(0, "offline", user="ann", device=ANN)
    files.append(0, "online", user="ann", device=ANN)
    files.outcome("m", "sent")
    assert files.open == {"m"}
    assert files.follower.max_settle_s == 0.0


def test_it_is_known_who_is_there(files: Files) -> None:
    files.append(0, "online", user="ann", device=ANN)
    files.append(0, "note", user="ann", device=ANN, connector="tcp://127.0.0.1:1")
    files.append(1, "online", user="ben", device=BEN)
    files.append(1, "note", user="ben", device=BEN, problem="the client ended: so it goes")
    files.follower.catch_up()
    assert files.follower.online == {0: {ANN}, 1: {BEN}}
    assert files.follower.connected == {ANN}
    assert files.follower.problems == ["ben: the client ended: so it goes"]
    files.append(0, "killed", user="ann", device=ANN)
    files.append(1, "offline", user="ben", device=BEN)
    files.follower.catch_up()
    assert (files.follower.online, files.follower.connected) == ({0: set(), 1: set()}, set())
