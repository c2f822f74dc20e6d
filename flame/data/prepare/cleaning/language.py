"""Which language a document is in, by a model that comes with its package (py3langid)."""

import functools
from typing import Any

from datatrove.data import Document
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from flame.data.prepare.cleaning.options import Language
from flame.data.prepare.reporting.tally import Counting, utf8_bytes
from flame.data.prepare.steps import CountedFilter
from flame.errors import ConfigError, closest


class LanguageFilter(CountedFilter):
    """Notes the language of every document, and drops those in others than are wanted.

    Args:
        counting: Where the counts go.
        options: Which languages are kept, and how sure the model must be.
        spared: Inputs that pass untouched.

    Raises:
        ConfigError: The model does not know a language that is to be kept.
    """

    def __init__(self, counting: Counting, options: Language, spared: frozenset[str]) -> None:
        super().__init__(counting)
        self.options = options
        self.spared = spared
        if options.keep:
            known = identifier().labels
            for code in options.keep:
                if code not in known:
                    raise ConfigError(
                        f"language.keep names '{code}', which the model does not know: it knows "
                        f"{', '.join(sorted(known))}.{closest(code, known)}"
                    )

    def judge(self, document: Document, position: int) -> str | None:
        """Tells the language of a document, and whether it stays."""
        if document.metadata["source"] in self.spared:
            return None
        code, score = identifier().classify(_sample(document.text, self.options.characters))
        document.metadata |= {"language": code, "score": round(score, 4)}
        self.tally.add("languages", code)
        self.tally.add("language bytes", code, utf8_bytes(document.text))
        if not self.options.keep:
            return None
        if code not in self.options.keep:
            return "another language"
        return None if score >= self.options.min_score else "language unsure"

    def details(self, document: Document) -> str:
        """Says which language it was."""
        return f"{document.metadata['language']}, {document.metadata['score']}"


@functools.cache
def identifier() -> Any:
    """The model, loaded once by every process."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _sample(text: str, characters: int) -> str:
    """The beginning, middle and end of a text, together at most so long."""
    if len(text) <= characters:
        return text
    part = max(1, characters // 3)
    middle = (len(text) - part) // 2
    return "\n".join((text[:part], text[middle : middle + part], text[-part:]))
