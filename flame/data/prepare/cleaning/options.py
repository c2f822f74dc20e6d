"""The sections of a preparation that clean documents: characters, language, quality, personal data.

Annotations stay real types here, because the job file's reader looks at them: no postponed evaluation.
"""

from dataclasses import dataclass, field
from typing import Literal

from flame.errors import ConfigError


@dataclass
class Normalise:
    """Making text plain: characters, line ends, mark-up."""

    html: Literal["trafilatura", "inscriptis"] = "trafilatura"
    """What turns a page into text: `trafilatura` keeps its main text, `inscriptis` all that is displayed."""

    mojibake: bool = True
    """Whether text decoded with the wrong encoding is repaired (ftfy)."""

    unicode: Literal["NFC", "NFKC", ""] = "NFC"
    """Unicode normal form; empty to leave characters as they are."""

    line_ends: bool = True
    """Whether lines end in a line feed alone, without trailing white space."""


@dataclass
class Language:
    """Which language a document is in (py3langid, whose model needs no download)."""

    enable: bool = True
    """Whether languages are told at all."""

    keep: list[str] = field(default_factory=list)
    """ISO 639-1 codes of the languages to keep; empty for all."""

    min_score: float = 0.5
    """Smallest probability of the language, if `keep` is set."""

    characters: int = 1500
    """Characters looked at, from the beginning, middle and end; the model takes a microsecond for each."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"language.min_score = {self.min_score} must be between 0 and 1.")
        if self.characters < 1:
            raise ConfigError(f"language.characters = {self.characters} must be at least 1.")


@dataclass
class GopherQuality:
    """Rules of Gopher (Rae et al. 2021, arXiv:2112.11446) on words, signs and lines; 0 leaves a rule out."""

    enable: bool = True
    """Whether the filter is on."""

    min_words: int = 50
    """Fewest words of a document."""

    max_words: int = 100_000
    """Most words of a document."""

    min_word_length: float = 3.0
    """Smallest mean word length."""

    max_word_length: float = 10.0
    """Largest mean word length."""

    max_symbols: float = 0.1
    """Most hash signs, or ellipses, per word."""

    max_bullet_lines: float = 0.9
    """Largest share of lines that begin with a bullet."""

    max_ellipsis_lines: float = 0.3
    """Largest share of lines that end in an ellipsis."""

    min_alphabetic_words: float = 0.8
    """Smallest share of words with a letter."""

    min_stop_words: int = 2
    """Fewest different words of `stop_words`."""

    stop_words: list[str] = field(default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"])
    """Words that running text contains."""


@dataclass
class GopherRepetition:
    """Rules of Gopher on repeated lines, paragraphs and word n-grams, as shares of the text; 0 leaves a rule out."""

    enable: bool = True
    """Whether the filter is on."""

    lines: float = 0.3
    """Largest share of lines that occur before."""

    paragraphs: float = 0.3
    """Largest share of paragraphs that occur before."""

    line_characters: float = 0.2
    """Largest share of characters in repeated lines."""

    paragraph_characters: float = 0.2
    """Largest share of characters in repeated paragraphs."""

    top_n_grams: list[float] = field(default_factory=lambda: [0.2, 0.18, 0.16])
    """Largest share of characters in the most frequent 2-gram, 3-gram, 4-gram."""

    repeated_n_grams: list[float] = field(default_factory=lambda: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10])
    """Largest share of characters in repeated 5-grams, 6-grams, ... 10-grams."""


@dataclass
class C4:
    """Rules of C4 (Raffel et al. 2020, arXiv:1910.10683), which drop lines and documents."""

    enable: bool = True
    """Whether the filter is on."""

    terminal_punctuation: bool = False
    """Whether lines without a stop at their end are dropped, which FineWeb found to cost too much."""

    min_sentences: int = 5
    """Fewest sentences of a document; 0 leaves the rule out."""

    min_words_per_line: int = 3
    """Fewest words of a line; 0 leaves the rule out."""

    max_word_length: int = 1000
    """Longest word of a line; 0 leaves the rule out."""

    lorem_ipsum: bool = True
    """Whether documents with placeholder text are dropped."""

    javascript: bool = True
    """Whether lines that mention JavaScript are dropped."""

    curly_bracket: bool = True
    """Whether documents with a curly bracket are dropped."""

    policy: bool = True
    """Whether lines about cookies and terms of use are dropped."""

    citations: bool = True
    """Whether marks of citations such as [3] are cut out."""


@dataclass
class FineWeb:
    """Rules of FineWeb (Penedo et al. 2024, arXiv:2406.17557)."""

    enable: bool = True
    """Whether the filter is on."""

    min_punctuated_lines: float = 0.12
    """Smallest share of lines that end in punctuation."""

    max_short_lines: float = 0.67
    """Largest share of lines of at most `short_line` characters."""

    short_line: int = 30
    """Length of a short line in characters."""

    max_repeated_characters: float = 0.01
    """Largest share of characters in repeated lines."""

    max_lines_per_word: float = 0.3
    """Most line feeds per word."""


@dataclass
class Filters:
    """Quality filters, in the order in which they run."""

    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    c4: C4 = field(default_factory=C4)
    fineweb: FineWeb = field(default_factory=FineWeb)


@dataclass
class Pii:
    """Masking of personal data by patterns."""

    emails: bool = True
    """Whether e-mail addresses are replaced."""

    ips: bool = True
    """Whether IPv4 addresses are replaced."""

    public_ips_only: bool = True
    """Whether addresses of private networks stay."""

    phones: bool = False
    """Whether telephone numbers are replaced; the pattern also finds some other long numbers."""

    email_mask: str = "email@example.com"
    """What stands for an e-mail address."""

    ip_mask: str = "192.0.2.1"
    """What stands for an IP address."""

    phone_mask: str = "+1-555-0100"
    """What stands for a telephone number."""
