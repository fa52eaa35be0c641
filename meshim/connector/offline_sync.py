"""The sync: how one session reads what is stored for its device.

::

            look                 waiting             fence              more: when there is room
    IDLE ────▶ PEEKING ──────────────▶ CLAIMING ───────▶ READING ─────────────┐
       ▲             │ nothing waits         │ None: later     │  ▲             ▼
       └─────────────┴───────────────────────┴─────────────────┘  └─────────── FULL
                                                  last page

One operation at a time; a look that is asked for meanwhile is done after it.  Beside it rows are marked
read, one batch at a time: only when the device has acknowledged them (R10), under the fencing number of our
claim (R3, R11).  A row that was pushed and is not marked yet is not pushed again.  Whoever is fenced off
forgets its claim and looks again later; so does whom the database does not answer.
"""

import enum
from collections.abc import Sequence

import msgspec

from meshim.chunks import chunks
from meshim.connector.events import Action, ClaimQueue, MarkRead, ReadPage, ReleaseQueue
from meshim.stores.ports import Page, Row

MARKS_AT_ONCE = 8_192
"""Rows in one transaction that marks."""


class Phase(enum.Enum):
    IDLE = enum.auto()
    PEEKING = enum.auto()
    CLAIMING = enum.auto()
    READING = enum.auto()
    FULL = enum.auto()
    """There is more to read, once the device has taken what was read."""


class OfflineSyncOptions(msgspec.Struct, frozen=True):
    """Seconds."""

    retry_s: float
    sweep_s: float


