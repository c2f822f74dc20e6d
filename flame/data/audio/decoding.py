"""Decoding and resampling: regions of audio files as mono float32, and what is wrong with a file, by name."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from flame.data.sources.records import BadRow
from flame.errors import DataError, need

SLACK = 0.1
"""Seconds by which a region may end after its file does: manifests round, and mp3 pads."""
_BLOCK = 1 << 16  # frames decoded at once where only their number is wanted
_UNKNOWN_FRAMES = 1 << 60  # libsndfile says so of a FLAC file that was written to a pipe
_UNKNOWN_BYTES = 0x7FFF0000  # a WAV file that was written to a pipe claims at least this much
# What libsndfile notes of the samples' chunk in Wave, AIFF, AU and Wave64 files.
_DATA_CHUNK = re.compile(r"^ *(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_MOST_FRAMES_PER_BYTE = 10_000  # FLAC's silence has 6,000; a header that claims more is damaged
_RATES = (1000, 1_000_000)  # Hz; resampling what claims another could take any amount of memory
_READ_AT_ONCE = 1 << 24  # frames: memory is asked for as they come, not as a header claims
_MP3_LEAD = 16 * 1152  # frames decoded before a region: they fill the bit reservoir that its beginning draws on
_OGG_PAGE = 27  # bytes of a page's fixed header
_OGG_LONGEST_PAGE = 65307


class AudioError(DataError):
    """A recording that cannot be used; sources turn it into a bad row."""

    def __init__(self, reason: str, where: str, detail: str = ""):
        super().__init__(reason, where, detail)  # as pickle hands them to the constructor
        self.reason = reason
        self.where = where
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.bad_row()}: mend the file, or leave it out"

    def bad_row(self, where: str = "") -> BadRow:
        """The same as a row of a source.

        Args:
            where: File and row of the source; empty for the audio file, which otherwise is told in the detail.
        """
        if not where or where == self.where:
            return BadRow(self.reason, self.where, self.detail)
        return BadRow(self.reason, where, ": ".join(filter(None, (self.where, self.detail))))


class Header(NamedTuple):
    """What a file says of itself."""

    frames: int
    rate: int
    channels: int
    format: str
    """As libsndfile calls it: ``WAV``, ``FLAC``, ``OGG``, ``MP3``, ..."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.frames / self.rate


def read_header(source: str | bytes, where: str) -> Header:
    """Reads what a file says of itself, without decoding it.

    Args:
        source: A path, or the content of a file.
        where: What messages call it.

    Raises:
        AudioError: It is not an audio file, is truncated as far as its header tells, or holds nothing.
    """
    with _opened(source, where) as file:
        return _header(file, source, where)


def read_region(source: str | bytes, start: float, stop: float | None, where: str) -> tuple[np.ndarray, int]:
    """Decodes a region of a file, and no more than that.

    Args:
        source: A path, or the content of a file.
        start: Seconds from the file's beginning.
        stop: Seconds from the file's beginning; None for its end.
        where: What messages call it.

    Returns:
        float32 ``[samples]``, the mean of the channels, and the file's rate.

    Raises:
        AudioError: It is not an audio file, is truncated, holds nothing or NaN or infinities, or the region is outside.
    """
    with _opened(source, where) as file:
        header = _header(file, source, where)
        first, last = frame_range(header, start, stop, where)
        lead = min(first, _MP3_LEAD) if header.format == "MP3" else 0
        if first - lead:
            _skip(file, first - lead)
        audio = _read(file, last - first + lead)[lead:]
    if len(audio) < last - first:
        raise AudioError("truncated audio", where, f"{len(audio):,} of {last - first:,} frames can be decoded")
    _check_finite(audio, first, where)
    return audio, header.rate


def frame_range(header: Header, start: float, stop: float | None, where: str) -> tuple[int, int]:
    """The first frame of a region, and the one after its last.

    Raises:
        AudioError: The region is not inside the file.
    """
    first = round(start * header.rate)
    last = header.frames if stop is None else round(stop * header.rate)
    told = f"{start:g} s to {'the end' if stop is None else f'{stop:g} s'} of {header.seconds:g} s"
    if not 0 <= first < header.frames or last > header.frames + SLACK * header.rate:
        raise AudioError("segment outside the file", where, told)
    if last <= first:
        raise AudioError("empty segment", where, told)
    return first, min(last, header.frames)


