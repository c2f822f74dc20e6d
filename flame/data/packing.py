"""Packing: rows of ``length`` tokens from a token stream, with their labels.

A packed row is int32 ``[planes, length]``: token ids, labels (already shifted, -100 where nothing is scored) and,
with document boundaries, position ids. A token that is never to be predicted comes from the stream as ``~token``: it
is ``token`` among the ids, and -100 where it would be the label.
"""

from typing import NamedTuple

import numpy as np

from flame.data.streams import TokenStream

IGNORE = -100
"""The label of a position that is not scored."""


class Part(NamedTuple):
    """Consecutive tokens of one document in a row: ``tokens[start:stop]``."""

    start: int
    stop: int
    end: int
    """Where the document ends; beyond ``stop`` if this part does not reach that far."""
    ordinal: int
    """Which document of the stream it is."""


def pack_continuous(stream: TokenStream, length: int) -> np.ndarray | None:
    """Takes a row from one continuous stream of documents.

    The label of the last token is the first token of the stream's next row.

    Args:
        stream: Filled with ``length + 1`` tokens, or ended.
        length: Tokens per row; a last, shorter row is padded with id 0 and labels that are not scored.

    Returns:
        int32 ``[2, length]``, or None if the stream has nothing left.
    """
    tokens = stream.window(length + 1)
    if not len(tokens):
        return None
    filled = min(len(tokens), length)
    row = np.empty((2, length), np.int32)
    row[0, :filled] = tokens[:filled]
    row[1, : len(tokens) - 1] = tokens[1:]
    if len(tokens) <= length:
        _pad(row, filled, len(tokens) - 1, 1)
    stream.advance(filled)
    return _masked(row) if stream.is_masked else row


def pack_documents(stream: TokenStream, length: int, context_len: int) -> np.ndarray | None:
    """Takes a row of isolated documents: positions restart at every one, and no target crosses their boundaries.

    A document longer than ``context_len`` falls into pieces, and the end of the row cuts it as well; the last token
    of such a piece keeps the document's next token as its label.

    Args:
        stream: Filled with ``length + 1`` tokens, or ended.
        length: Tokens per row; a last, shorter row is padded with a piece that is not scored.
        context_len: Longest piece.

    Returns:
        int32 ``[3, length]``, or None if the stream has nothing left.
    """
    tokens = stream.window(length + 1)
    if not len(tokens):
        return None
    filled = min(len(tokens), length)
    row = np.empty((3, length), np.int32)
    row[0, :filled] = tokens[:filled]
    row[1, : len(tokens) - 1] = tokens[1:]
    _pad(row, filled, len(tokens) - 1, context_len)
    ends = stream.ends(filled)
    row[1, ends[ends <= filled] - 1] = IGNORE
    row[2, :filled] = _positions(ends, filled) % context_len
    stream.advance(filled)
    return _masked(row) if stream.is_masked else row


def pack_parts(tokens: np.ndarray, parts: list[Part], length: int, context_len: int, is_masked: bool) -> np.ndarray:
    """Makes a row of chosen parts of documents.

    Args:
        tokens: Some of a stream.
        parts: What goes into the row, in this order; at most ``length`` tokens.
        length: Tokens per row; the rest is padding.
        context_len: Longest piece of a document if documents are isolated, or 0 if they are one text: then the label
            of a document's last token is the first token of the next one in the row.
        is_masked: Whether some tokens are never to be predicted.

    Returns:
        int32 ``[3, length]`` with positions if ``context_len``, else ``[2, length]``.
    """
    row = np.empty((3 if context_len else 2, length), np.int32)
    place, is_complete = 0, False
    for start, stop, end, _ in parts:
        if is_complete and not context_len:
            row[1, place - 1] = tokens[start]
        is_complete = stop == end
        size = stop - start
        row[0, place : place + size] = tokens[start:stop]
        known = min(stop + 1, end)
        row[1, place : place + known - start - 1] = tokens[start + 1 : known]
        if is_complete:
            row[1, place + size - 1] = IGNORE
        if context_len:
            row[2, place : place + size] = np.arange(size)
        place += size
    _pad(row, place, place, context_len or 1)
    return _masked(row) if is_masked else row


def blank_row(planes: int, length: int, context_len: int) -> np.ndarray:
    """A row without a document, for a lane that has ended while others go on."""
    row = np.empty((planes, length), np.int32)
    _pad(row, 0, 0, context_len)
    return row


def _positions(ends: np.ndarray, count: int) -> np.ndarray:
    """Positions within documents that end at ``ends``."""
    starts = np.append(0, ends[:-1])
    return np.arange(count) - np.repeat(starts, np.minimum(ends, count) - starts)


def _pad(row: np.ndarray, filled: int, labelled: int, context_len: int) -> None:
    """Fills the rest of a row with id 0, and positions as if that were a document."""
    length = row.shape[1]
    if labelled < length:
        row[1, labelled:] = IGNORE
    if filled < length:
        row[0, filled:] = 0
        if len(row) > 2:
            row[2, filled:] = np.arange(length - filled) % context_len


def _masked(row: np.ndarray) -> np.ndarray:
    """Turns tokens ``~t`` into ids ``t`` and labels that are not scored."""
    ids, labels = row[0], row[1]
    np.bitwise_xor(ids, ids >> 31, out=ids)
    labels[labels < 0] = IGNORE
    return row
