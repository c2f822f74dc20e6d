"""How many bytes of text each token stands for, which turns a loss per token into bits per byte."""

import json
import re
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

_BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Counts the UTF-8 bytes behind every token id.

    Over the tokens of a text the counts sum to its length in bytes: exactly for byte-level tokenizers, and for
    SentencePiece's with byte fallback, except that U+2581 counts as the blank it is taken for, that a blank put before
    texts counts, and that what a normaliser changes counts as changed. Unknown tokens count 0, and so do special ones,
    which stand for no text.

    Returns:
        int32 tensor ``[len(tokenizer)]``.
    """
    backend = tokenizer.backend_tokenizer
    layout = json.loads(backend.to_str())
    byte_level = any("ByteLevel" in json.dumps(layout[part]) for part in ("pre_tokenizer", "decoder"))
    added = tokenizer.added_tokens_decoder
    counts = torch.zeros(len(tokenizer), dtype=torch.int32)
    for token, index in backend.get_vocab().items():
        if index >= len(counts):
            continue
        if index in added:
            counts[index] = 0 if added[index].special else len(added[index].content.encode())
        else:
            # A byte-level vocabulary writes every byte as one printable character.
            counts[index] = len(token) if byte_level else _plain_length(token, layout["model"])
    return counts


def _plain_length(token: str, model: dict[str, Any]) -> int:
    """Bytes of a token of a SentencePiece or WordPiece vocabulary."""
    if model.get("byte_fallback") and _BYTE_FALLBACK.fullmatch(token):
        return 1
    if model["type"] == "WordPiece":
        return len(token.removeprefix(model["continuing_subword_prefix"]).encode())
    return len(token.replace("\u2581", " ").encode())
