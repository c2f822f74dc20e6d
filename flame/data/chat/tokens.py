"""From rendered conversations to token ids, ``~id`` where nothing is to be predicted."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from flame.data.chat.conversation import Unfit
from flame.data.chat.template import ChatTemplate, Rendered

_CALL_CHARACTERS = 1 << 20  # text per call of the tokenizer, which takes some 200 bytes of memory for each


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
        parts = iter(self._encode_parts([part for text in texts for part in text.parts]))
        return [self._masked(text, [next(parts) for _ in text.parts]) for text in texts]

    def is_control(self, token: int) -> bool:
        """Whether a token is a special one, which only the template may write."""
        return bool(self._is_control[token])

    def _encode_parts(self, parts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields ids [N] and offsets [N, 2] in characters."""
        start = 0
        while start < len(parts):
            stop, size = start, 0
            while stop < len(parts) and size < _CALL_CHARACTERS:
                size += len(parts[stop])
                stop += 1
            for encoding in self._tokenizer.encode_batch(parts[start:stop], add_special_tokens=False):
                yield np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)
            start = stop

    def _masked(self, text: Rendered, encoded: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | Unfit:
        starts_of_parts = np.cumsum([0, *map(len, text.parts)])
        ids = np.concatenate([ids for ids, _ in encoded])
        # A normaliser may turn look-alikes (fullwidth letters) into the name of a special token.
        if int(self._is_control[ids].sum()) != self._template.count_control(text, without=self._unknown):
            return Unfit("special tokens in the text", "after normalisation, a message spells the name of one")
        offsets = np.concatenate(
            [offsets + begin for (_, offsets), begin in zip(encoded, starts_of_parts, strict=False)]
        )
        spans = np.array(text.spans, np.int64).reshape(-1, 2)
        # The first span that ends after a token begins is the only one that the token can be in.
        nearest = np.searchsorted(spans[:, 1], offsets[:, 0], side="right")
        scored = nearest < len(spans)
        scored[scored] = spans[nearest[scored], 0] < np.maximum(offsets[scored, 1], offsets[scored, 0] + 1)
        return np.where(scored, ids, ~ids)


def _unknown_token(model: dict[str, Any]) -> str | None:
    """What the tokenizer writes for characters that it has no token for, which any text may hold."""
    if (number := model.get("unk_id")) is not None:
        return model["vocab"][number][0]
    return model.get("unk_token")
