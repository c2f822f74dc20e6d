"""Reading ``.arff`` files of series: a column per step, or the relational attribute of multivariate ones."""

import re
from typing import NamedTuple

import numpy as np

from flame.data.series.converted import SeriesWriter
from flame.data.series.labels import USUAL_LABELS
from flame.data.series.text_lines import NotNumbersError, lines_of, numbers_of, shown
from flame.data.sources.storage import FileInfo
from flame.errors import DataError

_ATTRIBUTE = re.compile(r"""@attribute\s+('[^']*'|"[^"]*"|\S+)\s+(.*\S)""", re.IGNORECASE)
_CELL = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|([^,'"]*))\s*(,|$)""")
_NUMERIC = ("numeric", "real", "integer")
_QUOTES = "'\""


class _Attribute(NamedTuple):
    name: str
    kind: str
    """``numeric``, ``nominal``, ``relational``, or what else the file calls it."""
    classes: list[str]


class _Layout(NamedTuple):
    """Where in a row is what."""

    attributes: list[_Attribute]
    label: int | None
    """Number of the attribute that is the label."""
    is_relational: bool

    @property
    def labels(self) -> str | list[str]:
        """What the writer is to make of them."""
        if self.label is None:
            return "none"
        return self.attributes[self.label].classes or "found"


def read_arff(file: FileInfo, writer: SeriesWriter) -> None:
    """Reads an ``.arff`` file.

    Args:
        file: The file.
        writer: Takes its series.

    Raises:
        DataError: The header lacks ``@data``, or has attributes that are neither values nor a label.
    """
    attributes: list[_Attribute] = []
    layout: _Layout | None = None
    inside = ""  # the relational attribute whose columns are being listed
    for number, line in lines_of(file):
        if line.startswith(b"%"):
            continue
        if layout is not None:
            _read_row(line, number, layout, writer)
            continue
        text = line.decode("utf-8", "replace")
        tag = text.partition(" ")[0].lower()
        if tag == "@data":
            layout = _layout(attributes, file.path)
        elif tag == "@attribute" and not inside:
            attributes.append(_attribute(text, f"{file.path}, line {number}"))
            inside = attributes[-1].name if attributes[-1].kind == "relational" else ""
        elif tag == "@end":
            inside = ""
        elif tag not in ("@relation", "@attribute"):
            raise DataError(
                f"{file.path}, line {number}: '{shown(text)}' before @data: it is no .arff file, or damaged"
            )
    if layout is None:
        raise DataError(f"{file.path} ends before @data: it is no .arff file, or incomplete; fetch it again")
    writer.finish(layout.labels)


def _attribute(text: str, where: str) -> _Attribute:
    match = _ATTRIBUTE.fullmatch(text)
    if match is None:
        raise DataError(f"{where}: '{shown(text)}' is no attribute: write @attribute NAME numeric, or {{class,class}}")
    name, kind = match[1].strip(_QUOTES), match[2].strip()
    if kind.startswith("{"):
        return _Attribute(name, "nominal", [_plain(cell) for cell in _cells(kind.strip("{}")) or []])
    kind = kind.partition(" ")[0].lower()
    return _Attribute(name, "numeric" if kind in _NUMERIC else kind, [])


def _layout(attributes: list[_Attribute], path: str) -> _Layout:
    nominal = [place for place, attribute in enumerate(attributes) if attribute.kind == "nominal"]
    usual = [place for place, attribute in enumerate(attributes) if attribute.name.lower() in USUAL_LABELS]
    label = next(reversed(nominal or usual), None)
    relational = [place for place, attribute in enumerate(attributes) if attribute.kind == "relational"]
    odd = [
        attribute
        for place, attribute in enumerate(attributes)
        if place != label and attribute.kind != ("relational" if relational else "numeric")
    ]
    if odd:
        raise DataError(f"{path}: attribute '{odd[0].name}' is {odd[0].kind}, not numeric: remove it from the file")
    if len(relational) > 1 or (relational and len(attributes) > 2):
        raise DataError(f"{path}: only one relational attribute and a label are read: make files of the others")
    return _Layout(attributes, label, bool(relational))


def _read_row(line: bytes, number: int, layout: _Layout, writer: SeriesWriter) -> None:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return writer.fault("invalid UTF-8", f"byte {error.start} of the line", number)
    if text.startswith("{"):
        return writer.fault("sparse row", "only rows that list all values are read", number)
    cells = _cells(text)
    if cells is None or len(cells) != len(layout.attributes):
        found = "an open quote" if cells is None else f"{len(cells)}, not {len(layout.attributes)}"
        return writer.fault("other number of columns", found, number)
    label: str | None = None
    if layout.label is not None:
        attribute = layout.attributes[layout.label]
        name = _plain(cells.pop(layout.label))
        label = None if name in ("", "?") else name
        if label and attribute.classes and label not in attribute.classes:
            return writer.fault("unknown class", f"'{shown(label)}' is not among those of '{attribute.name}'", number)
    try:
        channels = [numbers_of(channel) for channel in _channels(cells, layout.is_relational)]
    except NotNumbersError as error:
        return writer.fault("not a number", str(error), number)
    if len({len(channel) for channel in channels}) > 1:
        return writer.fault("channels of different lengths", "", number)
    writer.add(np.stack(channels, axis=1), label, number)  # [T, C]


def _channels(cells: list[str], is_relational: bool) -> list[str]:
    """The text of every channel; in a relational cell, they are separated by a backslash and an n."""
    return cells[0].replace("\\n", "\n").strip("\n").split("\n") if is_relational else [",".join(cells)]


def _cells(text: str) -> list[str] | None:
    """The cells of a row, without quotes around them; None if a quote is left open."""
    cells, start = [], 0
    while True:
        match = _CELL.match(text, start)
        if match is None:
            return None
        cells.append(next((group for group in match.groups()[:3] if group is not None), ""))
        if not match[4]:
            return cells
        start = match.end()


def _plain(cell: str) -> str:
    return cell.strip().strip(_QUOTES)
