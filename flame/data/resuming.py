"""Whether the state of the data in a checkpoint goes with the job that goes on from it."""

import logging
from collections.abc import Mapping
from typing import Any

from flame.errors import DataError

logger = logging.getLogger(__name__)

START_OVER = "or start the data over with checkpoint.exclude_from_loading = ['dataloader']"
"""The other remedy where they do not go together."""


def compare(
    saved: Mapping[str, Any], layout: Mapping[str, Any], kept: Mapping[str, str], changes: Mapping[str, str]
) -> None:
    """Compares what a state depends on with the job's.

    Args:
        saved: Of the state.
        layout: Of the job.
        kept: What the state is meaningless without, by its key in both, and its key in the job file.
        changes: What may change on the way, by its key in both, and what is told then.

    Raises:
        DataError: Something differs that has to be kept.
    """
    for key, name in kept.items():
        if saved[key] != layout[key]:
            raise DataError(
                f"the checkpoint's data state is of {name} = {saved[key]!r}, the job has {layout[key]!r}: keep it, "
                f"{START_OVER}"
            )
    for key, meaning in changes.items():
        if saved[key] != layout[key]:
            logger.warning("%s since the checkpoint (%s, now %s)", meaning, saved[key], layout[key])