class OfflineSync:
    """The queue of one device, as its session sees it."""

    __slots__ = (
        "_acknowledged", "_again", "_backing_off", "_cursor", "_fence", "_marking", "_options", "_pushed", "device",
        "look_at", "phase", "session", "through", "user",
    )  # fmt: skip

    def __init__(self, user: int, device: int, session: int, options: OfflineSyncOptions) -> None:
        self.user = user
        self.device = device
        self.session = session
        self.phase = Phase.IDLE
        self.through = -1
        """Every row up to this position of the partition was pushed; -1 before the first look."""
        self.look_at: float | None = None
        """When to look again without being asked."""
        self._options = options
        self._fence: int | None = None
        self._cursor = (0, -1)
        self._pushed: set[int] = set()
        self._acknowledged: list[int] = []
        self._marking = False
        self._again = False
        self._backing_off = False
        """Whoever asks for a look waits for `look_at`."""

    @property
    def caught_up(self) -> bool:
        """Nothing known of is left to push."""
        return self.phase is Phase.IDLE and self.through >= 0

    def look(self) -> bool:
        """Ask for a look; True when the caller must peek now."""
        if self.phase is not Phase.IDLE:
            self._again = True
            return False
        if self._backing_off:
            return False
        self.phase = Phase.PEEKING
        self.look_at = None
        return True

    def due(self, now: float) -> bool:
        """Whether it is time to look without being asked."""
        if self.look_at is None or now < self.look_at:
            return False
        self._backing_off = False
        return True

    def look_again(self, now: float) -> None:
        """Ask for another look in a moment: somebody waits for what a writer has not written yet."""
        self._look_by(now)

    # ---- answers to the operation under way

    def peeked(self, through: int, waiting: bool, now: float) -> list[Action]:
        assert self.phase is Phase.PEEKING
        if not waiting:
            # Whoever marked them, nothing of ours is unread any more.
            self._pushed.clear()
            self._acknowledged.clear()
            self.through = max(self.through, through)
            self._rest(now)
            return []
        # From the start: rows that were pushed but never marked are found again, and told apart by `_pushed`.
        self._cursor = (0, -1)
        if self._fence is None:
            self.phase = Phase.CLAIMING
            return [ClaimQueue(self.device, self.session)]
        return self._read() + self._mark()

    def claimed(self, fence: int | None, now: float) -> list[Action]:
        assert self.phase is Phase.CLAIMING
        if fence is None:
            self._later(now)
            return []
        self._fence = fence
        return self._read() + self._mark()

    def page(self, page: Page, room: int, now: float) -> Sequence[Row]:
        """The rows to push now, at most `room` of them."""
        assert self.phase is Phase.READING
        rows: list[Row] = []
        for row in page.rows:
            if row.row_id not in self._pushed:
                if len(rows) == room:
                    self.phase = Phase.FULL
                    break
                rows.append(row)
            self._cursor = (row.position, row.index)
        self._pushed.update(row.row_id for row in rows)
        if page.more:
            self.phase = Phase.FULL
        if self.phase is not Phase.FULL:
            self.through = max(self.through, page.through)
            self._rest(now)
        return rows

    def fenced(self, now: float) -> None:
        """Somebody claimed after us (R3): if it is still our turn, presence says so and we claim again."""
        self._fence = None
        self._later(now)

    def unreachable(self, now: float) -> None:
        """The database did not answer."""
        self._later(now)

    def room(self) -> list[Action]:
        """The device has taken what was read."""
        return self._read() if self.phase is Phase.FULL else []

    # ---- marking

    def acknowledged(self, row_ids: Sequence[int]) -> list[Action]:
        """The device has these."""
        self._acknowledged.extend(row_ids)
        return self._mark()

    def marked(self, row_ids: Sequence[int]) -> list[Action]:
        self._marking = False
        self._pushed.difference_update(row_ids)
        done = frozenset(row_ids)
        self._acknowledged = [row_id for row_id in self._acknowledged if row_id not in done]
        return self._mark()

    def unmarked(self, fence: int, fenced: bool, now: float) -> None:
        """They were not marked: somebody claimed after us, or the database is away.  Tried again with the next look."""
        self._marking = False
        # A claim of ours that is newer stands; a page under way says itself that it was fenced.
        if fenced and fence == self._fence and self.phase is not Phase.READING:
            self._fence = None
            if self.phase is Phase.FULL:
                self._later(now)
        if self.phase is Phase.IDLE:
            self._look_by(now + self._jittered(self._options.retry_s))

    def close(self) -> list[Action]:
        """The session ends; what was pushed and not acknowledged stays unread."""
        if self._fence is None:
            return []
        # Nobody waits for an answer any more, so that all goes out; to mark again what is under way changes nothing.
        left = chunks(self._acknowledged, MARKS_AT_ONCE)
        marks = [MarkRead(self.device, self.session, self._fence, tuple(chunk)) for chunk in left]
        return [*marks, ReleaseQueue(self.device, self._fence)]

    # ----

    def _read(self) -> list[Action]:
        assert self._fence is not None
        self.phase = Phase.READING
        return [ReadPage(self.user, self.device, self.session, self._fence, self._cursor)]

    def _mark(self) -> list[Action]:
        if self._marking or not self._acknowledged or self._fence is None:
            return []
        self._marking = True
        return [MarkRead(self.device, self.session, self._fence, tuple(self._acknowledged[:MARKS_AT_ONCE]))]

    def _rest(self, now: float) -> None:
        self.phase = Phase.IDLE
        self.look_at = now if self._again else now + self._jittered(self._options.sweep_s)
        self._again = False
        if self._acknowledged and not self._marking:
            self._look_by(now + self._jittered(self._options.retry_s))

    def _later(self, now: float) -> None:
        self.phase = Phase.IDLE
        self._again = False
        self._backing_off = True
        self.look_at = now + self._jittered(self._options.retry_s)

    def _look_by(self, at: float) -> None:
        self.look_at = at if self.look_at is None else min(self.look_at, at)

    def _jittered(self, seconds: float) -> float:
        """Between 3/4 and 5/4, by session, so that sessions of one moment do not sweep together."""
        return seconds * (0.75 + (self.session % 1024) / 2048)
