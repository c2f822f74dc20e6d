"""A source of recordings, as worker processes read it."""

from collections.abc import Sequence

import numpy as np

from flame.data.audio.decoding import AudioError
from flame.data.audio.entries import Columns, recording_of, transcript_of
from flame.data.sources.records import BadRow, DocumentSource, Record


class AudioSource:
    """Recordings with their transcripts, by number; records are ``{"audio": Recording, "text": str}``.

    Args:
        name: What messages call the source.
        rows: What says where audio lies.
        columns: What is where in it.
        seconds: float64 ``[rows]``; 0 of what cannot be used.
        folders: The folder that paths are relative to, with the number of the first row for which it holds.
        text_required: Whether a row without a transcript is a bad one, or has an empty text.
    """

    block = 1
    tokenized = False

    def __init__(
        self,
        name: str,
        rows: DocumentSource,
        columns: Columns,
        seconds: np.ndarray,
        folders: Sequence[tuple[int, str]] = ((0, ""),),
        text_required: bool = True,
    ):
        self.name = name
        self._rows = rows
        self._columns = columns
        self._seconds = seconds
        self._firsts = np.array([first for first, _ in folders])
        self._folders = [folder for _, folder in folders]
        self._text_required = text_required

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the rows with these numbers, in this order.

        The headers of the audio files are looked at; what shows only in decoding is raised by ``Recording.load``.
        """
        numbers = [int(index) for index in indices]
        return [self._read_one(index, row) for index, row in zip(numbers, self._rows.read(numbers), strict=True)]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Does nothing: what is read here is small."""

    def where(self, index: int) -> str:
        """File (or dataset) and row."""
        return self._rows.where(int(index))

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Seconds of the rows with these numbers, float64, as a manifest or the headers say; 0 of unusable ones."""
        return self._seconds[indices]

    def _read_one(self, index: int, row: Record) -> Record:
        if isinstance(row, BadRow):
            return row
        where = self.where(index)
        text = transcript_of(row, self._columns, where)
        if isinstance(text, BadRow):
            if self._text_required or text.reason != "empty transcript":
                return text
            text = ""
        folder = self._folders[int(np.searchsorted(self._firsts, index, side="right")) - 1]
        try:
            recording = recording_of(row, self._columns, folder, where)
            _ = recording.duration  # reads the headers
        except AudioError as error:
            return error.bad_row(where)
        return {"audio": recording, "text": text}
