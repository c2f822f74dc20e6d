"""Encoders turn records into token ids; a task brings its own or takes ``TextEncoder``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from flame.data.records import TEXT
from flame.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Encoder(Protocol):
    """What a task hands to the data room. Picklable, and its class importable, since worker processes use it.

    An encoder may also have ``columns``, a tuple of the record keys that it reads: then no others are loaded, and
    ``"text"`` stands for the text column of every source, which is checked when the source is opened.
    """

    def encode(self, records: list[dict[str, Any]]) -> Sequence[np.ndarray]:
        """Returns the token ids (int32, separators included) of every record; an empty array leaves it out."""
        ...


class TextEncoder:
    """Encodes the text of records, with document separators.

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
        # A copy of the bare tokenizer: it pickles without transformers, and settings saved with it do not apply here.
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, records: list[dict[str, Any]]) -> list[np.ndarray]:
        """Returns the token ids of every record, int32, separators included."""
        texts = [record[self._text_column] for record in records]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._with_separators(encoding.ids) for encoding in encodings]

    def _with_separators(self, ids: list[int]) -> np.ndarray:
        if not ids:
            return np.empty(0, np.int32)  # a document without content deserves no separators either
        ids = [*self._prefix, *ids, *self._suffix]
        return np.fromiter(ids, np.int32, len(ids))


def _separator(tokenizer: "PreTrainedTokenizerFast", name: str, wanted: bool) -> list[int]:
    if not wanted:
        return []
    token_id = getattr(tokenizer, f"{name}_token_id")
    if token_id is None:
        raise DataError(f"the tokenizer has no {name} token: set data.add_{name} = false, or add one to the tokenizer")
    return [token_id]
