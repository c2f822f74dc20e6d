"""What a loader says of its data in the log: rows left out, and how full rows are."""

import logging
from collections import Counter

from flame.data.worker import Message

logger = logging.getLogger(__name__)


class Record:
    """What workers count: bad rows by reason, each reason told of once, and what packing does."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.packed: Counter[str] = Counter()

    def note(self, message: Message) -> None:
        """Takes in what a message says."""
        for reason, example in message.examples.items():
            if reason not in self.skipped:
                logger.warning("%s; more rows like it are only counted", example)
            self.examples.setdefault(reason, example)
        self.skipped.update(message.counts)
        self.packed.update(message.tally)

    def summarise(self, seq_len: int) -> None:
        """Logs the counts, if there are any."""
        if self.skipped:
            logger.warning("rows skipped or cut: %s", self)
        if rows := self.packed["rows"]:
            logger.info(
                "packing: %.2f%% of %d rows filled; of %d documents %d longer than a row, %d cut to fill gaps; "
                "%d tokens left out",
                100 * self.packed["tokens"] / (rows * seq_len),
                rows,
                *(self.packed[name] for name in ("documents", "too long", "cut", "tokens left out")),
            )

    def summarise_examples(self) -> None:
        """Logs the counts of examples, if there are any."""
        if self.skipped:
            logger.warning("examples left out: %s", self)
        if padded := self.packed["padded"]:
            logger.info(
                "%d examples, %d steps; padding: %.1f%% of all positions",
                self.packed["examples"],
                self.packed["steps"],
                100 - 100 * self.packed["steps"] / padded,
            )

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.most_common())
