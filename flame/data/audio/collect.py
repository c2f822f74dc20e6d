"""Collects the recordings that can be trained on, and counts the others by what is wrong with them."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tqdm import tqdm

from flame.config.corpora import Source
from flame.data.audio.decoding import AudioError
from flame.data.audio.normalise_text import normalise_transcript
from flame.data.audio.options import Options
from flame.data.audio.recording import Part, Recording
from flame.data.audio.source import open_audio
from flame.data.sources.records import BadRow
from flame.errors import DataError

_BATCH = 256  # rows read at once
_EXAMPLES = 5  # of every reason
_DECODING_RATE = 16000
_THREADS = os.cpu_count() or 1  # decoding and resampling do not hold Python's lock
_WORTH_TELLING = 5000


class Utterance(NamedTuple):
    """A recording and what is said in it."""

    recording: Recording
    seconds: float
    text: str
    """Normalised."""
    name: str
    """The same wherever the corpus lies: paths inside it, and segments."""


@dataclass
class Dropped:
    """What was left out, by reason, with the first examples of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Counts one."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(" ".join(example.split()))


def collect(options: Options) -> tuple[list[Utterance], Dropped]:
    """Reads the sources and keeps what passes the filters, in the sources' order.

    Raises:
        ConfigError: Numerals of the language are not known.
        DataError: A source cannot be opened, or nothing is left.
    """
    dropped = Dropped()
    kept = [found for source in options.sources for found in _of_source(source, options, dropped)]
    if options.decode:
        kept = list(_decodable(kept, dropped))
    if not kept:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in dropped.counts.most_common())
        example = next(iter(dropped.examples.values()))[0]
        raise DataError(f"no recording is left ({reasons}; such as {example}): check the sources and the limits")
    return kept, dropped


def characters_per_second(text: str, seconds: float) -> float:
    """How many frames with a label a second needs at least: a character twice in a row needs a blank between."""
    return (len(text) + sum(a == b for a, b in pairwise(text))) / seconds


def _of_source(config: Source, options: Options, dropped: Dropped) -> Iterator[Utterance]:
    source = open_audio(config, text_required=False)
    starts = range(0, len(source), _BATCH)
    for start in tqdm(starts, f"reading {config.path}", unit="batch", disable=len(source) < _WORTH_TELLING):
        for row in source.read(range(start, min(start + _BATCH, len(source)))):
            if isinstance(row, BadRow):
                dropped.add(row.reason, f"{row.where} {row.detail}")
                continue
            found = _utterance(row["audio"], row["text"], config.path, options)
            reason = _fault(found, options)
            if reason:
                told = f"{found.recording.name}: {found.seconds:.2f} s, '{found.text[:80]}'"
                dropped.add(reason, told)
            else:
                yield found


def _utterance(recording: Recording, text: str, root: str, options: Options) -> Utterance:
    if options.transcript:
        found = options.transcript.search(os.path.basename(recording.parts[0].path))
        text = (found[1] or "") if found else ""
    text = normalise_transcript(
        text,
        options.language,
        case=options.case,  # type: ignore[arg-type]
        numbers=options.numbers,
        punctuation=options.punctuation,
        fold_accents=options.fold_accents,
    )
    name = " ".join(_portable(part, root) for part in recording.parts)
    return Utterance(recording, recording.duration, text, name)


def _portable(part: Part, root: str) -> str:
    """A name for a part that does not change when a corpus is moved."""
    if part.data is not None:
        path = hashlib.blake2b(part.data, digest_size=16).hexdigest()
    else:
        folder = os.path.abspath(os.path.expanduser(root))
        path = os.path.relpath(part.path, folder if os.path.isdir(folder) else os.path.dirname(folder))
    region = f"@{part.start:g}-{'' if part.stop is None else f'{part.stop:g}'}" if part.start or part.stop else ""
    return path.replace(os.sep, "/") + region


def _fault(found: Utterance, options: Options) -> str:
    """Why an utterance is left out; empty if it is kept."""
    if not re.search(r"\w", found.text):
        return "empty transcript"
    if found.seconds < options.min_seconds:
        return "too short"
    if found.seconds > options.max_seconds:
        return "too long"
    if characters_per_second(found.text, found.seconds) > options.max_rate:
        return "too fast"
    return ""


def _decodable(utterances: Iterable[Utterance], dropped: Dropped) -> Iterator[Utterance]:
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(utterances)
        faults = pool.map(_decoding_fault, (utterance.recording for utterance in found))
        told = tqdm(faults, "decoding", total=len(found), disable=len(found) < _WORTH_TELLING)
        for utterance, fault in zip(found, told, strict=True):
            if fault is None:
                yield utterance
            else:
                dropped.add(fault.reason, f"{fault.where} {fault.detail}")


def _decoding_fault(recording: Recording) -> BadRow | None:
    try:
        recording.load(_DECODING_RATE)
    except AudioError as error:
        return error.bad_row()
    return None
