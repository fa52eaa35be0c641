"""What scripts accept on their command lines, and how they end when they are told to."""

import argparse
import signal
from collections.abc import Callable
from math import inf
from types import FrameType
from typing import TypeVar

Number = TypeVar("Number", int, float)


def number(least: float, most: float, what: str) -> Callable[[str], float]:
    """A number out of that range, both included; `what` completes "it has to be"."""
    return _within(float, least, most, what)


def whole(least: float, most: float, what: str) -> Callable[[str], int]:
    """The same for whole numbers."""
    return _within(int, least, most, what)


def _within(convert: Callable[[str], Number], least: float, most: float, what: str) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"it has to be {what}") from None
        if not least <= value <= most:  # nor is NaN
            raise argparse.ArgumentTypeError(f"it has to be {what}")
        return value

    return parse


count = whole(1, inf, "a whole number, 1 or more")
natural = whole(0, inf, "a whole number, 0 or more")


def end_politely() -> None:
    """Let SIGTERM do what Ctrl-C does: what was started is ended, what was made for the moment removed."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
