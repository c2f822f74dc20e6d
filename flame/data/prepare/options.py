"""The sections of a preparation that follow cleaning: duplicates, contamination, order, split and output.

Annotations stay real types here, because the job file's reader looks at them: no postponed evaluation.
"""

from dataclasses import dataclass, field
from typing import Literal

from flame.errors import ConfigError


@dataclass
class Exact:
    """Documents whose text occurs more than once."""

    enable: bool = True
    """Whether only the first copy of equal documents is kept."""

    normalise: bool = True
    """Whether texts that differ only in case, white space or Unicode normal form are equal."""


@dataclass
class Minhash:
    """Documents that are nearly the same (MinHash and locality-sensitive hashing)."""

    enable: bool = True
    """Whether only the first document of every cluster of near duplicates is kept."""

    n_grams: int = 5
    """Words in the shingles that are compared."""

    buckets: int = 14
    """Bands; two documents are near duplicates if all hashes of one band agree."""

    hashes_per_bucket: int = 8
    """Hashes in a band: with 14 x 8, half of the pairs with a similarity of 0.69 are found, 92% of those with 0.8."""

    def __post_init__(self) -> None:
        for name in ("n_grams", "buckets", "hashes_per_bucket"):
            if getattr(self, name) < 1:
                raise ConfigError(f"dedup.minhash.{name} = {getattr(self, name)} must be at least 1.")


@dataclass
class Dedup:
    """Removal of repeated documents."""

    exact: Exact = field(default_factory=Exact)
    minhash: Minhash = field(default_factory=Minhash)


@dataclass
class Decontaminate:
    """Removal of documents that share text with evaluation sets."""

    sources: list[str] = field(default_factory=list)
    """Files of evaluation sets (parquet, jsonl, txt); empty to leave the step out."""

    columns: list[str] = field(default_factory=list)
    """Columns of the sets that hold questions and answers; empty for all text in them."""

    n_grams: int = 13
    """Words that a document must share with an evaluation text, in a row, to be dropped."""

    shortest: int = 8
    """Evaluation texts of fewer words are not looked for; those between this and `n_grams` must occur as a whole."""

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.n_grams:
            raise ConfigError(
                f"decontaminate.shortest = {self.shortest} must be between 1 and n_grams = {self.n_grams}."
            )


@dataclass
class Shuffle:
    """The order of the documents."""

    enable: bool = True
    """Whether documents are written in a random order, which `seed` decides."""


@dataclass
class Split:
    """What is held out."""

    validation: float = 0.01
    """Share of the documents that go to `val` instead of `train`, at least one of few; 0 for none."""

    validation_documents: int = 0
    """Number of documents that go to `val`, in place of a share; it costs another pass over the documents."""

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigError(f"split.validation = {self.validation} must be at least 0 and below 1.")
        if self.validation_documents < 0:
            raise ConfigError(f"split.validation_documents = {self.validation_documents} must be at least 0.")


@dataclass
class Output:
    """What is written, and where."""

    folder: str = ""
    """Folder that the result goes to: `train`, `val`, the report, and the state of the preparation in `.prepare`."""

    format: Literal["tokens", "packed", "parquet"] = "tokens"
    """`tokens` for shards of token ids, `packed` for parquet rows of `row_length` ids, `parquet` for text."""

    tokenizer: str = ""
    """Tokenizer of `tokens` and `packed`: a HuggingFace folder, a hub id, or `builtin:python-stdlib-8k`."""

    add_bos: bool | None = None
    """Whether documents begin with the tokenizer's BOS token; unset for the tokenizer's own habit."""

    add_eos: bool = True
    """Whether documents end with the tokenizer's EOS token."""

    row_length: int = 2049
    """Ids in a packed row: one more than `training.seq_len`."""

    shard_bytes: int = 250_000_000
    """Text in a shard, before compression or tokenization; shards end with a document, so this is about right."""

    row_group: int = 1024
    """Documents (or packed rows) in a row group of a parquet file."""

    columns: list[str] = field(default_factory=list)
    """Metadata written beside the text of `parquet`: `source`, `language`, or a column of the inputs."""

    def __post_init__(self) -> None:
        for name, least in (("row_length", 2), ("shard_bytes", 1), ("row_group", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"output.{name} = {getattr(self, name)} must be at least {least}.")

    def check(self) -> None:
        """Raises a ConfigError for keys that do not go together; called once the whole job is known."""
        if self.format != "parquet" and not self.tokenizer:
            raise ConfigError(f'output.format = "{self.format}" needs output.tokenizer, such as "gpt2".')
        if self.format == "parquet" and self.tokenizer:
            raise ConfigError(f'output.tokenizer = "{self.tokenizer}" has no use for output.format = "parquet".')
        if self.columns and self.format != "parquet":
            raise ConfigError(f'output.columns is for output.format = "parquet", not "{self.format}".')
