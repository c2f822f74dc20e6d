"""From rendered conversations to token ids, ``~id`` where nothing is to be predicted."""

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from flame.data.chat.conversation import Unfit
from flame.data.chat.template import ChatTemplate, Rendered

_CALL_CHARACTERS = 1 << 20  # text per call of the tokenizer, which takes some 200 bytes of memory for each
_GAP = 2  # characters between texts: a token without any at the end of one is not to touch the next one's span


class ChatTokenizer:
    """Encodes rendered conversations; picklable.

    Args:
        backend: the tokenizer.
        template: what rendered them.
    """

    def __init__(self, backend: Tokenizer, template: ChatTemplate):
        layout = json.loads(backend.to_str())
        # Without the template's help no token is added, and offsets include the space before a word.
        layout.update(truncation=None, padding=None, post_processor=None)
        self._tokenizer = Tokenizer.from_str(json.dumps(layout))
        self._template = template
        special = [token for token in layout["added_tokens"] if token["special"]]
        self._unknown = _unknown_token(layout["model"])
        control = [token["id"] for token in special if token["content"] != self._unknown]
        size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self._is_control = np.zeros(size, bool)  # by id
        self._is_control[control] = True

    def encode(self, texts: Sequence[Rendered]) -> list[np.ndarray | Unfit]:
        """Returns int32 ids of every text, ``~id`` outside its spans, or why it cannot be encoded."""
        if not texts:
            return []
        sizes, ids, offsets = self._encode_parts([part for text in texts for part in text.parts])
        # All texts as one: where its parts begin in it, and its spans, in characters.
        parts, spans, begin = [], [], 0
        for text in texts:
            spans += [(begin + start, begin + stop) for start, stop in text.spans]
            for part in text.parts:
                parts.append(begin)
                begin += len(part)
            begin += _GAP
        offsets += np.repeat(np.array(parts), sizes)[:, None]
        masked = np.where(_inside(offsets, np.array(spans, np.int64).reshape(-1, 2)), ids, ~ids)
        last_parts = np.cumsum([len(text.parts) for text in texts]) - 1
        stops = np.cumsum(sizes)[last_parts]
        control = np.concatenate([[0], np.cumsum(self._is_control[ids])])[np.concatenate([[0], stops])]
        found = zip(texts, np.split(masked, stops[:-1]), np.diff(control).tolist(), strict=True)
        return [self._checked(text, tokens, count) for text, tokens, count in found]

    def is_control(self, token: int) -> bool:
        """Whether a token is a special one, which only the template may write."""
        return bool(self._is_control[token])

    def _encode_parts(self, parts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the number of tokens of every part, ids [N] of all tokens, and offsets [N, 2] in characters."""
        sizes: list[int] = []
        ids, offsets = [], []
        start = 0
        while start < len(parts):
            stop, size = start, 0
            while stop < len(parts) and size < _CALL_CHARACTERS:
                size += len(parts[stop])
                stop += 1
            encodings = self._tokenizer.encode_batch(parts[start:stop], add_special_tokens=False)
            lengths = [len(encoding) for encoding in encodings]
            tokens = chain.from_iterable(encoding.ids for encoding in encodings)
            borders = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
            ids.append(np.fromiter(tokens, np.int32, sum(lengths)))
            offsets.append(np.fromiter(borders, np.int64, 2 * sum(lengths)))
            sizes += lengths
            start = stop
        return np.array(sizes), np.concatenate(ids), np.concatenate(offsets).reshape(-1, 2)

    def _checked(self, text: Rendered, tokens: np.ndarray, control: int) -> np.ndarray | Unfit:
        # A normaliser may turn look-alikes (fullwidth letters) into the name of a special token.
        if control != self._template.count_control(text, without=self._unknown):
            return Unfit("special tokens in the text", "after normalisation, a message spells the name of one")
        return tokens


def _inside(offsets: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Which tokens touch a span; both [N, 2], spans in order."""
    # The first span that ends after a token begins is the only one that the token can be in.
    nearest = np.searchsorted(spans[:, 1], offsets[:, 0], side="right")
    inside = nearest < len(spans)
    inside[inside] = spans[nearest[inside], 0] < np.maximum(offsets[inside, 1], offsets[inside, 0] + 1)
    return inside


def _unknown_token(model: dict[str, Any]) -> str | None:
    """What the tokenizer writes for characters that it has no token for, which any text may hold."""
    if (number := model.get("unk_id")) is not None:
        return model["vocab"][number][0]
    return model.get("unk_token")
