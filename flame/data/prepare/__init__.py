"""From raw corpora to what training reads: ``flame data prepare``."""
