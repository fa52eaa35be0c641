"""Names of users and devices: what people type, and REST and the client library turn into numbers.

A user name is folded to lower case before anything else looks at it, so that `Alice` and
`alice` are one person everywhere.  Only ASCII is folded: `str.lower` would turn the Kelvin
sign into a `k` and so let two strings that look different be one name.
"""

import re

NAME_CHARACTERS_MAX = 64
DEVICE_CHARACTERS_MAX = 64

_NAME = re.compile(rf"[a-z0-9._-]{{1,{NAME_CHARACTERS_MAX}}}")


def fold_name(name: str) -> str | None:
    """Return the name as it is stored and compared, or None when it cannot be a user name."""
    if not name.isascii():
        return None
    folded = name.lower()
    # Names of dots only would be eaten as path segments by every URL parser on the way, and a dash in front makes
    # an option of every command.
    return folded if _NAME.fullmatch(folded) and folded.strip(".") and not folded.startswith("-") else None


def is_device_name(name: str) -> bool:
    """Whether this may name a device: 1 to 64 printable characters, no space at either end."""
    return 0 < len(name) <= DEVICE_CHARACTERS_MAX and name.isprintable() and name == name.strip()
