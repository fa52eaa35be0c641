"""Prints text from other users safely on a terminal."""


def printable(text: str) -> str:
    """Return the text without control characters, which a terminal would obey.

    Lines after the first are indented, so that none can look like another message.
    """
    safe = "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
    return safe.replace("\n", "\n    ")
