"""Examples: what is not text (recordings, series) on its way to batches, in an order that job and seed decide.

``example`` says what an encoder of such records is, ``batches`` which examples a global batch consists of, ``plan`` and
``maker`` how a rank's share of it is made, ``loader`` hands it out.
"""
