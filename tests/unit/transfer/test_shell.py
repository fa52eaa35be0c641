"""The shell of a transfer: what the socket answers to a frame."""

from typing import Any, cast

import pytest

from meshim.runtime.send_result import SendResult
from meshim.runtime.service import Service
from meshim.transfer import events as e
from meshim.transfer.core import TransferCore
from meshim.transfer.shell import Backends, Shell


class Core:
    """Records events, and answers the first with frames to a connector."""

    def __init__(self) -> None:
        self.events: list[e.Event] = []

    def receive(self, event: e.Event, now: float) -> list[e.Action]:
        self.events.append(event)
        return [e.SendConnector(b"peer", b"frame")] if len(self.events) == 1 else []

    def tick(self, now: float) -> list[e.Action]:
        return []

    def next_deadline(self) -> float | None:
        return None


class Router:
    def __init__(self, answer: SendResult) -> None:
        self.answer = answer

    def send(self, peer: bytes, frame: bytes) -> SendResult:
        return self.answer


@pytest.mark.parametrize("answer", SendResult)
async def test_a_connector_that_is_gone_or_has_no_room_for_a_frame_is_lost(answer: SendResult) -> None:
    core = Core()
    backends = Backends(presence=cast("Any", None), log=cast("Any", None))
    shell = Shell(cast("TransferCore", core), backends, Service("transfer", "t1", shutdown_s=1.0))
    shell.router = cast("Any", Router(answer))
    shell.driver.receive(e.StopRequested())
    assert core.events[1:] == ([] if answer is SendResult.OK else [e.ConnectorGone(b"peer")])
