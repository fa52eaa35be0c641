"""The sync: how one session reads the offline queue of its device.

::

    IDLE ──CHECK──▶ CHECKING ──CLAIM──▶ CLAIMING ──READ──▶ READING ──MORE──▶ FULL
                       └──────────────── READ ───────────────▲ ▲───── READ ────┘

    back to IDLE:   EMPTY       from CHECKING: no row is unread
                    LAST_PAGE   from READING: all rows are pushed
                    RETRY       from each: another connector holds the queue, or the database did not answer; checked
                                again after `retry_s`

One operation at a time; a check that is requested during an operation is made after it.  Independently, rows are
marked as read, one batch at a time: only when the device has acknowledged them (R10), and under the fencing token of
our claim (R3, R11).  A row that was pushed and is not marked yet is not pushed again.  A row that is marked during a
page read is skipped too, since the page may predate the mark.  A session that is fenced off forgets its claim.
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
    CHECKING = enum.auto()
    CLAIMING = enum.auto()
    READING = enum.auto()
    FULL = enum.auto()
    """More rows are unread; the device has to acknowledge those that were pushed."""


class _Trigger(enum.Enum):
    CHECK = enum.auto()
    EMPTY = enum.auto()
    CLAIM = enum.auto()
    READ = enum.auto()
    MORE = enum.auto()
    LAST_PAGE = enum.auto()
    RETRY = enum.auto()


_TRANSITIONS: dict[tuple[Phase, _Trigger], Phase] = {
    (Phase.IDLE, _Trigger.CHECK): Phase.CHECKING,
    (Phase.CHECKING, _Trigger.EMPTY): Phase.IDLE,
    (Phase.CHECKING, _Trigger.CLAIM): Phase.CLAIMING,
    (Phase.CHECKING, _Trigger.READ): Phase.READING,
    (Phase.CHECKING, _Trigger.RETRY): Phase.IDLE,
    (Phase.CLAIMING, _Trigger.READ): Phase.READING,
    (Phase.CLAIMING, _Trigger.RETRY): Phase.IDLE,
    (Phase.READING, _Trigger.MORE): Phase.FULL,
    (Phase.READING, _Trigger.LAST_PAGE): Phase.IDLE,
    (Phase.READING, _Trigger.RETRY): Phase.IDLE,
    (Phase.FULL, _Trigger.READ): Phase.READING,
    (Phase.FULL, _Trigger.RETRY): Phase.IDLE,
}


class OfflineSyncOptions(msgspec.Struct, frozen=True):
    """Seconds."""

    retry_s: float
    sweep_s: float


class OfflineSync:
    """The offline queue of one device, as its session sees it."""

    __slots__ = (
        "_acknowledged", "_backing_off", "_check_after", "_cursor", "_fence", "_marked_while_reading", "_marking",
        "_options", "_pushed", "check_at", "device", "phase", "session", "through", "user",
    )  # fmt: skip

    def __init__(self, user: int, device: int, session: int, options: OfflineSyncOptions) -> None:
        self.user = user
        self.device = device
        self.session = session
        self.phase = Phase.IDLE
        self.through = -1
        """Every row up to this position of the partition was pushed; -1 before the first check."""
        self.check_at: float | None = None
        """When to check again without a request."""
        self._options = options
        self._fence: int | None = None
        self._cursor = (0, -1)
        self._pushed: set[int] = set()
        self._marked_while_reading: list[int] = []
        """Rows that stay in `_pushed` until the page under way is here: it may have them as unread still."""
        self._acknowledged: list[int] = []
        self._marking = False
        self._check_after = False
        """Whether a check was requested during an operation."""
        self._backing_off = False
        """Whether requests for a check wait for `check_at`."""

    @property
    def caught_up(self) -> bool:
        """Whether every row that is known of was pushed."""
        return self.phase is Phase.IDLE and self.through >= 0

    def check(self) -> bool:
        """Request a check; True when the caller must make it now."""
        if self.phase is not Phase.IDLE:
            self._check_after = True
            return False
        if self._backing_off:
            return False
        self._move(_Trigger.CHECK)
        self.check_at = None
        return True

    def due(self, now: float) -> bool:
        """Whether it is time to call `check` without a request."""
        if self.check_at is None or now < self.check_at:
            return False
        self._backing_off = False
        return True

    def check_soon(self, now: float) -> None:
        """Check again in a moment: a deferred message waits for a row that no writer has written yet."""
        self._check_by(now)

    # ---- answers to the operation under way

    def checked(self, through: int, waiting: bool, now: float) -> list[Action]:
        """The check found unread rows (`waiting`) or none; rows up to the position `through` are written."""
        if not waiting:
            # All rows are marked, by us or by another connector.
            self._pushed.clear()
            self._acknowledged.clear()
            self.through = max(self.through, through)
            self._finish(_Trigger.EMPTY, now)
            return []
        # From the start: rows that were pushed but never marked are found again, and recognized by `_pushed`.
        self._cursor = (0, -1)
        if self._fence is None:
            self._move(_Trigger.CLAIM)
            return [ClaimQueue(self.device, self.session)]
        return self._read() + self._mark()

    def claimed(self, fence: int | None, now: float) -> list[Action]:
        """The queue is ours under this fencing token; None while another connector holds it."""
        if fence is None:
            self._retry_later(now)
            return []
        self._fence = fence
        return self._read() + self._mark()

    def page_read(self, page: Page, room: int, now: float) -> Sequence[Row]:
        """The rows to push now, at most `room` of them."""
        rows: list[Row] = []
        more = page.more
        for row in page.rows:
            if row.row_id not in self._pushed:
                if len(rows) == room:
                    more = True
                    break
                rows.append(row)
            self._cursor = (row.position, row.index)
        self._pushed.update(row.row_id for row in rows)
        if more:
            self._move(_Trigger.MORE)
        else:
            self.through = max(self.through, page.through)
            self._finish(_Trigger.LAST_PAGE, now)
        return rows

    def fenced(self, now: float) -> None:
        """Another connector has claimed the queue (R3).  If the binding is still ours, the next check claims again."""
        self._fence = None
        self._retry_later(now)

    def unreachable(self, now: float) -> None:
        """The database did not answer."""
        self._retry_later(now)

    def window_opened(self) -> list[Action]:
        """The device has acknowledged the rows that were pushed, and the window has room."""
        return self._read() if self.phase is Phase.FULL else []

    # ---- marking

    def acknowledged(self, row_ids: Sequence[int]) -> list[Action]:
        """The device has these rows."""
        self._acknowledged.extend(row_ids)
        return self._mark()

    def marked(self, row_ids: Sequence[int]) -> list[Action]:
        """The database has these rows as read."""
        self._marking = False
        if self.phase is Phase.READING:
            self._marked_while_reading.extend(row_ids)
        else:
            self._pushed.difference_update(row_ids)
        done = frozenset(row_ids)
        self._acknowledged = [row_id for row_id in self._acknowledged if row_id not in done]
        return self._mark()

    def unmarked(self, fence: int, fenced: bool, now: float) -> None:
        """The rows were not marked: another connector has claimed the queue, or the database is away.

        They are marked with the next check.
        """
        self._marking = False
        # A newer claim of ours stands; a page that is being read reports by itself that it was fenced off.
        if fenced and fence == self._fence and self.phase is not Phase.READING:
            self._fence = None
            if self.phase is Phase.FULL:
                self._retry_later(now)
        if self.phase is Phase.IDLE:
            self._check_by(now + self._jittered(self._options.retry_s))

    def close(self) -> list[Action]:
        """The session ends: mark the acknowledged rows and release the queue.  The other rows stay unread."""
        if self._fence is None:
            return []
        # No answer is awaited any more, so all marks leave at once; a row that is being marked may be marked again.
        marks = [
            MarkRead(self.device, self.session, self._fence, tuple(chunk))
            for chunk in chunks(self._acknowledged, MARKS_AT_ONCE)
        ]
        return [*marks, ReleaseQueue(self.device, self._fence)]

    # ---- phases

    def _move(self, trigger: _Trigger) -> None:
        phase = _TRANSITIONS.get((self.phase, trigger))
        assert phase is not None, f"{trigger} in {self.phase}"
        self.phase = phase
        if self._marked_while_reading and phase is not Phase.READING:
            self._pushed.difference_update(self._marked_while_reading)
            self._marked_while_reading.clear()

    def _read(self) -> list[Action]:
        assert self._fence is not None
        self._move(_Trigger.READ)
        return [ReadPage(self.user, self.device, self.session, self._fence, self._cursor)]

    def _mark(self) -> list[Action]:
        if self._marking or not self._acknowledged or self._fence is None:
            return []
        self._marking = True
        return [MarkRead(self.device, self.session, self._fence, tuple(self._acknowledged[:MARKS_AT_ONCE]))]

    def _finish(self, trigger: _Trigger, now: float) -> None:
        self._move(trigger)
        self.check_at = now if self._check_after else now + self._jittered(self._options.sweep_s)
        self._check_after = False
        if self._acknowledged and not self._marking:
            self._check_by(now + self._jittered(self._options.retry_s))

    def _retry_later(self, now: float) -> None:
        self._move(_Trigger.RETRY)
        self._check_after = False
        self._backing_off = True
        self.check_at = now + self._jittered(self._options.retry_s)

    def _check_by(self, at: float) -> None:
        self.check_at = at if self.check_at is None else min(self.check_at, at)

    def _jittered(self, seconds: float) -> float:
        """Between 3/4 and 5/4 of it, by session, so that sessions that began together do not check together."""
        return seconds * (0.75 + (self.session % 1024) / 2048)
