"""Sources: files, folders and hub datasets as documents with random access.

``open`` turns one ``[[data.sources]]`` of a job into a ``DocumentSource``; every kind of file is one module here. They
run inside worker processes too and import neither torch nor transformers.
"""
