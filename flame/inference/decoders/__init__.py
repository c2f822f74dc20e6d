"""Ways to make a text: one file per objective of a model family, called after it."""
