"""The sections that say what a run is trained on: ``[[data.sources]]``, ``[[data.stages]]`` and ``[data]``."""

from dataclasses import dataclass, field
from typing import Literal

SOURCE_FORMATS = ("", "parquet", "jsonl", "txt", "bin", "packed", "hub", "builtin")
AUDIO_FORMATS = ("", "jsonl", "librispeech", "common_voice", "folder", "hub")
SERIES_FORMATS = ("", "ts", "arff", "csv", "parquet", "npz", "mnist", "cifar10", "hub", "builtin")


@dataclass
class Source:
    """One corpus; a job lists them as `[[data.sources]]` tables."""

    path: str
    """File, folder, glob pattern, fsspec URL (`s3://...`), hub id, or `builtin:python-stdlib`."""

    name: str = ""
    """Configuration (subset) of a hub dataset; empty for its default."""

    split: str = "train"
    """Split to read."""

    data_dir: str = ""
    """Folder inside a hub dataset; empty for all of it."""

    data_files: list[str] = field(default_factory=list)
    """Files or glob patterns inside the dataset; empty for all of them."""

    weight: float = 1.0
    """Share of the training tokens, relative to the other sources."""

    epochs: float = 0.0
    """Most passes over the source, after which the others take its share; 0 for as many as the run asks for."""

    text_column: str = ""
    """Column that holds the text; empty for the first of `text` and `content`."""

    audio_column: str = ""
    """Column that holds the recording, for tasks on audio; empty for the usual names."""

    label_column: str = ""
    """Column that holds the class or the value to predict, for tasks on series; empty for the usual names."""

    value_columns: list[str] = field(default_factory=list)
    """Columns that hold the values of a series, one per channel or one per step; empty for all that are left."""

    series_column: str = ""
    """Column that says which series a row belongs to, where a row is one step; empty where a row is a whole series."""

    time_column: str = ""
    """Column that orders the rows of a series; empty for the order of the file."""

    layout: str = ""
    """Layout of conversations (`messages`, `prompt_completion`, ...); empty to tell by the columns."""

    format: str = ""
    """
    What the files are; empty to tell by the path. Text: `parquet`, `jsonl`, `txt`, `bin`, `packed`, `hub`, `builtin`.
    Audio: `jsonl`, `librispeech`, `common_voice`, `folder`, `hub`. Series: `ts`, `arff`, `csv`, `parquet`, `npz`,
    `mnist`, `cifar10`, `hub`, `builtin`.
    """

    token_dtype: Literal["", "uint16", "uint32"] = ""
    """Type of the tokens of a bare `.bin` file; empty where an index beside it says so."""

    streaming: bool = False
    """Whether a hub dataset is read as it is needed instead of downloaded first."""


@dataclass
class Stage:
    """From one step on, other weights of the sources; a job lists stages as `[[data.stages]]` tables."""

    start: int = 1
    """The first step of the stage; before the first stage, the sources' own `weight` holds."""

    weights: list[float] = field(default_factory=list)
    """Shares of the training tokens, one per source in their order; 0 leaves a source out."""


@dataclass
class Data:
    """What is trained on, and how documents become rows."""

    sources: list[Source] = field(default_factory=list)
    """The corpora, mixed by their weights in tokens; on the command line, paths separated by commas."""

    stages: list[Stage] = field(default_factory=list)
    """Changes of the weights during the run (a curriculum), by step."""

    mix: Literal["tokens", "documents", "sequence"] = "tokens"
    """
    How sources are combined: `tokens` mixes them by `weight`; `documents` takes all documents of all sources as one
    collection; `sequence` reads one source after the other.
    """

    packing: Literal["stream", "best_fit", "rows"] = "stream"
    """
    How documents become rows: `stream` cuts rows from one stream of documents; `best_fit` begins rows with a document
    and combines documents so that few are cut; `rows` gives every document a row of its own.
    """

    too_long: Literal["split", "cut", "skip"] = "split"
    """
    What `best_fit` and `rows` do to a document longer than a row: several pieces, its beginning, or leave it out. Of
    recordings and series longer than `training.seq_len` steps, `cut` takes the beginning, all else leaves them out.
    """

    shuffle: bool = True
    """Whether documents come in a random order, drawn anew every epoch."""

    lanes_per_row: int = 4
    """Independent document streams per row of the global batch; more spread one document further apart."""

    on_bad_row: Literal["error", "skip"] = "skip"
    """What an unreadable record does: end the run, or be left out, counted and logged."""

    max_document_bytes: int = 1_048_576
    """Longer documents are cut into pieces of at most this many bytes, which are counted."""

    add_bos: bool | None = None
    """Whether documents begin with the tokenizer's BOS token; unset for the tokenizer's own habit."""

    add_eos: bool = True
    """Whether documents end with the tokenizer's EOS token."""
