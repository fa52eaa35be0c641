"""What a minimal client says becomes records of the history, once each, also when it is killed in between."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.harness.chaos.minimal_application import AHEAD_MAX, MinimalApplication
from scripts.harness.chaos.minimal_mutations import REPLACEMENTS
from scripts.harness.chaos.users import DeviceConfig
from scripts.harness.clients import minimal_example
from scripts.harness.clients.minimal_example import Language, Replacement
from scripts.harness.history.format import digest_of
from scripts.harness.history.journal import Journal

MESSAGE = {"event": "message", "n": 1, "id": "aa", "sender": "ben", "device": 5, "to": "ann", "seq": 3, "text": "5.1 x"}


class World:
    """The application of ann's client, whose only friend is ben, and its journal."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal"
        device = DeviceConfig("ann", "minimal", "", 4, "7")
        self.application = MinimalApplication(device, ("ben",), Journal(self._path, 0.0), seed=1)

    def queue(self, seq: int) -> str:
        """Send a message, and let the client say that it is on its disk; return its name."""
        command = self.application.compose()
        assert command.startswith("send ben 7.")
        self.take("queued", to="ben", seq=seq, id=f"id{seq}")
        return command.split()[2]

    def take(self, event: str, **fields: Any) -> None:
        self.application.take({"event": event, **fields})

    def records(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [line for line in lines if line["type"] == kind]

    @property
    def outcomes(self) -> list[str]:
        return [record["outcome"] for record in self.records("outcome")]

    @property
    def problems(self) -> list[str]:
        return [record["problem"] for record in self.records("note") if "problem" in record]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_message_is_sent_once_an_outcome_is_final(world: World) -> None:
    name = world.queue(1)
    world.take("delivered", to="ben", ranges=[[1, 1]], final=False)
    assert world.outcomes == ["queued"]
    world.take("sent", to="ben", ranges=[[1, 1]], final=True)
    world.take("sent", to="ben", ranges=[[1, 1]], final=True)
    assert world.outcomes == ["queued", "sent", "delivered"]
    world.take("read", to="ben", ranges=[[1, 9]])
    assert world.outcomes == ["queued", "sent", "delivered", "read"]
    [sent] = world.records("send")
    assert (sent["message"], sent["n"], sent["to"], sent["device"]) == (name, 1, "ben", "7")
    assert {record["message"] for record in world.records("outcome")} == {name}


def test_a_receipt_before_the_final_outcome_counts_after_it(world: World) -> None:
    world.queue(1)
    world.take("read", to="ben", ranges=[[1, 1]])
    assert world.outcomes == ["queued"]
    world.take("delivered", to="ben", ranges=[[1, 1]], final=True)
    assert world.outcomes == ["queued", "sent", "delivered", "read"]


def test_a_message_is_seen_once_though_a_killed_client_shows_it_again(world: World) -> None:
    world.application.take(MESSAGE)
    world.application.left("killed")
    world.application.take(MESSAGE)
    [seen] = world.records("seen")
    assert (seen["message"], seen["id"], seen["from"], seen["from_device"]) == ("5.1", "aa", "ben", "5")
    assert seen["digest"] == digest_of("5.1 x")
    assert world.problems == []


def test_a_number_that_is_used_again_or_left_out_is_a_problem(world: World) -> None:
    world.application.take(MESSAGE)
    world.application.take({**MESSAGE, "text": "5.2 x"})
    world.application.take({**MESSAGE, "n": 3})
    assert world.problems == ["it showed another message with the number 1 before", "it shows number 3 after 1"]


def test_a_duplicate_with_a_new_number_is_for_the_judge(world: World) -> None:
    world.application.take(MESSAGE)
    world.application.take({**MESSAGE, "n": 2})
    assert len(world.records("seen")) == 2


def test_what_a_killed_client_did_not_queue_is_not_mistaken_for_what_the_next_one_queues(world: World) -> None:
    world.application.compose()
    world.application.left("killed")
    name = world.queue(2)  # seq 1 was on its disk, and it could not say so
    world.take("sent", to="ben", ranges=[[1, 2]], final=True)
    assert [(record["message"], record["outcome"]) for record in world.records("outcome")] == [
        (name, "queued"),
        (name, "sent"),
    ]


def test_a_client_is_busy_with_commands_that_it_has_not_obeyed(world: World) -> None:
    for _ in range(AHEAD_MAX):
        assert not world.application.busy
        world.application.compose()
    assert world.application.busy
    world.application.left("offline")
    assert not world.application.busy


@pytest.mark.parametrize("name", REPLACEMENTS)
@pytest.mark.parametrize("language", ["python", "javascript"])
def test_every_mutation_changes_the_client(tmp_path: Path, name: str, language: Language) -> None:
    replacements = REPLACEMENTS[name][language]
    command = minimal_example.command(language, tmp_path / "mutated", replacements)
    mutated = Path(command[1]).read_text()
    assert mutated != (minimal_example.EXAMPLES / minimal_example.FILES[language]).read_text()
    assert all(new in mutated and old not in mutated for old, new in replacements.items())


def test_a_replacement_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Replacement, match="has 'no such text' 0 times"):
        minimal_example.command("python", tmp_path, {"no such text": ""})
