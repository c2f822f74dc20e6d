"""What ``flame data prepare-ctc`` is told."""

import argparse
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flame.config.corpora import AUDIO_FORMATS, Source
from flame.data.audio.normalise_text import check_language
from flame.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """The options of a preparation, checked."""

    sources: list[Source]
    output: Path
    overwrite: bool
    relative: bool
    transcript: re.Pattern[str] | None
    group: re.Pattern[str] | None
    language: str
    case: str
    numbers: bool
    punctuation: bool
    fold_accents: bool
    vocabulary: str
    vocab_size: int
    min_count: int
    validation: float
    min_seconds: float
    max_seconds: float
    max_rate: float
    decode: bool
    join: tuple[int, int] | None
    join_count: int
    silence: tuple[float, float]
    join_apart: bool
    seed: int

    def record(self) -> dict[str, Any]:
        """The options as JSON takes them."""
        values = asdict(self) | {"output": self.output.name, "sources": [source.path for source in self.sources]}
        for name in ("transcript", "group"):
            values[name] = values[name].pattern if values[name] else ""
        return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a parser."""
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="folders of recordings, manifests, tables or hub datasets")
    add("--output", required=True, help="folder to make")
    add("--overwrite", action="store_true", help="replace a preparation that is there")
    add("--relative", action="store_true", help="write paths relative to the folder (they are absolute)")
    add("--format", default="", choices=AUDIO_FORMATS, metavar="FORMAT", help=f"one of{', '.join(AUDIO_FORMATS)[1:]}")
    add("--split", default="train", help="split of the sources (train)")
    add("--name", default="", help="configuration (subset) of a hub dataset")
    add("--audio_column", default="", help="column of the recordings")
    add("--text_column", default="", help="column of the transcripts")
    add("--transcript", default="", metavar="REGEX", help="take the transcript from a file's name: the group in it")
    add("--language", default="en", help="whose numerals and letters (en)")
    add("--case", default="lower", choices=("lower", "upper", "keep"), help="what letters become (lower)")
    add("--keep_numbers", action="store_true", help="leave numerals as they are")
    add("--keep_punctuation", action="store_true", help="leave punctuation as it is")
    add("--fold_accents", action="store_true", help="take the accents off letters of other languages")
    add("--vocabulary", default="characters", choices=("characters", "bpe"), help="of the tokenizer (characters)")
    add("--vocab_size", type=int, default=512, help="entries of a bpe vocabulary (512)")
    add("--min_count", type=int, default=1, help="characters that occur less often are unknown ones (1)")
    add("--validation", type=float, default=0.1, help="share of the recordings held out (0.1)")
    add("--group", default="", metavar="REGEX", help="hold out whole groups: what it finds in a path, such as speakers")
    add("--min_seconds", type=float, default=0.1, help="shorter recordings are left out (0.1)")
    add("--max_seconds", type=float, default=30.0, help="longer recordings are left out (30)")
    add("--max_characters_per_second", type=float, default=25.0, help="faster ones are left out (25, one in 40 ms)")
    add("--decode", action="store_true", help="decode every recording to find damaged ones, not only read its header")
    add("--join", type=int, nargs=2, metavar=("FEWEST", "MOST"), help="add entries that join so many recordings")
    add("--join_count", type=int, default=0, help="joined entries of the training part (as many as recordings)")
    add(
        "--silence", type=float, nargs=2, default=(0.1, 0.5), metavar=("LEAST", "MOST"), help="between joined (0.1 0.5)"
    )
    add("--join_apart", action="store_true", help="write joined entries to manifests of their own")
    add("--seed", type=int, default=0, help="of what is held out and joined (0)")


def checked(words: argparse.Namespace) -> Options:
    """Makes options of what was parsed.

    Raises:
        ConfigError: One of them makes no sense.
    """
    check_language(words.language)
    if not 0 <= words.validation < 1:
        raise ConfigError(f"--validation {words.validation:g}: a share is at least 0 and less than 1")
    if words.join and not 1 <= words.join[0] <= words.join[1]:
        raise ConfigError(f"--join {words.join[0]} {words.join[1]}: give the fewest recordings, then the most")
    if not 0 <= words.silence[0] <= words.silence[1]:
        raise ConfigError(f"--silence {words.silence[0]:g} {words.silence[1]:g}: give the least seconds, then the most")
    if (words.join_count or words.join_apart) and not words.join:
        raise ConfigError("--join-count and --join-apart need --join FEWEST MOST")
    for name in ("min_count", "vocab_size", "max_seconds", "max_characters_per_second"):
        if getattr(words, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(words, name)}: it is more than 0")
    columns = {"audio_column": words.audio_column, "text_column": words.text_column}
    where = {"format": words.format, "split": words.split, "name": words.name}
    return Options(
        sources=[Source(path, **columns, **where) for path in words.sources],
        output=Path(words.output).expanduser().absolute(),
        overwrite=words.overwrite,
        relative=words.relative,
        transcript=_pattern("--transcript", words.transcript, 1),
        group=_pattern("--group", words.group, None),
        language=words.language,
        case=words.case,
        numbers=not words.keep_numbers,
        punctuation=words.keep_punctuation,
        fold_accents=words.fold_accents,
        vocabulary=words.vocabulary,
        vocab_size=words.vocab_size,
        min_count=words.min_count,
        validation=words.validation,
        min_seconds=words.min_seconds,
        max_seconds=words.max_seconds,
        max_rate=words.max_characters_per_second,
        decode=words.decode,
        join=tuple(words.join) if words.join else None,
        join_count=words.join_count,
        silence=tuple(words.silence),
        join_apart=words.join_apart,
        seed=words.seed,
    )


def _pattern(name: str, text: str, groups: int | None) -> re.Pattern[str] | None:
    if not text:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"{name} '{text}' is not a regular expression ({error}): mend it") from error
    if groups is not None and pattern.groups != groups:
        raise ConfigError(f"{name} '{text}' has {pattern.groups} groups: put what is wanted into one, as in '^(\\d)_'")
    if pattern.groups > 1:
        raise ConfigError(f"{name} '{text}' has {pattern.groups} groups: it has one at most")
    return pattern
