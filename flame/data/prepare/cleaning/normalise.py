"""Making text plain: pages become text, broken encodings are mended, characters take one form."""

import functools
import importlib
import logging
import re
import unicodedata
from collections.abc import Callable

import ftfy
from datatrove.data import Document
from lxml.etree import LxmlError  # pyright: ignore[reportAttributeAccessIssue]  it is compiled

from flame.data.prepare.cleaning.options import Normalise
from flame.data.prepare.reading.rows import MARKUP
from flame.data.prepare.reporting.tally import Counting
from flame.data.prepare.steps import CountedFilter
from flame.errors import ConfigError

# What repairs decoding, and nothing that only prefers one spelling: models should know curly quotes and ligatures too.
_MENDING = ftfy.TextFixerConfig(
    unescape_html="auto",
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    normalization=None,
)
# ASCII text that ftfy leaves as it is: no entities and no control characters.
_PLAIN_ASCII = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")
_LINE_END = re.compile(r"\r\n?|[\u2028\u2029\x85]")
_TRAILING = re.compile(r"[ \t\u00a0]+(?=\n|\Z)")


class Normaliser(CountedFilter):
    """Turns pages into text, mends characters and line ends, and drops what is then empty.

    Args:
        counting: Where the counts go.
        options: What is done.
        spared: Inputs that pass untouched.
    """

    def __init__(self, counting: Counting, options: Normalise, spared: frozenset[str]) -> None:
        super().__init__(counting)
        self.options = options
        self.spared = spared

    def judge(self, document: Document, position: int) -> str | None:
        """Normalises a document; drops a page without text, and what is empty."""
        markup = document.metadata.pop(MARKUP, None)
        if document.metadata["source"] in self.spared:
            return None if document.text.strip() else "empty"
        if markup is not None:
            text = extract(document.text, self.options.html)
            if text is None:
                return "page without text"
            document.text = text
            self.tally.add("changed", "page to text")
        before = document.text
        document.text = normalise(before, self.options)
        if document.text != before:
            self.tally.add("changed", "characters or line ends")
        return None if document.text.strip() else "empty"


def normalise(text: str, options: Normalise) -> str:
    """Mends encoding, takes the normal form and plain line ends, as the options say."""
    is_plain = text.isascii() and _PLAIN_ASCII.fullmatch(text) is not None
    if options.mojibake and not is_plain:
        text = ftfy.fix_text(text, _MENDING)
    if options.unicode and not text.isascii():
        text = unicodedata.normalize(options.unicode, text)
    if options.line_ends:
        text = _TRAILING.sub("", _LINE_END.sub("\n", text)).strip("\n")
    return text


def extract(page: str, how: str) -> str | None:
    """Takes the text out of a page, or returns None if there is none or the page cannot be parsed."""
    try:
        text = _extractor(how)(page)
    except (LxmlError, ValueError, AssertionError, RecursionError, AttributeError, TypeError):
        return None  # what the extractors raise on pages that are hardly any
    return text if text and text.strip() else None


@functools.lru_cache
def _extractor(how: str) -> Callable[[str], str | None]:
    """Imports an extractor, which takes its time and is needed for pages alone."""
    if how == "inscriptis":
        return importlib.import_module("inscriptis").get_text
    extract = importlib.import_module("trafilatura").extract
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    # No deduplication: it remembers earlier pages, and the result would depend on where a task began.
    return functools.partial(extract, favor_precision=True, include_comments=False, deduplicate=False)


def check_extractor(how: str) -> None:
    """Makes sure that pages can be turned into text here.

    Raises:
        ConfigError: The package, or one that it needs, is not installed.
    """
    try:
        _extractor(how)
    except ImportError as error:
        other = "inscriptis" if how == "trafilatura" else "trafilatura"
        reason = " ".join(str(error).split())
        raise ConfigError(f'normalise.html = "{how}" does not work here ({reason}); or set it to "{other}"') from error
