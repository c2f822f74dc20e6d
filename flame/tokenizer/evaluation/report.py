"""The result of an evaluation, as text for a terminal, as JSON, and as a page of Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flame.tokenizer.evaluation.compression import Compression, VocabularyUse
from flame.tokenizer.evaluation.round_trip import RoundTrips

_LONGEST_SHOWN = 32  # characters


@dataclass
class Evaluation:
    """All that is known about a tokenizer in the end."""

    name: str
    compression: dict[str, dict[str, Compression]]
    """Domain or source -> tokenizer -> what it made of the text; the tokenizer itself comes first."""
    missing: list[str]
    """References that this machine does not have."""
    round_trips: list[RoundTrips]
    vocabulary: VocabularyUse
    speeds: dict[str, float]
    """Way of encoding -> MB of text per second."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Records of sources that could not be used, by reason."""


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything as plain values; compression with its ratio."""
    values = asdict(evaluation)
    for domain, by_name in evaluation.compression.items():
        for name, compression in by_name.items():
            values["compression"][domain][name]["bytes_per_token"] = round(compression.bytes_per_token, 4)
    return values


def as_text(evaluation: Evaluation) -> str:
    """One screen."""
    lines = [f"tokenizer {evaluation.name}", "", *_aligned(_compression_rows(evaluation)), ""]
    lines += [f"{name} is not on this machine, and not compared with" for name in evaluation.missing]
    lines += _aligned([[name, text] for name, text in _facts(evaluation)], left=2)
    return "\n".join(lines)


def as_markdown(evaluation: Evaluation) -> str:
    """A page of its own."""
    rows = _compression_rows(evaluation)
    lines = [f"# Tokenizer {evaluation.name}", "", "## Bytes per token", ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|---|" + "---:|" * (len(rows[0]) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    lines += ["", "More bytes per token make shorter sequences; in brackets, how many more tokens the other one needs."]
    lines += [f"{name} is not on this machine." for name in evaluation.missing]
    lines += ["", "## What else was found", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_escaped(text)} |" for name, text in _facts(evaluation)]
    return "\n".join(lines) + "\n"


def _compression_rows(evaluation: Evaluation) -> list[list[str]]:
    names = list(next(iter(evaluation.compression.values())))
    rows = [["bytes per token", "bytes", *names]]
    for domain, by_name in evaluation.compression.items():
        own = by_name[names[0]]
        cells = [f"{own.bytes_per_token:.2f}"]
        for name in names[1:]:
            other = by_name[name]
            cells.append(f"{other.bytes_per_token:.2f} ({other.tokens / max(1, own.tokens) - 1:+.1%})")
        rows.append([domain, f"{own.bytes:,}", *cells])
    return rows


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    use = evaluation.vocabulary
    tokens = use.size - use.special
    facts = [("vocabulary", f"{use.size:,} tokens, {use.special} of them special")]
    share = use.never_used / max(1, tokens)
    facts.append(("use", f"{use.never_used:,} tokens ({share:.1%}) never appear in these texts, {use.rare:,} rarely"))
    facts.append(("longest", "  ".join(_shown(token) for token in use.longest[:5])))
    facts += [("round trip", _outcome(result)) for result in evaluation.round_trips]
    off = [result for result in evaluation.round_trips if result.miscounted]
    if off:
        where = ", ".join(f"{result.miscounted:,} {result.kind}" for result in off)
        facts.append(("bits per byte", f"the tokens' bytes do not sum to the text's for {where}"))
    else:
        facts.append(("bits per byte", "exact: the tokens' bytes sum to the text's"))
    speeds = [f"{name} {speed:.1f} MB/s" for name, speed in evaluation.speeds.items()]
    facts.append(("speed", ", ".join(speeds)))
    if evaluation.skipped:
        facts.append(("skipped", ", ".join(f"{count:,} {reason}" for reason, count in evaluation.skipped.items())))
    return facts


def _outcome(result: RoundTrips) -> str:
    if not result.failed:
        return f"all {result.tried:,} {result.kind} come back"
    examples = "  ".join(_shown(text) for text in result.examples[:5])
    return f"{result.failed:,} of {result.tried:,} {result.kind} do not come back: {examples}"


def _shown(text: str) -> str:
    written = ascii(text) if not text.isprintable() or text == "\u2581" else repr(text)
    return written if len(written) <= _LONGEST_SHOWN else f"{written[: _LONGEST_SHOWN - 10]}… ({len(text)})"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Columns side by side, the first ``left`` to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
