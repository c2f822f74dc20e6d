"""What ``flame data prepare-ctc`` says: a page with what was kept and left out, and a picture."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flame.data.audio.collect import Utterance, characters_per_second
from flame.data.audio.normalise_text import characters
from flame.data.audio.options import Options
from flame.data.audio.prepared import Prepared

PICTURE = "lengths.png"
_QUANTILES = (0, 5, 50, 95, 100)
_MOST_FREQUENT = 100  # characters told


def write_report(folder: Path, made: Prepared, options: Options) -> None:
    """Writes ``report.md``, with a picture if matplotlib is there.

    Raises:
        OSError: It cannot be written.
    """
    parts = _parts(made)
    has_picture = importlib.util.find_spec("matplotlib") is not None
    if has_picture:
        from flame.data.audio.pictures import draw_lengths

        draw_lengths(folder / PICTURE, {name: (_seconds(part), _rates(part)) for name, part in parts.items() if part})
    page = [
        f"# {options.output.name}",
        "",
        *_table(parts),
        "",
        *([f"![Lengths and character rates]({PICTURE})", ""] if has_picture else []),
        *_left_out(made),
        *_vocabulary(made, options),
    ]
    (folder / "report.md").write_text("\n".join(page) + "\n", encoding="utf-8")


def summary(made: Prepared, options: Options) -> str:
    """The same in a few lines, with how a job names what was made."""
    parts = _parts(made)
    kept = [f"{name}: {len(part):,} ({_hours(_seconds(part).sum())})" for name, part in parts.items() if part]
    left_out = [f"{reason}: {count:,}" for reason, count in made.dropped.counts.most_common()]
    missing = (
        [] if importlib.util.find_spec("matplotlib") else ['no picture without matplotlib: pip install "flame[plots]"']
    )
    return "\n".join(
        [
            ", ".join(kept),
            f"left out: {', '.join(left_out) or 'nothing'}",
            f"vocabulary: {made.vocabulary} entries",
            f"report: {options.output / 'report.md'}",
            *missing,
            "",
            "[model]",
            f'tokenizer_path = "{options.output / "tokenizer"}"',
            "",
            "[[data.sources]]",
            f'path = "{options.output / "train.jsonl"}"',
        ]
    )


def _parts(made: Prepared) -> dict[str, list[Utterance]]:
    return {
        "train": made.train,
        "validation": made.validation,
        "train, joined": made.train_joined,
        "validation, joined": made.validation_joined,
    }


def _table(parts: dict[str, list[Utterance]]) -> list[str]:
    quantiles = " | ".join(f"{quantile}%" for quantile in _QUANTILES)
    lines = [f"| part | recordings | hours | seconds: {quantiles} | characters/s: 50% | 95% |"]
    lines.append("|---|" + "---:|" * (len(_QUANTILES) + 4))
    for name, part in parts.items():
        if part:
            seconds, rates = _seconds(part), _rates(part)
            cells = [f"{value:.2f}" for value in np.percentile(seconds, _QUANTILES)]
            cells += [f"{value:.1f}" for value in np.percentile(rates, (50, 95))]
            lines.append(f"| {name} | {len(part):,} | {seconds.sum() / 3600:.3f} | {' | '.join(cells)} |")
    return lines


def _left_out(made: Prepared) -> list[str]:
    counts = made.dropped.counts
    if not counts:
        return ["Nothing was left out.", ""]
    total = sum(counts.values()) + len(made.train) + len(made.validation)
    lines = [f"## Left out: {sum(counts.values()):,} of {total:,}", ""]
    for reason, count in counts.most_common():
        lines += [f"{reason}: {count:,}, such as", ""]
        lines += [f"- `{example}`" for example in made.dropped.examples[reason]] + [""]
    return lines


def _vocabulary(made: Prepared, options: Options) -> list[str]:
    counts = characters(utterance.text for utterance in made.train)
    listed = ", ".join(f"`{character}` {count:,}" for character, count in counts.most_common(_MOST_FREQUENT))
    lines = [f"## Vocabulary: {made.vocabulary} entries ({options.vocabulary})", "", f"Characters: {listed}", ""]
    if made.unknown:
        unknown = ", ".join(
            f"`{character}` {count:,}" for character, count in list(made.unknown.items())[:_MOST_FREQUENT]
        )
        lines += [f"Without an entry: {unknown}", ""]
    return [*lines, f"Examples: {'; '.join(utterance.text[:100] for utterance in made.train[:5])}"]


def _seconds(part: Sequence[Utterance]) -> np.ndarray:
    return np.array([utterance.seconds for utterance in part])


def _rates(part: Sequence[Utterance]) -> np.ndarray:
    return np.array([characters_per_second(utterance.text, utterance.seconds) for utterance in part])


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
