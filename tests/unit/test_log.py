"""Whatever is logged is one line that can be taken apart again."""

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


def test_every_level_is_named() -> None:
    stream = io.StringIO()
    writer = log.Log("writer", "w1", stream)
    for level in ("info", "warning", "error"):
        getattr(writer, level)("event")
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["info", "warning", "error"]
