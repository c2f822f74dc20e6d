"""Encoders turn records into token ids; a task brings its own or takes ``TextEncoder``."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from flame.data.sources.records import TEXT, cut_text
from flame.data.tiktoken_encoding import text_encoding
from flame.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


# The tokenizer takes some 120 bytes of memory per byte of text, so long texts are encoded chunk by chunk. Chunks end
# after a line or a word, where tokens end anyway.
_CHUNK_BYTES = 1 << 18
_CALL_CHARACTERS = 1 << 20


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Hashes the vocabulary, the merges and all rules of a tokenizer: equal hashes give equal ids for every text."""
    layout = json.loads(tokenizer.to_str())
    rules = {part: value for part, value in layout.items() if part not in ("truncation", "padding")}
    return hashlib.blake2b(json.dumps(rules, sort_keys=True).encode(), digest_size=16).hexdigest()


class Encoder(Protocol):
    """What a task hands to the data room. Picklable, and its class importable, since worker processes use it.

    A token ``t`` that is never to be predicted, such as one of a prompt, is written as ``~t``: packing then puts -100
    where it would be the label, and no second array has to follow the ids around.

    An encoder may also have ``columns``, a tuple of the record keys that it reads: then no others are loaded, and
    ``"text"`` stands for the text column of every source, which is checked when the source is opened, and texts over
    ``data.max_document_bytes`` come in pieces. Without ``columns``, records come whole and unchecked.
    """

    fingerprint: str
    """That of the tokenizer, which tokens made beforehand must have too; empty without a tokenizer."""
    vocab_size: int
    """One more than the highest id; 0 without a tokenizer."""
    tokenizer_name: str
    """What messages call the tokenizer."""

    def encode(self, records: list[dict[str, Any]]) -> Sequence[np.ndarray]:
        """Returns the token ids (int32, separators included) of every record; an empty array leaves it out."""
        ...


class TextEncoder:
    """Encodes the text of records, with document separators.

    What looks like a special token in a text is encoded as the characters it consists of: a web page that says
    ``<|eos|>`` does not end a document.

    Args:
        tokenizer: A fast HuggingFace tokenizer.
        text_column: The record key that holds the text. Sources put their text column under ``"text"``.
        add_bos: Whether to begin every document with the BOS token; None follows the tokenizer's own habit.
        add_eos: Whether to end every document with the EOS token; None follows the tokenizer's own habit.

    Raises:
        DataError: If a separator is asked for that the tokenizer does not have.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        text_column: str = TEXT,
        add_bos: bool | None = None,
        add_eos: bool | None = True,
    ):
        self.columns = (text_column,)
        self._text_column = text_column
        habit = tokenizer("a").input_ids
        if add_bos is None:
            add_bos = tokenizer.bos_token_id is not None and habit[0] == tokenizer.bos_token_id
        if add_eos is None:
            add_eos = tokenizer.eos_token_id is not None and habit[-1] == tokenizer.eos_token_id
        self._prefix = _separator(tokenizer, "bos", add_bos)
        self._suffix = _separator(tokenizer, "eos", add_eos)
        backend = tokenizer.backend_tokenizer
        self._encoding = text_encoding(backend)  # pickles without transformers
        self.fingerprint = tokenizer_fingerprint(backend)
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self.tokenizer_name = tokenizer.name_or_path

    def encode(self, records: list[dict[str, Any]]) -> list[np.ndarray]:
        """Returns the token ids of every record, int32, separators included."""
        chunks = [list(cut_text(record[self._text_column], _CHUNK_BYTES)) for record in records]
        encoded = iter(self._encode_chunks([chunk for document in chunks for chunk in document]))
        return [self._joined(list(islice(encoded, len(document)))) for document in chunks]

    def _encode_chunks(self, chunks: list[str]) -> Iterator[np.ndarray]:
        start = 0
        while start < len(chunks):
            stop, size = start, 0
            while stop < len(chunks) and size < _CALL_CHARACTERS:
                size += len(chunks[stop])
                stop += 1
            yield from self._encoding.encode_batch(chunks[start:stop])
            start = stop

    def _joined(self, parts: list[np.ndarray]) -> np.ndarray:
        if not any(map(len, parts)):
            return np.empty(0, np.int32)  # a document without content deserves no separators either
        return np.concatenate([self._prefix, *parts, self._suffix])


def _separator(tokenizer: "PreTrainedTokenizerFast", name: str, wanted: bool) -> np.ndarray:
    if not wanted:
        return np.empty(0, np.int32)
    token_id = getattr(tokenizer, f"{name}_token_id")
    if token_id is None:
        raise DataError(f"the tokenizer has no {name} token: set data.add_{name} = false, or add one to the tokenizer")
    return np.array([token_id], np.int32)
