"""Each log entry is one line: time, level, role, name, event, values."""

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
