"""Tables with a column of audio: hub datasets, saved datasets and parquet files."""

import dataclasses
from pathlib import Path

import datasets
import numpy as np
from tqdm import tqdm

from flame.config.corpora import Source
from flame.data.audio.decoding import AudioError
from flame.data.audio.entries import AUDIO_COLUMNS, TEXT_COLUMNS, Columns, find_column, recording_of
from flame.data.sources.arrow_tables import ArrowTable
from flame.data.sources.files import find_files, is_local
from flame.data.sources.tables import is_saved_dataset, open_hub, open_parquet, open_saved
from flame.errors import DataError
from flame.tokenizer.cache import build_once, cache_folder

_BATCH = 64  # rows whose audio is in memory at once
_WORTH_TELLING = 5000  # rows; the headers of fewer are read within seconds


def table_source(config: Source) -> tuple[ArrowTable, Columns, np.ndarray]:
    """Opens a table; its audio is not decoded by ``datasets``.

    Returns:
        Its rows, what is where in them, and float64 seconds by row.

    Raises:
        DataError: It cannot be loaded, or lacks a column.
    """
    plain = dataclasses.replace(config, text_column="", format="")
    path = Path(config.path).expanduser()
    if is_saved_dataset(path):
        table = open_saved(plain, None, 0)
    elif is_local(config.path):
        table = open_parquet(plain, find_files(config.path, config.data_dir, config.data_files, "parquet")[1], None, 0)
    else:
        table = open_hub(plain, None, 0)
    assert isinstance(table, ArrowTable)
    columns = _columns(config, table.dataset)
    # Audio in other columns would be read along with every row.
    kept = [name for name in (columns.audio, columns.text) if name]
    table = table.with_columns(kept)
    return table, columns, _seconds(table, columns)


def _columns(config: Source, dataset: datasets.Dataset) -> Columns:
    found = dataset.column_names
    audio_typed = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Audio)]
    audio = find_column(config.audio_column, [*audio_typed, *AUDIO_COLUMNS], found, config.path, "audio_column")
    text = find_column(config.text_column, TEXT_COLUMNS, found, config.path, "text_column")
    if not audio:
        raise DataError(f"'{config.path}' has no column of audio, only {', '.join(found)}: set audio_column to one")
    return Columns(audio, text, segments=False)


def _seconds(table: ArrowTable, columns: Columns) -> np.ndarray:
    """Seconds by row, by the headers of the audio; found out once and kept."""
    name = f"{table.dataset._fingerprint}_{columns.audio}.npy"

    def build(draft: Path) -> None:
        seconds = np.zeros(len(table))
        starts = range(0, len(table), _BATCH)
        for start in tqdm(starts, "reading lengths of recordings", disable=len(table) < _WORTH_TELLING):
            rows = range(start, min(start + _BATCH, len(table)))
            for row, record in zip(rows, table.read(rows), strict=True):
                try:
                    if isinstance(record, dict):
                        seconds[row] = recording_of(record, columns, "", table.where(row)).duration
                except AudioError:
                    pass  # it is a bad row when it is read
        with open(draft, "wb") as file:  # np.save would append a suffix to a name of its own
            np.save(file, seconds)

    return np.load(build_once(cache_folder() / "durations" / name, build))
