"""What libraries log, as lines of the log of the process, so that no peer can make them fill the disk.

uvicorn logs a line for each malformed request, websockets and asyncio for broken connections: a stranger decides how
many.  Here each library is one event, and so has `BURST_LINES` lines a minute.
"""

import logging

from meshim.errors import one_line
from meshim.runtime.log import Log

_MESSAGE_CHARACTERS = 300


class LibraryLog(logging.Handler):
    """Writes records of `logging` into a `Log`, warnings and above; within its block."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def __enter__(self) -> None:
        logging.root.addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.root.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record: the library is the event, its message and its exception are values."""
        values = {"message": one_line(_message(record))[:_MESSAGE_CHARACTERS]}
        if record.exc_info and record.exc_info[1] is not None:
            values["error"] = one_line(repr(record.exc_info[1]))[:_MESSAGE_CHARACTERS]
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        write(record.name.partition(".")[0], **values)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # its arguments do not fit
        return str(record.msg)
