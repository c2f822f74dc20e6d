"""Reading: from the files of the inputs, planned and shared out among tasks, to documents.

``plan`` lists files, ``reader`` is the step; every format is one module, over ``streams`` of bytes that notice damage.
"""
