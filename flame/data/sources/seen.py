"""Remembers what the files of a source were like when they were last opened, to name those that changed since."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence

from flame.data.sources.columns import SourceConfig
from flame.data.sources.storage import FileInfo
from flame.errors import DataError
from flame.files import atomic
from flame.tokenizer.cache import cache_folder

logger = logging.getLogger(__name__)


def note_changes(config: SourceConfig, files: Sequence[FileInfo]) -> None:
    """Warns of files that are not what they were when a source of this path was last opened on this machine.

    Raises:
        DataError: The cache cannot be written.
    """
    name = "/".join([os.path.abspath(config.path) if "://" not in config.path else config.path, config.data_dir])
    key = hashlib.blake2b(
        "\n".join([name, config.split, config.format, *config.data_files]).encode(), digest_size=16
    ).hexdigest()
    record = cache_folder() / "seen" / f"{key}.json"
    now = {file.path: [file.size, file.stamp] for file in files}
    try:
        before = json.loads(record.read_bytes())
    except (OSError, ValueError):  # not there yet; and a cache may be damaged at any time
        before = {}
    if before == now:
        return
    changed = [path for path in now if path in before and before[path] != now[path]]
    gone = [path for path in before if path not in now]
    for paths, what in ((changed, "changed"), (gone, "is gone")):
        if paths:
            more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
            logger.warning(
                "%s%s %s since the source was last read: a run that is resumed sees other documents",
                paths[0],
                more,
                what,
            )
    try:
        with atomic(record) as draft:
            draft.write_text(json.dumps(now))
    except OSError as error:
        raise DataError(f"cannot write {record} ({error}): name a writable folder in FLAME_CACHE") from error
