"""A link: a window, its epoch, and the heartbeat that distinguishes a quiet peer from a dead one.

::

    frame in        effect
    Data            acknowledges our frames, and brings items to process
    Ack             acknowledges our frames
    Ping            the link owes a Pong
    Pong            none beyond that of every frame: the peer lives
    Close, Reset    the link has ended: the owner takes back what it held (`Window.abandon`) and greets again

An end with a heartbeat sends a Ping when it has sent no frame for `heartbeat_s`.  The peer answers, so that both ends
receive a frame about that often, and one of them needs no timer.  After `silence_s` without a frame the peer counts as
dead.
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
    """Times are seconds.  `heartbeat_s` is `inf` for an end that leaves pings to its peer.

    A delayed acknowledgement waits up to `ack_delay_s` for a data frame that carries it, unless it is urgent
    (`Window.ack_is_urgent`).  Deferrable items wait up to `coalesce_s` for others (coalescing.py).
    """

    window: WindowOptions
    heartbeat_s: float
    silence_s: float
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
        "closed_by",
        "epoch",
        "received_at",
        "sent_at",
        "window",
    )  # fmt: skip

    def __init__(
        self, epoch: int, options: LinkOptions, size_of: Callable[[Out], int], now: float, *, manual_ack: bool = False
    ) -> None:
        """`size_of` and `manual_ack` are those of `Window`."""
        self.epoch = epoch
        self.window: Window[Out] = Window(epoch, options.window, size_of, manual_ack=manual_ack)
        self.received_at = now
        """When the last frame came in."""
        self.sent_at = now
        """When the last frame went out."""
        self.closed_by: Close | Reset | None = None
        """The frame with which the peer ended the link."""
        self._options = options
        self._pong_due = False
        self._ack_at = inf
        """When the delayed acknowledgement must leave; `inf` when none is delayed."""
        self._coalescer = Coalescer(options.coalesce_s)
        self._urgent = False
        """Whether a queued item must not wait."""

    @property
    def silence_s(self) -> float:
        """Seconds without a frame after which the peer counts as dead."""
        return self._options.silence_s

    def push(self, item: Out, *, deferrable: bool = False) -> bool:
        """Queue an item; return False, and do nothing, when the queue is full.  A deferrable item may be coalesced."""
        if not self.window.push(item):
            return False
        if not deferrable:
            self._urgent = True
        return True

    def receive(self, frame: Frame, now: float) -> tuple[tuple[In, ...], list[Out]]:
        """Take in a frame of this epoch; return (items to process, in order; our items that the peer acknowledged).

        Raises PeerError when the peer broke the rules of the window.
        """
        self.received_at = now
        if isinstance(frame, Data):
            self.window.receive(frame.number)
            return frame.items, self.window.acknowledged(frame.ack, now)
        if isinstance(frame, Ack):
            return (), self.window.acknowledged(frame.ack, now)
        if isinstance(frame, Ping):
            self._pong_due = True
        elif isinstance(frame, Close | Reset):
            self.closed_by = frame
        return (), []

    def flush(self, now: float) -> list[Frame]:
        """Return the frames to send now: data that need not wait, an acknowledgement that is due, a Pong."""
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
            self.sent_at = now
        return frames

    def flush_all(self, now: float) -> list[Frame]:
        """Return the frames to send before a Close: all data that the window has room for, and an owed acknowledgement.

        Neither waits any longer.
        """
        frames: list[Frame] = list(self.window.take(now))
        frames.extend(self._acknowledge())
        return frames

    @property
    def flush_at(self) -> float:
        """When the coalesced items must leave; `inf` when none wait."""
        return self._coalescer.flush_at

    def _take(self, now: float) -> list[Frame]:
        coalescer, window = self._coalescer, self.window
        queued = window.queued
        if not self._urgent and coalescer.defers(queued, now):
            return []
        frames: list[Frame] = list(window.take(now))
        coalescer.flushed(queued, now)
        self._urgent = window.queued > 0  # items that found no room leave as soon as the window has some
        return frames

    def _acknowledge(self) -> list[Frame]:
        self._ack_at = inf
        ack = self.window.pending_ack()
        return [] if ack is None else [ack]

    def tick(self, now: float) -> list[Frame]:
        """Return the frames that are due by the clock: coalesced items, a delayed acknowledgement, a Ping."""
        frames: list[Frame] = self._take(now) if now >= self._coalescer.flush_at else []
        if now >= self._ack_at:
            frames.extend(self._acknowledge())
        if not frames and now >= self.sent_at + self._options.heartbeat_s:
            frames.append(Ping(self.epoch))
        if frames:
            self.sent_at = now
        return frames

    def failed(self, now: float) -> bool:
        """Return whether the peer has been silent, or has acknowledged nothing, for too long."""
        return now - self.received_at >= self._options.silence_s or self.window.failed(now)

    def next_deadline(self) -> float:
        """Return when to call `tick` and `failed` again."""
        return min(
            self.received_at + self._options.silence_s,
            self.sent_at + self._options.heartbeat_s,
            self._ack_at,
            self._coalescer.flush_at,
            self.window.give_up_at,
        )
