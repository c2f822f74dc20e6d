"""Audio: recordings as records, their decoding, augmentation and cached features, and the preparation of corpora.

Needs the extra ``audio``.
"""
