"""The drain: how one session reads what is stored for its device.

::

            look                 waiting             fence              more: when there is room
    RESTING ────▶ PEEKING ──────────────▶ CLAIMING ───────▶ READING ─────────────┐
       ▲             │ nothing waits         │ None: later     │  ▲             │
       └─────────────┴───────────────────────┴─────────────────┘  └─────────────┘
                                                  last page

One operation at a time; a look that is asked for meanwhile is done after it.  Rows are marked
read only when the device has acknowledged them (R10), under the fencing number of our claim (R3, R11);
a row that was pushed and is not marked yet is not pushed again.  Whoever is fenced off forgets
its claim and looks again later.
"""

import enum
from collections.abc import Sequence

import msgspec

from meshim.connector.events import Action, ClaimQueue, MarkRead, ReadPage, ReleaseQueue
from meshim.stores.ports import Page, Row


class Phase(enum.Enum):
    RESTING = enum.auto()
    PEEKING = enum.auto()
    CLAIMING = enum.auto()
    READING = enum.auto()
    FULL = enum.auto()
    """There is more to read, once the device has taken what was read."""


class DrainOptions(msgspec.Struct, frozen=True):
    """Seconds."""

    retry_s: float
    sweep_s: float


class Drain:
    """The queue of one device, as its session sees it."""

    __slots__ = (
        "_acknowledged", "_again", "_cursor", "_fence", "_marking", "_options", "_pushed", "device", "look_at",
        "phase", "session", "through", "user",
    )  # fmt: skip

    def __init__(self, user: int, device: int, session: int, options: DrainOptions) -> None:
        self.user = user
        self.device = device
        self.session = session
        self.phase = Phase.RESTING
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

    @property
    def caught_up(self) -> bool:
        """Nothing known of is left to push."""
        return self.phase == Phase.RESTING and self.through >= 0

    @property
    def settled(self) -> bool:
        """Nothing that was pushed waits to be marked."""
        return not self._pushed and not self._marking

    def look(self) -> bool:
        """Ask for a look; True when the caller must peek now."""
        if self.phase != Phase.RESTING:
            self._again = True
            return False
        self.phase = Phase.PEEKING
        self.look_at = None
        return True

    def peeked(self, through: int, waiting: bool, now: float) -> list[Action]:
        if self.phase != Phase.PEEKING:
            return []
        if not waiting:
            # Whoever marked them, nothing of ours is unread any more.
            self._pushed.clear()
            self._acknowledged.clear()
            self.through = max(self.through, through)
            return self._rest(now)
        # From the start: rows that were pushed but never marked are found again, and told apart by `_pushed`.
        self._cursor = (0, -1)
        if self._fence is not None:
            return self._read() + self._mark()
        self.phase = Phase.CLAIMING
        return [ClaimQueue(self.device, self.session)]

    def claimed(self, fence: int | None, now: float) -> list[Action]:
        if self.phase != Phase.CLAIMING:
            return []
        if fence is None:
            return self._later(now)
        self._fence = fence
        return self._read() + self._mark()

    def page(self, page: Page, now: float) -> tuple[Sequence[Row], list[Action]]:
        """(Rows to push now, what follows)."""
        if self.phase != Phase.READING:
            return (), []
        rows = [row for row in page.rows if row.row_id not in self._pushed]
        self._pushed.update(row.row_id for row in rows)
        if page.rows:
            self._cursor = (page.rows[-1].position, page.rows[-1].index)
        if page.more:
            self.phase = Phase.FULL
            return rows, []
        self.through = max(self.through, page.through)
        return rows, self._rest(now)

    def room(self) -> list[Action]:
        """The device has taken what was read."""
        return self._read() if self.phase == Phase.FULL else []

    def acknowledged(self, row_ids: Sequence[int]) -> list[Action]:
        """The device has these."""
        self._acknowledged.extend(row_ids)
        return self._mark()

    def marked(self, row_ids: Sequence[int]) -> list[Action]:
        self._marking = False
        self._pushed.difference_update(row_ids)
        del self._acknowledged[: len(row_ids)]
        return self._mark()

    def fenced(self, now: float) -> list[Action]:
        """Somebody claimed after us (R3): if it is still our turn, presence says so and we claim again."""
        self._fence = None
        self._marking = False
        return self._later(now)

    def unreachable(self, now: float) -> list[Action]:
        """The database is away."""
        self._marking = False
        return self._later(now)

    def close(self) -> list[Action]:
        """The session ends; what was pushed and not acknowledged stays unread."""
        return [] if self._fence is None else [ReleaseQueue(self.device, self._fence)]

    def _read(self) -> list[Action]:
        assert self._fence is not None
        self.phase = Phase.READING
        return [ReadPage(self.user, self.device, self.session, self._fence, self._cursor)]

    def _mark(self) -> list[Action]:
        if self._marking or not self._acknowledged or self._fence is None:
            return []
        self._marking = True
        return [MarkRead(self.device, self.session, self._fence, tuple(self._acknowledged))]

    def _rest(self, now: float) -> list[Action]:
        self.phase = Phase.RESTING
        self.look_at = now if self._again else now + self._jittered(self._options.sweep_s)
        self._again = False
        return []

    def _later(self, now: float) -> list[Action]:
        self.phase = Phase.RESTING
        self._again = False
        self.look_at = now + self._jittered(self._options.retry_s)
        return []

    def _jittered(self, seconds: float) -> float:
        """Between 3/4 and 5/4, by session, so that sessions of one moment do not sweep together."""
        return seconds * (0.75 + (self.session % 1024) / 2048)
