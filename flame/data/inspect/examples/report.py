"""What ``flame data stats`` says of examples: a table, a JSON file, and a page with pictures."""

from pathlib import Path
from typing import Any

from flame.data.inspect.examples.measure import ExampleMeasurement
from flame.data.inspect.measure import QUANTILES
from flame.data.inspect.pages import Pictures, aligned, page, skipped_sentences, write_pages

_MOST_CLASSES = 12  # that are named in a line


def text_table(figures: dict[str, Any]) -> str:
    """The figures for a terminal; lengths of examples by quantile."""
    return "\n".join([*aligned(_rows(figures)), "", *_sentences(figures)])


def write_report(folder: Path, title: str, figures: dict[str, Any], measurement: ExampleMeasurement) -> list[str]:
    """Writes the page, its figures and pictures; see ``write_pages``."""

    def text(pictures: Pictures) -> str:
        lengths = f"The last columns are lengths of examples in {figures['unit']}, by quantile."
        return page(title, _rows(figures), lengths, _sentences(figures), pictures)

    return write_pages(folder, figures, lambda folder: _draw(folder, figures, measurement), text)


def _draw(folder: Path, figures: dict[str, Any], measurement: ExampleMeasurement) -> Pictures:
    from flame.data.inspect.examples.pictures import draw

    return draw(folder, figures, measurement)


def _rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    unit = figures["unit"]
    many = [] if figures["classes"] or figures["numbers"] else [f"labels/{unit[:-1]}"]
    heads = ("source", "examples", "share", "wanted", unit, *many, "seen", *QUANTILES)
    return [heads, *(_cells(source, bool(many)) for source in figures["sources"])]


def _cells(source: dict[str, Any], many: bool) -> tuple[str, ...]:
    lengths, wanted, total = source["lengths"], source["wanted"], source["total_length"]
    return (
        source["name"],
        f"{source['examples']:,}",
        f"{source['share']:.2%}",
        "-" if wanted is None else f"{wanted:.2%}",
        f"{total:,.0f}",
        *([f"{source['labels'] / total:.2f}" if total else "-"] if many else []),
        f"{source['seen']:,} of {source['in_all']:,}",
        *(_short(lengths[name]) if lengths else "-" for name in QUANTILES),
    )


def _short(length: float) -> str:
    return f"{length:,.0f}" if length >= 100 else f"{length:.3g}"


def _sentences(figures: dict[str, Any]) -> list[str]:
    limit = figures["most_positions"]
    said = [
        f"{figures['steps']:,} steps, {figures['micro_batches']:,} micro-batches (mixed by {figures['mix']}): "
        f"{figures['examples']:,} examples, {figures['examples'] / max(1, figures['steps']):.1f} in a step"
        + (f" of at most {limit:,} positions" if limit else ""),
        f"{figures['positions']:,} positions without padding; {figures['padding']:.2%} of all are padding",
    ]
    if figures["blank_micro_batches"]:
        said.append(f"{figures['blank_micro_batches']:,} micro-batches are blank: their steps have fewer examples")
    if classes := figures["classes"]:
        named = ", ".join(f"{name} {count:,}" for name, count in list(classes.items())[:_MOST_CLASSES])
        said.append(f"{len(classes):,} classes: {named}{', ...' if len(classes) > _MOST_CLASSES else ''}")
    if numbers := figures["numbers"]:
        said.append(
            f"labels from {numbers['least']:.4g} to {numbers['greatest']:.4g}, mean {numbers['mean']:.4g}, "
            f"deviation {numbers['deviation']:.4g}"
        )
    return said + skipped_sentences(figures["skipped"], figures["skipped_such_as"])
