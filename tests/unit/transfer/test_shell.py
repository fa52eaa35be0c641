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

    idle = True

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
        self.sent = 0

    def send(self, peer: bytes, frame: bytes) -> SendResult:
        self.sent += 1
        return self.answer


def shell_of(core: Core, router: Router) -> Shell:
    backends = Backends(presence=cast("Any", None), log=cast("Any", None))
    shell = Shell(cast("TransferCore", core), backends, Service("transfer", "t1", shutdown_s=1.0))
    shell.router = cast("Any", router)
    return shell


@pytest.mark.parametrize("answer", SendResult)
async def test_a_connector_that_is_gone_or_has_no_room_for_a_frame_is_lost(answer: SendResult) -> None:
    core = Core()
    shell_of(core, Router(answer)).driver.receive(e.StopRequested())
    assert core.events[1:] == ([] if answer is SendResult.OK else [e.ConnectorGone(b"peer")])


async def test_an_answer_that_comes_after_the_stop_sends_nothing() -> None:
    """The socket is closed by then."""
    core, router = Core(), Router(SendResult.OK)
    shell = shell_of(core, router)
    await shell.stop(1.0)
    shell.driver.receive(e.PresenceReadFailed((1,)))
    assert (core.events, router.sent) == ([e.StopRequested()], 1)
