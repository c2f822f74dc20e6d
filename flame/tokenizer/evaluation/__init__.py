"""Measuring a tokenizer: bytes per token, whether texts survive, how the vocabulary is used, speed."""
