"""What a preparation for CTC has made."""

from typing import NamedTuple

from flame.data.audio.collect import Dropped, Utterance


class Prepared(NamedTuple):
    """What a preparation has made."""

    train: list[Utterance]
    validation: list[Utterance]
    train_joined: list[Utterance]
    validation_joined: list[Utterance]
    dropped: Dropped
    vocabulary: int
    """Entries of the tokenizer."""
    unknown: dict[str, int]
    """Characters that have no entry, with how often they occur."""
