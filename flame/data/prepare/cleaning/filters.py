"""Quality filters: the rules of datatrove, with thresholds from the job file and words that need no download."""

from collections.abc import Callable

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result

from flame.data.prepare.cleaning.language import LanguageFilter
from flame.data.prepare.cleaning.normalise import Normaliser
from flame.data.prepare.cleaning.options import C4, FineWeb, GopherQuality, GopherRepetition
from flame.data.prepare.cleaning.pii import Masking
from flame.data.prepare.cleaning.words import WORDS
from flame.data.prepare.job import PrepareJob, spared
from flame.data.prepare.reporting.tally import Counting
from flame.data.prepare.steps import CountedFilter
from flame.errors import ConfigError

_REASONS = {
    "gopher_short_doc": "too few words",
    "gopher_long_doc": "too many words",
    "gopher_below_avg_threshold": "words too short",
    "gopher_above_avg_threshold": "words too long",
    "gopher_too_many_hashes": "too many hash signs",
    "gopher_too_many_ellipsis": "too many ellipses",
    "gopher_too_many_bullets": "too many bullets",
    "gopher_too_many_end_ellipsis": "too many lines that end in an ellipsis",
    "gopher_below_alpha_threshold": "too few words with letters",
    "gopher_enough_stop_words": "too few stop words",
    "dup_line_frac": "repeated lines",
    "dup_para_frac": "repeated paragraphs",
    "dup_line_char_frac": "characters in repeated lines",
    "dup_para_char_frac": "characters in repeated paragraphs",
    "line_punct_ratio": "too few lines with punctuation",
    "short_line_ratio": "too many short lines",
    "char_dup_ratio": "characters in repeated lines",
    "list_ratio": "too many lines for its words",
}
"""datatrove's name of a reason -> what the report says, where its own name is a riddle."""


class QualityFilter(CountedFilter):
    """Applies one of datatrove's filters.

    Args:
        counting: What the report calls it, and where the counts go.
        rules: The filter.
        spared: Inputs that pass untouched.
    """

    def __init__(self, counting: Counting, rules: BaseFilter, spared: frozenset[str]) -> None:
        super().__init__(counting)
        self.rules = rules
        self.spared = spared

    def judge(self, document: Document, position: int) -> str | None:
        """Asks the rules; text that they leave nothing of is dropped as well."""
        if document.metadata["source"] in self.spared:
            return None
        kept, reason = get_filter_result(self.rules.filter(document))
        if not kept:
            return _REASONS.get(reason or "", (reason or "dropped").replace("_", " "))
        return None if document.text.strip() else "nothing left"


def cleaning_steps(job: PrepareJob, counting: Callable[[str], Counting]) -> list[PipelineStep]:
    """Returns the steps between reading and deduplication that the job asks for, in order."""
    filters = job.filters
    rules: dict[str, tuple[bool, Callable[[], BaseFilter]]] = {
        "gopher_quality": (filters.gopher_quality.enable, lambda: _gopher_quality(filters.gopher_quality)),
        "gopher_repetition": (filters.gopher_repetition.enable, lambda: _gopher_repetition(filters.gopher_repetition)),
        "c4": (filters.c4.enable, lambda: _c4(filters.c4)),
        "fineweb": (filters.fineweb.enable, lambda: _fineweb(filters.fineweb)),
    }
    steps: list[PipelineStep] = [Normaliser(counting("normalise"), job.normalise, spared(job, "normalise"))]
    if job.language.enable:
        steps.append(LanguageFilter(counting("language"), job.language, spared(job, "language")))
    for name, (wanted, build) in rules.items():
        if wanted:
            steps.append(QualityFilter(counting(name), build(), spared(job, name)))
    if job.pii.emails or job.pii.ips or job.pii.phones:
        steps.append(Masking(counting("pii"), job.pii, spared(job, "pii")))
    return steps


def _gopher_quality(options: GopherQuality) -> BaseFilter:
    return GopherQualityFilter(
        min_doc_words=max(1, options.min_words),  # the rules divide by the number of words
        max_doc_words=options.max_words,
        min_avg_word_length=options.min_word_length,  # pyright: ignore[reportArgumentType]  compared, not counted
        max_avg_word_length=options.max_word_length,  # pyright: ignore[reportArgumentType]
        max_symbol_word_ratio=options.max_symbols,
        max_bullet_lines_ratio=options.max_bullet_lines,
        max_ellipsis_lines_ratio=options.max_ellipsis_lines,
        max_non_alpha_words_ratio=options.min_alphabetic_words,
        min_stop_words=options.min_stop_words,
        stop_words=options.stop_words,
        language=WORDS,  # pyright: ignore[reportArgumentType]  a tokenizer is taken as well
    )


def _gopher_repetition(options: GopherRepetition) -> BaseFilter:
    for name in ("top_n_grams", "repeated_n_grams"):
        if any(share <= 0 for share in getattr(options, name)):
            raise ConfigError(f"filters.gopher_repetition.{name} must be shares above 0; leave the last ones out.")
    return GopherRepetitionFilter(
        dup_line_frac=options.lines,
        dup_para_frac=options.paragraphs,
        dup_line_char_frac=options.line_characters,
        dup_para_char_frac=options.paragraph_characters,
        top_n_grams=tuple(enumerate(options.top_n_grams, 2)),  # pyright: ignore[reportArgumentType]
        dup_n_grams=tuple(enumerate(options.repeated_n_grams, 5)),  # pyright: ignore[reportArgumentType]
        language=WORDS,  # pyright: ignore[reportArgumentType]
    )


def _c4(options: C4) -> BaseFilter:
    return C4QualityFilter(
        remove_citations=options.citations,
        filter_no_terminal_punct=options.terminal_punctuation,
        min_num_sentences=options.min_sentences or -1,
        min_words_per_line=options.min_words_per_line or -1,
        max_word_length=options.max_word_length or -1,
        filter_lorem_ipsum=options.lorem_ipsum,
        filter_javascript=options.javascript,
        filter_curly_bracket=options.curly_bracket,
        filter_policy=options.policy,
        language=WORDS,  # pyright: ignore[reportArgumentType]
    )


def _fineweb(options: FineWeb) -> BaseFilter:
    return FineWebQualityFilter(
        line_punct_thr=options.min_punctuated_lines,
        short_line_thr=options.max_short_lines,
        short_line_length=options.short_line,
        char_duplicates_ratio=options.max_repeated_characters,
        new_line_ratio=options.max_lines_per_word,
        language=WORDS,  # pyright: ignore[reportArgumentType]
    )
