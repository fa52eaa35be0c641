"""What a check of a topology finds: a fault or a warning, with the path of the field."""

from typing import NamedTuple


class Finding(NamedTuple):
    """`text` says what is wrong and what to do, without a final period."""

    path: str
    """As `$.timers.sweep_s`."""
    text: str

    @property
    def sentence(self) -> str:
        """The finding for people."""
        return f"{self.text} - at `{self.path}`."
