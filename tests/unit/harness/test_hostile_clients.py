"""The hostile clients of a chaos run: how many, which kinds, and the frames of each."""

import re
from pathlib import Path
from typing import Any, cast

import pytest

from meshim.wire.client import decode_from_client
from meshim.wire.envelope import decode_envelope
from meshim.wire.link import Close, Data, Reset
from scripts.harness.chaos.hostile.process import ATTACKS, hostile_count
from scripts.harness.chaos.hostile.sessions import STEPS
from scripts.harness.chaos.hostile.world import CUT, FULL, HostileClient, Tally
from scripts.harness.clients.misbehaving import WINDOW, MisbehavingClient
from scripts.harness.mesh.users import MeshUser

PAGE = (Path(__file__).parents[3] / "docs" / "chaos.md").read_text(encoding="utf-8")
PHONE = MeshUser("mallory", 7, 71, 5, bytes(32))
CLIENT = HostileClient("pings", "zeromq", PHONE, PHONE._replace(device=72, epoch=6), 8, 9, 10, "carol")


class Link(MisbehavingClient):
    """A link without a connection: it keeps the frames."""

    def __init__(self) -> None:
        self.link, self.sent_number, self.acknowledged, self.received_number = 55, 0, 0, 0
        self.sent: list[bytes] = []

    def send_bytes(self, data: bytes) -> bool:
        self.sent.append(data)
        return True


def test_a_fifth_of_the_clients_is_hostile_and_every_kind_is_there() -> None:
    assert hostile_count(72) == 18
    assert hostile_count(4) == len(ATTACKS)


def test_the_page_names_every_kind() -> None:
    table = PAGE.partition("## Hostile clients\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([a-z-]+)`", row)]
    assert [name for name in named if not name.startswith(("hostile", "latency"))] == list(ATTACKS)


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_sends_a_frame_as_long_as_the_window_has_room_where_it_has_to(kind: str) -> None:
    step, _ = STEPS[kind]
    link = Link()
    sent = [step(CLIENT, link, number) for number in range(1, 2 * WINDOW + 1)]
    assert sent.count(True) == len(link.sent) in (WINDOW, 2 * WINDOW)
    frames = [decode_from_client(frame) for frame in link.sent]
    assert all(frame.link == link.link for frame in frames)
    if kind in ("base-updates", "stranger-receipts", "forged-receipts", "invented-cookies"):
        assert len(frames) == WINDOW
        for frame in frames:
            assert isinstance(frame, Data)
            assert {decode_envelope(item.envelope).user for item in frame.items} == {PHONE.user}


def test_a_tally_tells_how_connections_ended() -> None:
    tally = Tally()
    for closed_by in (Close(1, 9), Close(1, 9), Close(1, 999), Reset(1), None):
        link = Link()
        link.closed_by = cast("Any", closed_by)
        tally.ended(link)
    assert tally.ends == {"WINDOW_EXCEEDED": 2, "999": 1, CUT: 1, FULL: 1}
