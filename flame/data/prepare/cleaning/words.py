"""Words and sentences by rule, so that no filter needs a model or a download."""

import re

import regex
from datatrove.utils.word_tokenizers import WordTokenizer

# Scripts without spaces between words: a character is the unit.
_LONE = r"\p{Han}\p{Hiragana}\p{Katakana}"
_WORD = regex.compile(rf"[{_LONE}]|[\w--[{_LONE}]]+(?:['’][\w--[{_LONE}]]+)*|[^\w\s]", regex.V1)
_ASCII_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n")


class PlainWords(WordTokenizer):
    """A word is a run of letters and digits, with apostrophes inside, or one sign; a sentence ends with its stop."""

    def __init__(self) -> None:
        super().__init__()

    # datatrove remembers the words of the last texts by tokenizer: all of ours are the same, copies in workers too.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlainWords)

    def __hash__(self) -> int:
        return hash(PlainWords)

    def word_tokenize(self, text: str) -> list[str]:
        """Splits into words and signs, without white space."""
        return (_ASCII_WORD if text.isascii() else _WORD).findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Splits after full stops, question and exclamation marks that white space follows, and after lines."""
        return [text[start:stop] for start, stop in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Gives start and end of every sentence, without the white space around it."""
        spans = []
        start = 0
        for stop in [*(match.end() for match in _END.finditer(text)), len(text)]:
            sentence = text[start:stop]
            if words := sentence.strip():
                first = start + len(sentence) - len(sentence.lstrip())
                spans.append((first, first + len(words)))
            start = stop
        return spans


WORDS = PlainWords()
"""What every filter and the duplicate search count as words, whatever the language."""
