"""Bold and dim text on a terminal."""

from typing import NamedTuple

_DIM, _BOLD, _PLAIN = "\033[2m", "\033[1m", "\033[0m"


class Styles(NamedTuple):
    """Sets text apart, where colours are wanted; else text is left as it is."""

    color: bool

    def dim(self, text: str) -> str:
        """For what is beside the point; ends with every line, as a pager ends colours there."""
        return "\n".join(f"{_DIM}{line}{_PLAIN}" for line in text.split("\n")) if self.color else text

    def bold(self, text: str) -> str:
        """For headings."""
        return f"{_BOLD}{text}{_PLAIN}" if self.color else text
