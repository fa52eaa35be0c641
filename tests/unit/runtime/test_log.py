"""Each log entry is one line: time, level, role, name, event, values."""

import errno
import io
import re

from hypothesis import given
from hypothesis import strategies as st

from meshim.runtime import log


def test_a_line_reads_time_level_role_name_event_values() -> None:
    stream = io.StringIO()
    log.Log("connector", "c1", stream).warning(
        "lease lost", after_s=3.25, reason="no answer", endpoint="tcp://127.0.0.1:1"
    )
    expected = r'[-\d]{10}T[\d:]{8}\.\d{3}Z warning connector c1 lease-lost after_s=3\.25 reason="no answer" '
    assert re.fullmatch(expected + r"endpoint=tcp://127\.0\.0\.1:1\n", stream.getvalue())


@given(st.text())
def test_any_value_stays_on_its_line(value: str) -> None:
    stream = io.StringIO(newline="")
    log.Log("rest", "r1", stream).error("failed", value=value)
    assert stream.getvalue().count("\n") == 1
    assert len(stream.getvalue().splitlines()) == 1


def test_a_line_names_its_level() -> None:
    stream = io.StringIO()
    writer = log.Log("writer", "w1", stream)
    for level in ("info", "warning", "error"):
        getattr(writer, level)("event")
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["info", "warning", "error"]


def test_lines_of_one_event_are_limited_and_the_left_out_ones_counted() -> None:
    stream, now = io.StringIO(), 100.0
    writer = log.Log("rest", "r1", stream, lambda: now)
    for _ in range(1_000):
        writer.warning("answered 503", path="/v1/login")
    writer.warning("leases away")
    now += log.BURST_S
    for _ in range(2):
        writer.warning("answered 503", path="/v1/login")
    lines = [line.split(" ", 4)[4] for line in stream.getvalue().splitlines()]
    assert lines == [
        *["answered-503 path=/v1/login"] * log.BURST_LINES,
        "leases-away",
        f"answered-503 path=/v1/login left_out={1_000 - log.BURST_LINES}",
        "answered-503 path=/v1/login",
    ]


class Full(io.StringIO):
    """A stream on a disk that is full while `is_full`."""

    is_full = True

    def flush(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_raises_nothing_and_the_next_line_says_how_many_were_not_written() -> None:
    stream = Full()
    writer = log.Log("writer", "w1", stream)
    for _ in range(3):
        writer.error("failing")
    stream.is_full = False
    stream.truncate(0)
    stream.seek(0)
    writer.info("working")
    writer.info("working")
    assert [line.split(" ", 4)[4] for line in stream.getvalue().splitlines()] == ["working not_written=3", "working"]


def test_a_closed_stream_raises_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    log.Log("writer", "w1", stream).error("failing")
