"""Reading ``.ts`` files, the format of the UCR and UEA archives: one series a line, ``channel:channel:...:label``."""

from dataclasses import dataclass, field

import numpy as np

from flame.data.series.converted import SeriesWriter
from flame.data.series.text_lines import NotNumbersError, lines_of, numbers_of, shown
from flame.data.sources.storage import FileInfo
from flame.errors import DataError

_KNOWN = ("problemname", "missing", "equallength", "serieslength")
_TIMESTAMPS = "timestamps"


@dataclass
class _Header:
    """What the lines before ``@data`` say."""

    labels: str | list[str] = "none"
    channels: int = 0
    classes: set[str] = field(default_factory=set)

    @property
    def is_labelled(self) -> bool:
        return self.labels != "none"


def read_ts(file: FileInfo, writer: SeriesWriter) -> None:
    """Reads a ``.ts`` file.

    Args:
        file: The file.
        writer: Takes its series.

    Raises:
        DataError: The header lacks ``@data``, or says something that cannot be read, such as time stamps.
    """
    header, is_data = _Header(), False
    for number, line in lines_of(file):
        if line.startswith((b"#", b"%")):
            continue
        if is_data:
            _read_series(line, number, header, writer)
            continue
        text = line.decode("utf-8", "replace")
        if not text.startswith("@"):
            raise DataError(f"{file.path}, line {number}: '{shown(text)}' before @data: it is no .ts file, or damaged")
        is_data = text.lower() == "@data"
        if is_data:
            writer.channels = header.channels
            header.classes = set(header.labels) if isinstance(header.labels, list) else set()
        else:
            _read_tag(text, f"{file.path}, line {number}", header)
    if not is_data:
        raise DataError(f"{file.path} ends before @data: it is no .ts file, or incomplete; fetch it again")
    writer.finish(header.labels)


def _read_tag(text: str, where: str, header: _Header) -> None:
    tag, *words = [*text[1:].split(), "", ""][: max(2, len(text.split()))]
    tag, value = tag.lower(), words[0].lower()
    if tag in _KNOWN:
        return
    if tag == _TIMESTAMPS:
        if value == "true":
            raise DataError(f"{where}: series with time stamps are not read: leave only the values, at equal intervals")
    elif tag == "univariate":
        header.channels = 1 if value == "true" else header.channels
    elif tag in ("dimension", "dimensions"):
        if not value.isdecimal():
            raise DataError(f"{where}: '{shown(text)}' should end in the number of channels")
        header.channels = int(value)
    elif tag == "classlabel":
        if value == "true":
            header.labels = words[1:] or "found"
    elif tag == "targetlabel":
        if value == "true":
            header.labels = "targets"
    else:
        raise DataError(f"{where}: unknown tag '@{shown(tag)}': remove the line, or write it as a comment (#)")


def _read_series(line: bytes, number: int, header: _Header, writer: SeriesWriter) -> None:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return writer.fault("invalid UTF-8", f"byte {error.start} of the line", number)
    pieces = text.split(":")
    label: str | float | None = None
    if header.is_labelled:
        name = pieces.pop().strip()
        if not pieces:
            return writer.fault("no label", "no ':' on the line", number)
        label = None if name in ("", "?") else name
        if label is None:
            pass
        elif header.labels == "targets":
            try:
                label = float(name)
            except ValueError:
                return writer.fault("not a number", f"the target is '{shown(name)}'", number)
        elif header.classes and name not in header.classes:
            return writer.fault("unknown class", f"'{shown(name)}' is not among those of @classLabel", number)
    _add(pieces, label, number, writer)


def _add(pieces: list[str], label: str | float | None, number: int, writer: SeriesWriter) -> None:
    channels = []
    for channel, piece in enumerate(pieces, 1):
        try:
            channels.append(numbers_of(piece))
        except NotNumbersError as error:
            where = f"channel {channel}, " if len(pieces) > 1 else ""
            return writer.fault("not a number", where + str(error), number)
    lengths = sorted({len(channel) for channel in channels})
    if len(lengths) > 1:
        detail = f"channels of {lengths[0]} and of {lengths[-1]} steps"
        return writer.fault("channels of different lengths", detail, number)
    writer.add(np.stack(channels, axis=1), label, number)  # [T, C]
