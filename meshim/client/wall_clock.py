"""The clock of this machine, as an envelope can carry it."""

import time

from meshim.wire.bounds import MS_MAX

SENT_AT_MS_MAX = MS_MAX - 86_400_000
"""A day before the end of the calendar: later times have no local form east of Greenwich."""


def wall_ms() -> int:
    """Return milliseconds since 1970-01-01 UTC; a clock before 1970, or past the year 9999, counts as the nearest time.

    A connector refuses an envelope with any other time as MALFORMED, and ends the link: the device could never send.
    """
    return min(max(0, int(time.time() * 1000)), SENT_AT_MS_MAX)
