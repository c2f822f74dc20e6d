"""Tokenizers: load one, train the built-in ones, and count the bytes that tokens stand for."""

from flame.tokenizer.byte_lengths import token_bytes
from flame.tokenizer.load import load_tokenizer

__all__ = ["load_tokenizer", "token_bytes"]
