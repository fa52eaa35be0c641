"""The rate limit of a session: a token bucket that delays acknowledgements.

The connector takes in every frame at once, so it queues nothing for the rate limit, and charges the frame; it
acknowledges the frame when the bucket has paid its cost.  Tokens come at `rate` a second; the bucket holds the tokens
of one second at most.  A sender below the rate gets each acknowledgement at once.  A sender above the rate fills its
window and has to wait, which costs other sessions nothing.  A sender that keeps sending past its window gets
WINDOW_EXCEEDED (window.py).
"""

from math import inf

from meshim.errors import Code, PeerError

SUBMIT_BYTES = 2_048
"""A frame costs one token for each message, or one for each 2,048 bytes where that is more."""
FRAME_ITEMS_MAX = 128
"""Messages in one frame of a client."""
UNNUMBERED_RATE = 50.0
UNNUMBERED_BURST = 200.0
"""Frames outside of the window, a second and at once: a client that keeps the protocol sends one in some seconds."""


class TokenBucket:
    """The frames of one link that were taken in and are not yet paid."""

    __slots__ = ("_rate", "_refilled_at", "_tokens", "_unpaid")

    def __init__(self, rate: float, now: float) -> None:
        """`rate` is tokens a second, and also the capacity; the bucket is full at first."""
        self._rate = rate
        self._tokens = rate
        self._refilled_at = now
        self._unpaid: list[tuple[int, float]] = []  # short: a frame beyond the window is an error

    def charge(self, number: int, cost: float) -> None:
        """Charge `cost` tokens for the frames that were taken in since the last call; `number` is the last of them."""
        self._unpaid.append((number, cost))

    def acknowledgeable(self, now: float) -> int:
        """Pay with the tokens there are; return the last frame that is paid, or 0 when none was paid by this call.

        One frame may overdraw the bucket, so that a frame that costs more than `rate` is paid, too.
        """
        if now > self._refilled_at:
            self._tokens = min(self._rate, self._tokens + (now - self._refilled_at) * self._rate)
            self._refilled_at = now
        number = 0
        while self._unpaid and self._tokens > 0:
            number, cost = self._unpaid.pop(0)
            self._tokens -= cost
        return number

    @property
    def due(self) -> float:
        """When to call `acknowledgeable` again; `inf` when every frame is paid."""
        return self._refilled_at + max(0.0, -self._tokens) / self._rate if self._unpaid else inf


class UnnumberedBudget:
    """What a peer may send outside of its window, where no credit bounds it: a token bucket that ends the link."""

    __slots__ = ("_refilled_at", "_tokens")

    def __init__(self, now: float) -> None:
        self._tokens = UNNUMBERED_BURST
        self._refilled_at = now

    def charge(self, now: float) -> None:
        """Charge one frame.  Raises PeerError when there is no token for it."""
        if now > self._refilled_at:
            self._tokens = min(UNNUMBERED_BURST, self._tokens + (now - self._refilled_at) * UNNUMBERED_RATE)
            self._refilled_at = now
        if self._tokens < 1.0:
            raise PeerError(
                Code.WINDOW_EXCEEDED, f"more than {UNNUMBERED_RATE:g} frames a second outside of the window"
            )
        self._tokens -= 1.0
