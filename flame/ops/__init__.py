"""Plain-PyTorch token mixers: what runs fla's families where Triton does not.

``table`` says which of fla's entry points each function replaces, ``install`` puts them in place. The recurrences are
chunked (``chunks``, ``decay``): matrix products inside chunks of 64 tokens, a carried state between them. Beside each
stands the token loop that defines it, named ``*_by_token``.
"""
