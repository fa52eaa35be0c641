"""A link: a window, its epoch, and the heartbeat that tells a quiet peer from a dead one.

Frame in                        What it does
Data                            acknowledges ours, and gives items to process
Ack                             acknowledges ours
Ping                            a Pong is owed
Pong                            proves life, as every frame does
Close, Reset                    the link is over; `abandon` what it held and greet again

An end pings when it has neither heard nor said anything for `heartbeat_s`, so that both ends
hear of each other at least that often; after `silence_s` without a frame the peer counts as dead.
"""

from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

import msgspec

from meshim.protocol.coalescing import Coalescer
from meshim.protocol.window import Window, WindowOptions
from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset

Out = TypeVar("Out")
In = TypeVar("In")


class LinkOptions(msgspec.Struct, frozen=True):
    """Times are seconds; `pings` is false for an end that only listens for the other's.

    An acknowledgement waits for `ack_delay_s` for a data frame that carries it, unless the peer waits for it.
    Items that can wait do so for `coalesce_s` at most (coalescing.py).
    """

    window: WindowOptions
    heartbeat_s: float
    silence_s: float
    pings: bool = True
    ack_delay_s: float = 0.0
    coalesce_s: float = 0.0


class Link(Generic[Out, In]):
    """One end of a greeted link."""

    __slots__ = (
        "_ack_at",
        "_coalescer",
        "_options",
        "_pong_due",
        "_urgent",
        "epoch",
        "heard_at",
        "over",
        "said_at",
        "window",
    )  # fmt: skip

    def __init__(
        self, epoch: int, options: LinkOptions, size_of: Callable[[Out], int], now: float, *, deferred: bool = False,
        size_of_received: Callable[[In], int] | None = None,
    ) -> None:  # fmt: skip
        self.epoch = epoch
        self.window: Window[Out, In] = Window(
            epoch, options.window, size_of, deferred=deferred, size_of_received=size_of_received
        )  # fmt: skip
        self.heard_at = now
        self.said_at = now
        self.over: Close | Reset | None = None
        """The frame with which the peer ended the link."""
        self._options = options
        self._pong_due = False
        self._ack_at = inf
        """When the acknowledgement that is owed waits no longer."""
        self._coalescer = Coalescer(options.coalesce_s)
        self._urgent = False
        """Whether something that is queued cannot wait."""

    def push(self, item: Out, *, deferrable: bool = False) -> bool:
        """Queue an item; False (and nothing happens) when the queue is full.  A patient one can wait for others."""
        if not self.window.push(item):
            return False
        if not deferrable:
            self._urgent = True
        return True

    def receive(self, frame: Frame, now: float) -> tuple[list[In], list[Out]]:
        """Take in a frame of this epoch: (items to process in order, our items that are acknowledged).

        Raises PeerError when the peer broke the rules of the window.
        """
        self.heard_at = now
        if isinstance(frame, Data):
            done = self.window.acknowledged(frame.ack, frame.stash, now)
            return self.window.receive(frame.number, frame.items), done
        if isinstance(frame, Ack):
            return [], self.window.acknowledged(frame.ack, frame.stash, now)
        if isinstance(frame, Ping):
            self._pong_due = True
        elif isinstance(frame, Close | Reset):
            self.over = frame
        return [], []

    def flush(self, now: float) -> list[Frame]:
        """What should be said now: new data, and whatever is owed."""
        window = self.window
        frames: list[Frame] = self._take(now) if window.queued else []
        if window.owes_ack:
            if self._options.ack_delay_s and not window.ack_is_urgent and self._ack_at > now:
                self._ack_at = min(self._ack_at, now + self._options.ack_delay_s)
            else:
                frames.extend(self._acknowledge())
        else:
            self._ack_at = inf
        if self._pong_due:
            self._pong_due = False
            frames.append(Pong(self.epoch))
        if frames:
            self.said_at = now
        return frames

    def say_all(self, now: float) -> list[Frame]:
        """What is to be said before a goodbye, whatever it waits for."""
        frames: list[Frame] = list(self.window.take(now))
        frames.extend(self._acknowledge())
        return frames

    @property
    def flush_at(self) -> float:
        """When what waits for others has to leave; `inf` when nothing does."""
        return self._coalescer.flush_at

    def _take(self, now: float) -> list[Frame]:
        coalescer, window = self._coalescer, self.window
        queued = window.queued
        if not self._urgent and coalescer.defers(queued, now):
            return []
        frames: list[Frame] = list(window.take(now))
        coalescer.flushed(queued, now)
        self._urgent = window.queued > 0  # what finds no room in the window leaves as soon as there is some
        return frames

    def _acknowledge(self) -> list[Frame]:
        self._ack_at = inf
        ack = self.window.pending_ack()
        return [] if ack is None else [ack]

    def tick(self, now: float) -> list[Frame]:
        """What time demands: items and an acknowledgement that have waited, frames that are due again, a ping."""
        frames: list[Frame] = list(self.window.resend(now))
        if now >= self._coalescer.flush_at:
            frames.extend(self._take(now))
        if now >= self._ack_at:
            frames.extend(self._acknowledge())
        heartbeat = self._options.heartbeat_s
        if (
            not frames
            and self._options.pings
            and now - self.said_at >= heartbeat / 4
            and now - min(self.said_at, self.heard_at) >= heartbeat
        ):
            frames.append(Ping(self.epoch))
        if frames:
            self.said_at = now
        return frames

    def failed(self, now: float) -> bool:
        """Whether the peer is silent, or takes nothing, for too long."""
        return now - self.heard_at >= self._options.silence_s or self.window.failed(now)

    def next_deadline(self) -> float:
        """When `tick` or `failed` should be asked again."""
        options = self._options
        deadline = min(self.heard_at + options.silence_s, self._ack_at, self._coalescer.flush_at)
        if options.pings:
            deadline = min(
                deadline,
                max(min(self.said_at, self.heard_at) + options.heartbeat_s, self.said_at + options.heartbeat_s / 4),
            )
        window = self.window.next_deadline()
        return deadline if window is None else min(deadline, window)
