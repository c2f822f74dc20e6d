"""Sources on other machines: any fsspec URL (``s3://``, ``gs://``, ``hf://``, ``http://``), read ahead by ranges.

Nothing is downloaded but indexes, footers and files that allow no random access (``.gz``, ``.zst``): documents are read
page by page, the next pages of every lane by a pool of threads, into bounded memory.
"""
