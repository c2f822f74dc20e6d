"""What ``flame data stats`` says: a table, a JSON file, and a page with pictures."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flame.data.inspect.measure import QUANTILES, Measurement
from flame.errors import DataError

_HEADS = ("source", "tokens", "share", "wanted", "scored", "documents", *QUANTILES)


def text_table(figures: dict[str, Any]) -> str:
    """The figures for a terminal; lengths of documents are in tokens, by quantile."""
    rows = [_HEADS, *(_cells(source) for source in figures["sources"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = [
        "  ".join(_aligned(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([*lines, "", *_sentences(figures)])


def write_report(folder: Path, title: str, figures: dict[str, Any], measurement: Measurement) -> list[str]:
    """Writes ``stats.json`` and ``report.md``, with pictures if matplotlib is there.

    Returns:
        What to tell the user: where the report is, and what it lacks.

    Raises:
        DataError: The folder cannot be written.
    """
    can_draw = importlib.util.find_spec("matplotlib") is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stats.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        pictures = _draw(folder, figures, measurement) if can_draw else []
        (folder / "report.md").write_text(_page(title, figures, pictures), encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write the report into {folder} ({error.strerror}): name another folder with --out"
        ) from error
    missing = [] if can_draw else ['no pictures without matplotlib: pip install "flame[plots]"']
    return [f"report: {folder / 'report.md'}", *missing]


def _draw(folder: Path, figures: dict[str, Any], measurement: Measurement) -> list[tuple[str, str]]:
    from flame.data.inspect.pictures import draw

    return draw(folder, figures, measurement)


def _cells(source: dict[str, Any]) -> tuple[str, ...]:
    lengths = source["lengths"]
    wanted = source["wanted"]
    return (
        source["name"],
        f"{source['tokens']:,}",
        f"{source['share']:.2%}",
        "-" if wanted is None else f"{wanted:.2%}",
        f"{source['scored']:.1%}",
        f"{source['documents']:,} of {source['documents_in_all']:,}",
        *(f"{lengths[name]:,.0f}" if lengths else "-" for name in QUANTILES),
    )


def _aligned(cell: str, width: int, column: int) -> str:
    return f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"


def _sentences(figures: dict[str, Any]) -> list[str]:
    said = [
        f"{figures['steps']:,} steps, {figures['rows']:,} rows of {figures['seq_len']:,} tokens "
        f"({figures['packing']}, mixed by {figures['mix']}): {figures['tokens']:,} tokens, "
        f"{figures['documents_per_row']:.1f} documents in a row",
        f"{figures['filled']:.2%} of all places are filled, {figures['padding']:.2%} are padding, "
        f"{figures['scored']:.2%} are scored",
        f"{figures['cut_by_rows']:,} times a document goes on in another row",
    ]
    if figures["blank_rows"]:
        said.append(f"{figures['blank_rows']:,} rows are blank: their lanes have ended")
    if packed := figures["packed"]:
        told = [name for name in ("documents", "cut", "too long", "tokens left out") if name in packed]
        said.append("in the blocks packed for them: " + ", ".join(f"{packed[name]:,} {name}" for name in told))
    said += [
        f"{count:,} x {reason}, such as {figures['examples'].get(reason, '')}"
        for reason, count in sorted(figures["skipped"].items(), key=lambda item: -item[1])
    ]
    return said


def _page(title: str, figures: dict[str, Any], pictures: Sequence[tuple[str, str]]) -> str:
    cells = [_HEADS, ("---", *["---:"] * (len(_HEADS) - 1)), *(_cells(source) for source in figures["sources"])]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
    sentences = "\n".join(f"- {sentence}" for sentence in _sentences(figures))
    shown = "\n\n".join(f"![{name}]({file})" for file, name in pictures)
    lengths = "The last columns are lengths of documents in tokens, by quantile."
    return "\n\n".join(part for part in (f"# Data of {title}", table, lengths, sentences, shown) if part) + "\n"
