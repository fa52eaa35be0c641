"""The argument types of the scripts."""

import argparse
from collections.abc import Callable

import pytest

from scripts.harness.mesh.options import count, natural, number, whole

SECONDS = number(5, 60, "a number of seconds, 5 to 60")


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [(SECONDS, "5", 5.0), (SECONDS, "59.5", 59.5), (count, "1", 1), (natural, "0", 0), (whole(-2, 2, ""), "-2", -2)],
)
def test_a_number_in_range_is_accepted(parse: Callable[[str], float], text: str, value: float) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "sentence"),
    [
        *((SECONDS, text, "it has to be a number of seconds, 5 to 60") for text in ("4.9", "61", "nan", "inf", "abc")),
        *((count, text, "it has to be a whole number, 1 or more") for text in ("0", "-1", "1.5", "abc")),
        *((natural, text, "it has to be a whole number, 0 or more") for text in ("-1", "1e3")),
    ],
)
def test_any_other_text_is_one_sentence(parse: Callable[[str], float], text: str, sentence: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{sentence}$"):
        parse(text)
