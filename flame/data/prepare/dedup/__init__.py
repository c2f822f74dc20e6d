"""Documents that are there more than once, or in an evaluation set: cleaned documents in, lists of what to drop out.

``exact`` compares hashes of whole texts, ``minhash`` signatures of n-grams, ``contamination`` n-grams with those of
evaluation sets. Nothing is written anew: what is listed is left out whenever the documents are read (``drop_list``).
"""
