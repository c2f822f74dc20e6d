"""Tokens into text as they come: never half a character, never half a string to stop at."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"  # what decoders put for bytes that are no character, or none yet
_LONGEST_WAIT = 8  # tokens; no character has more bytes than four
_CONTEXT = 6  # tokens of the prompt that a decoder sees, to tell whether a space belongs between


class TextStream:
    """The text of one row, piece by piece.

    What ``push`` and ``flush`` give adds up to ``text``, which ends before the first string to stop at.

    Args:
        tokenizer: decodes; special tokens have no text.
        before: the tokens of the prompt.
        stops: strings that end the text.
        skip: characters at the beginning that are no part of the text, such as a prompt's spaces given back.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = (), stops: Sequence[str] = (), skip: int = 0
    ) -> None:
        self.text = ""
        self.stopped = ""  # the string that ended the text
        self._tokenizer = tokenizer
        self._stops = stops
        self._skip = skip
        self._ids = list(before[-_CONTEXT:])
        self._start, self._read = 0, len(self._ids)
        self._held = ""
        self._stop_tokens = _special_ids(tokenizer, stops)

    def push(self, token: int) -> str:
        """Takes one more token and returns the text that is certain by it; nothing after a string to stop at."""
        if self.stopped:
            return ""
        if token in self._stop_tokens:
            released = self.flush()
            self.stopped = self._stop_tokens[token]
            return released
        self._ids.append(token)
        waiting = len(self._ids) - self._read
        text = self._decode(self._ids[self._start :])
        if text.endswith(_UNFINISHED) and waiting < _LONGEST_WAIT:
            return ""
        return self._release(self._take(text))

    def flush(self) -> str:
        """The rest of the text, once no token follows."""
        if self.stopped:
            return ""
        # What was held for being the beginning of a stop was none.
        released = self._release(self._take(self._decode(self._ids[self._start :]))) + self._held
        self.text += self._held
        self._held = ""
        return released

    def _take(self, text: str) -> str:
        """What ``text``, of all tokens from ``_start`` on, has more than those that were read before."""
        known = self._decode(self._ids[self._start : self._read])
        self._start, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _release(self, piece: str) -> str:
        self._held += piece[self._skip :]
        self._skip = max(0, self._skip - len(piece))
        found = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if found:
            end, self.stopped = min(found)
            released, self._held = self._held[:end], ""
        else:
            keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            end = len(self._held) - keep
            released, self._held = self._held[:end], self._held[end:]
        self.text += released
        return released

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _special_ids(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> dict[int, str]:
    """The strings to stop at that are special tokens, which never show in a text, by their ids."""
    if not stops:
        return {}
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {special[stop]: stop for stop in stops if stop in special}


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    longest = min(len(stop) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
