"""Packing: a row of ``length`` tokens from a token stream, with its labels.

A packed row is int32 ``[planes, length]``: token ids, labels (already shifted, -100 where nothing is scored) and,
with document boundaries, position ids.
"""

import numpy as np

from flame.data.streams import TokenStream

IGNORE = -100
"""The label of a position that is not scored."""


def pack_continuous(stream: TokenStream, length: int) -> np.ndarray | None:
    """Takes a row from one continuous stream of documents.

    The label of the last token is the first token of the stream's next row.

    Args:
        stream: Filled with ``length + 1`` tokens, or ended.
        length: Tokens per row; a last, shorter row is padded with id 0 and labels that are not scored.

    Returns:
        int32 ``[2, length]``, or None if the stream has nothing left.
    """
    segments = stream.take(length)
    if not segments:
        return None
    row = _empty_row(2, length)
    tokens = np.concatenate([segment.tokens for segment in segments])
    row[0, : len(tokens)] = tokens
    row[1, : len(tokens) - 1] = tokens[1:]
    following = stream.peek()
    row[1, len(tokens) - 1] = IGNORE if following is None else following
    return row


def pack_documents(stream: TokenStream, length: int, context_len: int) -> np.ndarray | None:
    """Takes a row of isolated documents: positions restart at every one, and no target crosses their boundaries.

    A document longer than ``context_len`` falls into pieces, and the end of the row cuts it as well; the last token
    of such a piece keeps the document's next token as its label.

    Args:
        stream: Filled with ``length`` tokens, or ended.
        length: Tokens per row; a last, shorter row is padded with a piece that is not scored.
        context_len: Longest piece.

    Returns:
        int32 ``[3, length]``, or None if the stream has nothing left.
    """
    segments = stream.take(length)
    if not segments:
        return None
    row = _empty_row(3, length)
    start = 0
    for tokens, following in segments:
        stop = start + len(tokens)
        row[0, start:stop] = tokens
        row[1, start : stop - 1] = tokens[1:]
        row[1, stop - 1] = IGNORE if following is None else following
        row[2, start:stop] = np.arange(len(tokens)) % context_len
        start = stop
    row[2, start:] = np.arange(length - start) % context_len
    return row


def blank_row(planes: int, length: int, context_len: int) -> np.ndarray:
    """A row without a document, for a lane that has ended while others go on."""
    row = _empty_row(planes, length)
    row[2:] = np.arange(length) % context_len
    return row


def _empty_row(planes: int, length: int) -> np.ndarray:
    row = np.zeros((planes, length), np.int32)
    row[1] = IGNORE
    return row
