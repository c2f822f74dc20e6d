"""Tables and pages of figures, whatever they count."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flame.errors import DataError

Pictures = list[tuple[str, str]]
"""Files of pictures, each with what it shows."""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table for a terminal; the first column is text, the others are numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:>{width}}" if column else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def page(title: str, rows: Sequence[Sequence[str]], lengths: str, sentences: Sequence[str], pictures: Pictures) -> str:
    """A page of Markdown: a table, what its columns of lengths are, sentences, pictures."""
    cells = [rows[0], ("---", *["---:"] * (len(rows[0]) - 1)), *rows[1:]]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
    said = "\n".join(f"- {sentence}" for sentence in sentences)
    shown = "\n\n".join(f"![{name}]({file})" for file, name in pictures)
    return "\n\n".join(part for part in (f"# Data of {title}", table, lengths, said, shown) if part) + "\n"


def write_pages(
    folder: Path, figures: dict[str, Any], draw: Callable[[Path], Pictures], text: Callable[[Pictures], str]
) -> list[str]:
    """Writes ``stats.json`` and ``report.md``, with pictures if matplotlib is there.

    Args:
        folder: Where to; made if it is not there.
        figures: For JSON.
        draw: Draws pictures into a folder.
        text: The page, given the pictures.

    Returns:
        What to tell the user: where the report is, and what it lacks.

    Raises:
        DataError: The folder cannot be written.
    """
    can_draw = importlib.util.find_spec("matplotlib") is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stats.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        pictures = draw(folder) if can_draw else []
        (folder / "report.md").write_text(text(pictures), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write the report into {folder} ({error.strerror}): name another folder with --out"
        ) from error
    missing = [] if can_draw else ['no pictures without matplotlib: pip install "flame[plots]"']
    return [f"report: {folder / 'report.md'}", *missing]


def skipped_sentences(skipped: dict[str, int], examples: dict[str, str]) -> list[str]:
    """What was left out, the most frequent reason first, each with an example."""
    return [
        f"{count:,} x {reason}, such as {examples.get(reason, '')}"
        for reason, count in sorted(skipped.items(), key=lambda item: -item[1])
    ]
