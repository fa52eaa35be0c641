"""Text of other users on a terminal."""

import io
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from meshim.cli.deadletter import ShownLetter, _print
from meshim.cli.messaging import _line
from meshim.cli.terminal import escape_unencodable, printable
from meshim.client.application.message import Message, OrderFlag
from meshim.wire.envelope import Destination, DestinationType, Stream


@pytest.mark.parametrize(
    "text",
    [
        "20\N{NO-BREAK SPACE}000\N{NARROW NO-BREAK SPACE}€",
        "\N{IDEOGRAPHIC SPACE}今日は",
        "می\N{ZERO WIDTH NON-JOINER}خواهم",
        "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}",
        "\N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}",
        "葛\N{VARIATION SELECTOR-17}",
        "hy\N{SOFT HYPHEN}phen",
    ],
)
def test_everyday_characters_are_printed(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "char", [*map(chr, (0, 7, 0x1B, 0x7F, 0x85, 0x9B, 0x61C, 0x200E, 0x200F, 0x2028, 0x2029)), *"\r\v\f"]
)  # fmt: skip
def test_control_characters_are_not_printed(char: str) -> None:
    assert printable(f"a{char}b") == "a\ufffdb"


@pytest.mark.parametrize("char", [*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"])
def test_bidirectional_controls_are_not_printed(char: str) -> None:
    assert printable(f"a{char}b") == "a\ufffdb"


def test_the_reason_of_a_dead_letter_is_printed_without_controls(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever published it wrote the reason."""
    _print(ShownLetter(1, 0, 1, "", "bad\x1b[2J", 0, [], None))
    assert "bad\ufffd[2J" in capsys.readouterr().out


@pytest.fixture(params=["Pacific/Kiritimati", "Asia/Tokyo", "UTC", "Etc/GMT+12"])
def time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("time_zone")
@pytest.mark.parametrize("sent_at", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_a_time_that_has_no_local_form_is_shown_in_utc(sent_at: datetime) -> None:
    nothing: Any = None
    message = Message(
        id="", sender="ann", sender_device=1, recipient="ben", text="hi", sent_at=sent_at, own=False, stored=False,
        already_read=False, order=OrderFlag.IN_ORDER, problem="",
        stream=Stream(1, 1, 1, Destination(DestinationType.USER, 2)), seq=1, done=nothing, read=nothing,
    )  # fmt: skip
    assert _line(message).endswith(" ann: hi")


def test_what_the_encoding_of_the_output_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    escape_unencodable()
    print("é\N{HIRAGANA LETTER A}", flush=True)
    assert raw.getvalue() == b"\xe9\\u3042\n"
