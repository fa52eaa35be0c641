"""Showing text that somebody else wrote."""


def printable(text: str) -> str:
    """The text without anything that a terminal would obey; lines after the first are indented, so that none looks

    like another message.
    """
    safe = "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
    return safe.replace("\n", "\n    ")
