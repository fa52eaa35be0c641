"""What libraries log is bounded, and stands in the log of the process."""

import io
import logging

from meshim.runtime.library_log import LibraryLog
from meshim.runtime.log import BURST_LINES, Log


def test_a_library_is_one_event_and_its_lines_are_few() -> None:
    written = io.StringIO()
    with LibraryLog(Log("rest", "r1", written)):
        for number in range(1000):
            logging.getLogger("uvicorn.error").warning("Invalid HTTP\nrequest %d received.", number)
        logging.getLogger("asyncio").error("broken", exc_info=OSError("gone"))
        logging.getLogger("uvicorn.error").info("is not written")
    logging.getLogger("uvicorn.error").warning("after the block")
    lines = written.getvalue().splitlines()
    assert len(lines) == BURST_LINES + 1
    assert lines[0].endswith(' warning rest r1 uvicorn message="Invalid HTTP request 0 received"')
    assert lines[-1].endswith(""" error rest r1 asyncio message=broken error="OSError('gone')\"""")


def test_a_record_that_cannot_be_formatted_and_a_long_one_are_written() -> None:
    written = io.StringIO()
    handler = LibraryLog(Log("rest", "r1", written))
    for message, arguments in (("%d of", ("none",)), ("x" * 100_000, ())):
        handler.handle(logging.LogRecord("nats", logging.WARNING, "", 0, message, arguments, None))
    first, second = written.getvalue().splitlines()
    assert first.endswith('message="%d of"')
    assert len(second) < 500
