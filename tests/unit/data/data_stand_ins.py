"""The config of small loaders, the documents of their tests, and streams of documents given as lists."""

from functools import partial

import numpy as np

from flame.config import Data as DataSection
from flame.config import Source, Training
from flame.data.feeder import Feeder
from flame.data.order import DocumentOrder
from flame.data.sources.records import BadRowPolicy
from flame.data.streams import TokenStream

Data = partial(DataSection, lanes_per_row=3)
Dataloader = type(Training().dataloader)

__all__ = ["Data", "Dataloader", "ListEncoder", "ListSource", "Source", "TokenSource", "document", "make_stream"]


def document(number: int) -> str:
    """The text of document ``number``: its number, and as many dots as make the lengths differ."""
    return f"[{number}]" + "." * (number * 7 % 40)


class ListSource:
    """Documents given as lists of token ids."""

    name, block, tokenized = "list", 1, False

    def __init__(self, documents):
        self.documents = documents

    def __len__(self):
        return len(self.documents)

    def read(self, indices) -> list:
        return [{"ids": self.documents[i]} for i in indices]

    def prefetch(self, indices) -> None:
        pass

    def where(self, index) -> str:
        return f"list, row {index + 1}"


class TokenSource(ListSource):
    """The same as a tokenized source, in blocks."""

    tokenized = True

    def __init__(self, documents, block=1):
        super().__init__(documents)
        self.block = block
        self.most_read = 0

    def read(self, indices) -> list:
        self.most_read = max(self.most_read, len(indices))
        return [{"input_ids": np.array(self.documents[i], np.int32)} for i in indices]


class ListEncoder:
    fingerprint, vocab_size, tokenizer_name = "", 0, "list"

    def encode(self, records):
        return [np.array(record["ids"], np.int32) for record in records]


def make_stream(documents, finished=0, used=0):
    source = ListSource(documents)
    feeder = Feeder(
        source,
        DocumentOrder(len(source), seed=0, shuffle=False),
        ListEncoder(),
        BadRowPolicy("error"),
        lanes=1,
        epochs=1,
        max_document_bytes=100,
    )
    stream = TokenStream(0, finished, used)
    feeder.streams.append(stream)
    return feeder, stream
