"""Prints text from other users safely on a terminal."""

import sys
import unicodedata

_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}\N{SOFT HYPHEN}"
"""Everyday text has them: Persian and Hindi, families of emoji, hyphenated words.  No terminal obeys them."""


def printable(text: str) -> str:
    """Return the text without control characters, which a terminal would obey, and without bidirectional controls.

    Lines after the first are indented, so that none can look like another message.
    """
    safe = "".join(char if _is_safe(char) else "\N{REPLACEMENT CHARACTER}" for char in text)
    return safe.replace("\n", "\n    ")


def _is_safe(char: str) -> bool:
    # Zs: no-break and ideographic spaces, which `isprintable` leaves out.  Variation selectors are printable to it.
    return char.isprintable() or char in "\n\t" or char in _JOINERS or unicodedata.category(char) == "Zs"


def escape_unencodable() -> None:
    r"""Print characters that the encoding of standard output lacks as \uXXXX.

    One message that cannot be printed would end the command at each start: it is not handled, and comes first again.
    """
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:  # a stand-in of a test has none
        reconfigure(errors="backslashreplace")
