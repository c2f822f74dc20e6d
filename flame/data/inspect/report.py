"""What ``flame data stats`` says: a table, a JSON file, and a page with pictures."""

from pathlib import Path
from typing import Any

from flame.data.inspect.measure import QUANTILES, Measurement
from flame.data.inspect.pages import Pictures, aligned, page, skipped_sentences, write_pages

_HEADS = ("source", "tokens", "share", "wanted", "scored", "documents", *QUANTILES)


def text_table(figures: dict[str, Any]) -> str:
    """The figures for a terminal; lengths of documents are in tokens, by quantile."""
    return "\n".join([*aligned(_rows(figures)), "", *_sentences(figures)])


def write_report(folder: Path, title: str, figures: dict[str, Any], measurement: Measurement) -> list[str]:
    """Writes the page, its figures and pictures; see ``write_pages``."""

    def text(pictures: Pictures) -> str:
        lengths = "The last columns are lengths of documents in tokens, by quantile."
        return page(title, _rows(figures), lengths, _sentences(figures), pictures)

    return write_pages(folder, figures, lambda folder: _draw(folder, figures, measurement), text)


def _draw(folder: Path, figures: dict[str, Any], measurement: Measurement) -> Pictures:
    from flame.data.inspect.pictures import draw

    return draw(folder, figures, measurement)


def _rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    return [_HEADS, *(_cells(source) for source in figures["sources"])]


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
    said += skipped_sentences(figures["skipped"], figures["examples"])
    return said
