"""Reporting: steps tally what they keep and drop, task by task; ``collect`` adds it up, the others show it."""
