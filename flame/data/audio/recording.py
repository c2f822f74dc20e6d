"""Recordings: where audio lies, as a value that is cheap to send to another process; decoded when it is loaded."""

import functools
import hashlib
import json
import os
from dataclasses import dataclass, field

import numpy as np

from flame.data.audio.decoding import AudioError, frame_range, read_header, read_region, resample
from flame.errors import DataError


@dataclass(frozen=True)
class Part:
    """A region of an audio file."""

    path: str
    """The file; what messages call it, where ``data`` holds its content."""
    start: float = 0.0
    """Seconds from the file's beginning."""
    stop: float | None = None
    """Seconds from the file's beginning; None for its end."""
    data: bytes | None = field(default=None, repr=False)
    """The content of the file, where it lies in memory."""

    @property
    def source(self) -> str | bytes:
        """What is decoded."""
        return self.path if self.data is None else self.data

    @property
    def identity(self) -> list:
        """What its sound depends on: file, size, time of its last change, and region.

        Raises:
            AudioError: The file is not there.
        """
        if self.data is not None:
            return [hashlib.blake2b(self.data, digest_size=16).hexdigest(), self.start, self.stop]
        try:
            stat = os.stat(self.path)
        except OSError as error:
            raise AudioError("unreadable audio", self.path, error.strerror or str(error)) from error
        return [os.path.abspath(self.path), stat.st_size, stat.st_mtime_ns, self.start, self.stop]


@dataclass(frozen=True)
class Recording:
    """One or more regions of audio files, joined with silence between them; picklable.

    Raises:
        DataError: There are no parts, or not one silence less than parts, or one is negative.
    """

    parts: tuple[Part, ...]
    silences: tuple[float, ...] = ()
    """Seconds between each two parts."""

    def __post_init__(self) -> None:
        if not self.parts or len(self.silences) != len(self.parts) - 1:
            raise DataError(f"{len(self.parts)} parts with {len(self.silences)} silences: give one between each two")
        if min(self.silences, default=0.0) < 0:
            raise DataError(f"a silence of {min(self.silences):g} s: it is 0 or more")

    @property
    def name(self) -> str:
        """The first file, and how many more; for messages."""
        first, *others = self.parts
        return f"{first.path} and {len(others)} more" if others else first.path

    @functools.cached_property
    def duration(self) -> float:
        """Seconds, as the headers of its files say.

        Raises:
            AudioError: One cannot be read, or holds nothing, or its region is outside.
        """
        return sum(self.silences) + sum(map(part_seconds, self.parts))

    @property
    def key(self) -> str:
        """32 hexadecimal digits that change with the files (size, time of last change), the regions and the silences.

        Raises:
            AudioError: A file is not there.
        """
        text = json.dumps([[part.identity for part in self.parts], self.silences])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def load(self, rate: int) -> np.ndarray:
        """Decodes it.

        Args:
            rate: Samples per second of what is wanted; files of other rates are resampled.

        Returns:
            Mono float32 ``[samples]``, nominally in -1 ... 1; what is louder is left as it is.

        Raises:
            AudioError: A file is not audio, is truncated, holds nothing or NaN or infinities, or a region is outside.
        """
        pieces: list[np.ndarray] = []
        for number, part in enumerate(self.parts):
            if number:
                pieces.append(np.zeros(round(self.silences[number - 1] * rate), np.float32))
            audio, own_rate = read_region(part.source, part.start, part.stop, part.path)
            pieces.append(resample(audio, own_rate, rate))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def part_seconds(part: Part) -> float:
    """Seconds of a region, by its file's header.

    Raises:
        AudioError: The file cannot be read, or holds nothing, or the region is outside.
    """
    header = read_header(part.source, part.path)
    first, last = frame_range(header, part.start, part.stop, part.path)
    return (last - first) / header.rate


def join(recordings: list[Recording], silences: list[float]) -> Recording:
    """Joins recordings, with seconds of silence between each two.

    Raises:
        DataError: There is not one silence less than recordings.
    """
    if len(silences) != len(recordings) - 1:
        raise DataError(f"{len(recordings)} recordings with {len(silences)} silences: give one between each two")
    between: list[float] = []
    for number, recording in enumerate(recordings):
        between += ([silences[number - 1]] if number else []) + list(recording.silences)
    return Recording(tuple(part for recording in recordings for part in recording.parts), tuple(between))
