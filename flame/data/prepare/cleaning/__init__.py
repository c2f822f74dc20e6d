"""Cleaning: documents go in; those fit to train on come out, normalised, with their language, and masked.

Every module is one step or the filters of one kind; ``filters`` puts them in order.
"""
