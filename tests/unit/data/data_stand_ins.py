"""The config of small loaders, and the documents of their tests."""

from functools import partial

from flame.config import Data as DataSection
from flame.config import Source, Training

Data = partial(DataSection, lanes_per_row=3)
Dataloader = type(Training().dataloader)

__all__ = ["Data", "Dataloader", "Source", "document"]


def document(number: int) -> str:
    """The text of document ``number``: its number, and as many dots as make the lengths differ."""
    return f"[{number}]" + "." * (number * 7 % 40)
