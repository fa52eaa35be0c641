"""Argument types of the scripts, their answer to SIGTERM, and the limit of open files."""

import argparse
import resource
import signal
from collections.abc import Callable
from math import inf
from typing import TypeVar

Number = TypeVar("Number", int, float)


def number(least: float, most: float, what: str) -> Callable[[str], float]:
    """Return an argparse type: a number from `least` to `most`, both included; `what` completes "it has to be"."""
    return _within(float, least, most, what)


def whole(least: float, most: float, what: str) -> Callable[[str], int]:
    """Return an argparse type like `number`, for whole numbers."""
    return _within(int, least, most, what)


def _within(convert: Callable[[str], Number], least: float, most: float, what: str) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"it has to be {what}") from None
        if not least <= value <= most:  # also true for NaN
            raise argparse.ArgumentTypeError(f"it has to be {what}")
        return value

    return parse


count = whole(1, inf, "a whole number, 1 or more")
natural = whole(0, inf, "a whole number, 0 or more")


def interrupt_on_sigterm() -> None:
    """Make SIGTERM raise KeyboardInterrupt, as Ctrl-C does, so that `finally` ends processes and removes folders."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def raise_open_files(wanted: int) -> int:
    """Raise the limit of open files of this process, and of the mesh it starts, to `wanted` or the hard limit.

    Returns the limit to count on, at most `wanted`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
