"""Stand-ins for the config sections that the data room reads, and the documents of its tests."""

from dataclasses import dataclass, field


@dataclass
class Source:
    """The fields of flame.config's Source."""

    path: str
    name: str = ""
    split: str = "train"
    data_dir: str = ""
    data_files: list[str] = field(default_factory=list)
    weight: float = 1.0
    text_column: str = ""
    format: str = ""
    streaming: bool = False


@dataclass
class Data:
    """The fields of flame.config's Data that the loader reads."""

    shuffle: bool = True
    lanes_per_row: int = 3
    on_bad_row: str = "skip"
    max_document_bytes: int = 1 << 20


@dataclass
class Dataloader:
    """The fields of torchtitan's DataLoader section."""

    num_workers: int = 0
    prefetch_factor: int | None = None
    pin_memory: bool = False
    persistent_workers: bool = False


def document(number: int) -> str:
    """The text of document ``number``: its number, and as many dots as make the lengths differ."""
    return f"[{number}]" + "." * (number * 7 % 40)
