"""Tokenizers: load one, train one, measure one, and count the bytes that tokens stand for.

The modules are imported one by one: data workers need some of them, and neither torch nor transformers.
"""
