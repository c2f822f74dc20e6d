"""Reading the text files of the UCR archive (``NAME_TRAIN.tsv``, older ones ``.txt``): the label first, no header."""

import re
from pathlib import PurePath

import numpy as np

from flame.data.series.converted import SeriesWriter
from flame.data.series.labels import MISSING
from flame.data.series.text_lines import NotNumbersError, lines_of, numbers_of
from flame.data.sources.storage import FileInfo

_NAME = re.compile(r".+_(train|test)\.(tsv|txt)", re.IGNORECASE)


def is_ucr_file(path: str) -> bool:
    """Whether a file is named as those of the archive are."""
    return _NAME.fullmatch(PurePath(path).name) is not None


def read_ucr(file: FileInfo, writer: SeriesWriter) -> None:
    """Reads a file of the archive; what is missing at the end of a line is the end of a shorter series.

    Args:
        file: The file.
        writer: Takes its series.

    Raises:
        DataError: The file cannot be read.
    """
    separator: str | None = None
    for number, line in lines_of(file):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            writer.fault("invalid UTF-8", f"byte {error.start} of the line", number)
            continue
        if not len(writer):
            separator = next((sign for sign in "\t," if sign in text), None)
        label, _, rest = text.replace("\t", " ").partition(" ") if separator is None else text.partition(separator)
        try:
            values = numbers_of(rest, separator)
        except NotNumbersError as error:
            writer.fault("not a number", str(error), number)
            continue
        known = None if label.strip() in MISSING else label.strip()
        writer.add(without_tail(values)[:, None], known, number)
    writer.finish("found")


def without_tail(values: np.ndarray) -> np.ndarray:
    """Values ``[T]`` up to the last that is not missing."""
    known = np.flatnonzero(~np.isnan(values))
    return values[: known[-1] + 1] if len(known) else values[:0]