def resample(audio: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Resamples float32 ``[samples]``; the same array if the rates are equal."""
    if rate == wanted:
        return audio
    need("audio", "soxr")
    import soxr

    return soxr.resample(audio, rate, wanted)


def blocks(path: str, rate: int, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """Decodes a file of any length block by block, in constant memory.

    Args:
        path: The file.
        rate: Samples per second of what is wanted.
        seconds: About how long a block is.

    Yields:
        float32 ``[samples]``; joined, they are what ``Recording.load`` gives, within 1e-4.

    Raises:
        AudioError: It is not an audio file, is truncated, or holds nothing or NaN or infinities.
    """
    need("audio", "soxr")
    import soxr

    with _opened(path, path) as file:
        header = _header(file, path, path)
        stream = soxr.ResampleStream(header.rate, rate, 1, dtype="float32") if header.rate != rate else None
        done = 0
        while done < header.frames:
            audio = _mono(file.read(max(1, round(seconds * header.rate)), dtype="float32", always_2d=True))
            if not len(audio):
                raise AudioError("truncated audio", path, f"{done:,} of {header.frames:,} frames can be decoded")
            _check_finite(audio, done, path)
            done += len(audio)
            if stream is not None:
                audio = stream.resample_chunk(audio, last=done >= header.frames)
            if len(audio):
                yield audio


@contextmanager
def _opened(source: str | bytes, where: str) -> Iterator[Any]:
    """A ``soundfile.SoundFile``; what goes wrong with it is an ``AudioError``."""
    need("audio", "soundfile")
    import soundfile

    try:
        if not _size(source):
            raise AudioError("empty audio", where, "0 bytes")
        sound = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except OSError as error:
        raise AudioError("unreadable audio", where, error.strerror or str(error)) from error
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: raw samples, as a name may say
        _check_readable(source, where)  # libsndfile does not tell a file that may not be read from one of noise
        raise AudioError("not an audio file", where, _reason(error)) from error
    if sound.frames >= _UNKNOWN_FRAMES:
        sound.seekable = lambda: False  # soundfile seeks after every read, which libsndfile cannot do here
    with sound:
        try:
            yield sound
        except soundfile.LibsndfileError as error:
            raise AudioError("truncated audio", where, _reason(error)) from error


def _check_readable(source: str | bytes, where: str) -> None:
    if isinstance(source, bytes):
        return
    try:
        open(source, "rb").close()
    except OSError as error:
        raise AudioError("unreadable audio", where, error.strerror or str(error)) from error


def _read(file: Any, frames: int) -> np.ndarray:
    """So many frames, or what there is of them; float32 ``[frames]``."""
    pieces = [_mono(file.read(min(frames, _READ_AT_ONCE), dtype="float32", always_2d=True))]
    done = len(pieces[0])
    while len(pieces[-1]) and done < frames:
        pieces.append(_mono(file.read(min(frames - done, _READ_AT_ONCE), dtype="float32", always_2d=True)))
        done += len(pieces[-1])
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _size(source: str | bytes) -> int:
    return len(source) if isinstance(source, bytes) else os.stat(source).st_size


def _header(file: Any, source: str | bytes, where: str) -> Header:
    frames = file.frames
    for declared, found in _DATA_CHUNK.findall(file.extra_info):
        if int(found) < int(declared) < _UNKNOWN_BYTES:
            raise AudioError("truncated audio", where, f"{int(found):,} of {int(declared):,} bytes are there")
    if file.format == "OGG":
        _check_ogg(source, where)
    if not _RATES[0] <= file.samplerate <= _RATES[1]:
        raise AudioError("impossible sample rate", where, f"{file.samplerate:,} Hz")
    if frames >= _UNKNOWN_FRAMES:
        frames = _counted(source, where)
    if not frames:
        raise AudioError("empty audio", where, "no samples")
    if frames > _MOST_FRAMES_PER_BYTE * _size(source):
        raise AudioError("truncated audio", where, f"{frames:,} frames cannot be in {_size(source):,} bytes")
    return Header(frames, file.samplerate, file.channels, file.format)


def _counted(source: str | bytes, where: str) -> int:
    """Decodes a whole file for the number of its frames."""
    frames = 0
    with _opened(source, where) as file:
        while count := len(file.read(_BLOCK, dtype="int16", always_2d=True)):
            frames += count
    return frames


def _skip(file: Any, frames: int) -> None:
    """Goes to a frame of a file that was just opened."""
    if file.frames < _UNKNOWN_FRAMES:
        file.seek(frames)
        return
    while frames:  # without a length, libsndfile does not seek
        frames -= len(file.read(min(frames, _BLOCK), dtype="int16", always_2d=True))


def _check_ogg(source: str | bytes, where: str) -> None:
    """Refuses an Ogg file whose last page is cut: libsndfile takes the pages before for all of it."""
    if isinstance(source, bytes):
        tail = source[-2 * _OGG_LONGEST_PAGE :]
    else:
        with open(source, "rb") as file:
            file.seek(max(0, file.seek(0, io.SEEK_END) - 2 * _OGG_LONGEST_PAGE))
            tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[_OGG_PAGE - 1] if len(page) >= _OGG_PAGE else 256
    size = _OGG_PAGE + segments + sum(page[_OGG_PAGE : _OGG_PAGE + segments])
    if len(page) < size:
        raise AudioError("truncated audio", where, "its last page is cut")


def _mono(audio: np.ndarray) -> np.ndarray:
    """``[frames, channels]`` -> ``[frames]``."""
    return np.ascontiguousarray(audio[:, 0]) if audio.shape[1] == 1 else audio.mean(axis=1)


def _check_finite(audio: np.ndarray, first: int, where: str) -> None:
    """Refuses NaN and infinities, as files of floating point may hold."""
    if np.isfinite(audio.sum(dtype=np.float64)):  # far cheaper than to ask every sample
        return
    finite = np.isfinite(audio)
    place = first + int(np.argmin(finite))
    raise AudioError("NaN or infinity in the audio", where, f"{int((~finite).sum()):,} samples, frame {place:,} first")


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").strip().rstrip(".")
