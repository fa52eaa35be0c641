"""Names of users and devices: people type them; REST and the client library turn them into ids.

A user name is folded to lower case before any other use, so that `Alice` and `alice` are one user.  Only ASCII is
folded: `str.lower` turns the Kelvin sign into a `k`, so that two strings that look different would be one name.
"""

import re

NAME_CHARACTERS_MAX = 64
DEVICE_CHARACTERS_MAX = 64

_NAME = re.compile(rf"[a-z0-9._-]{{1,{NAME_CHARACTERS_MAX}}}")


def fold_name(name: str) -> str | None:
    """Return the name in the form that is stored and compared, or None when it is not a valid user name."""
    if not name.isascii():
        return None
    folded = name.lower()
    # URL parsers remove path segments of dots only, and commands take an argument with a leading dash for an option.
    return folded if _NAME.fullmatch(folded) and folded.strip(".") and not folded.startswith("-") else None


def is_device_name(name: str) -> bool:
    """Return whether this is a valid device name: 1 to 64 printable characters, no space at either end."""
    return 0 < len(name) <= DEVICE_CHARACTERS_MAX and name.isprintable() and name == name.strip()
