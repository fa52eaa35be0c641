"""A device on a slow line, with the default options: it is not cut, and does not get every frame twice."""

import pytest

from meshim.connector import events as e
from meshim.connector.service import options_of
from meshim.errors import Code
from meshim.topology import default
from meshim.wire import client as wire
from meshim.wire.link import Close, Data, Frame
from tests.unit.connector.world import B1, Client, Connector, live_copy

BODIES = 40


class Line:
    """Carries frames to a client at a number of bytes a second, one after the other; the client then acknowledges."""

    def __init__(self, client: Client, bytes_per_s: float) -> None:
        self.client = client
        self.bytes_per_s = bytes_per_s
        self.taken: list[Frame] = []
        self.carried = 0
        self._done = 0.0

    def pass_time(self, seconds: float) -> None:
        client = self.client
        client.connector.pass_time(seconds)
        self._done += seconds * self.bytes_per_s
        while len(self.taken) < len(client.frames):
            frame = client.frames[len(self.taken)]
            size = len(wire.encode(frame))
            if size > self._done:
                return
            self._done -= size
            self.carried += size
            self.taken.append(frame)
            if isinstance(frame, Data) and not client.closed:
                client.acknowledge(max(each.number for each in self.taken if isinstance(each, Data)))
        self._done = 0.0  # an idle line does not save up capacity


@pytest.mark.parametrize("bits_per_s", [500_000, 600_000, 5_000_000])
def test_a_slow_line_carries_the_largest_bodies(bits_per_s: int) -> None:
    real = options_of(default())
    connector = Connector(
        clients=real.clients, body_bytes=real.body_bytes, frame_bytes=real.frame_bytes,
        session_queue=real.session_queue, session_bytes=real.session_bytes, sessions=8,
    )  # fmt: skip
    transfer = connector.transfer()
    bob = connector.online(B1)
    line = Line(bob, bits_per_s / 8)
    transfer.give(*(live_copy(B1, seq, body=bytes(real.body_bytes)) for seq in range(1, BODIES + 1)))
    for _ in range(2_000):
        line.pass_time(0.125)
        if bob.came(Close) or len(line.taken) == len(bob.frames):
            break
    assert not bob.closed
    assert bob.seqs == list(range(1, BODIES + 1))
    assert connector.count.delivered == BODIES
    assert line.carried < 1.3 * BODIES * real.body_bytes, "few frames were sent again"


def test_h06_a_reader_of_one_byte_a_second_is_cut_and_its_copies_are_stored() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    line = Line(bob, 1.0)
    transfer.give(*(live_copy(B1, seq) for seq in range(1, 6)))
    for _ in range(8 * 3):
        line.pass_time(0.125)
    assert [code for code, _ in bob.closed] == [Code.UNRESPONSIVE]
    assert connector.count.returned == 5
    assert bob.peer in connector.closed_peers
    assert not connector.take(e.MarkRead)
