"""From what a job says of its data to the plan that makes its rows."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from flame.config import Source, Stage
from flame.data.encoder import Encoder
from flame.data.mixture import Mixture
from flame.data.packers import RowShape
from flame.data.rows import RowPlan
from flame.data.sources.concatenated import ConcatenatedSource
from flame.data.sources.open import identity_of, open_source
from flame.data.sources.records import DocumentSource
from flame.errors import DataError

logger = logging.getLogger(__name__)


class DataConfig(Protocol):
    """The ``[data]`` table of a job, as far as it decides what rows look like."""

    stages: list[Stage]
    mix: Any
    packing: Any
    too_long: Any
    shuffle: bool
    lanes_per_row: int
    on_bad_row: Any
    max_document_bytes: int


def make_plan(
    *,
    sources: Sequence[Source],
    data: DataConfig,
    encoder: Encoder,
    seq_len: int,
    context_len: int,
    varlen: bool,
    global_batch_size: int,
    seed: int,
    repeat: bool,
) -> RowPlan:
    """Opens the sources and settles how rows are made; arguments as for ``build_loader``.

    Raises:
        DataError: A source cannot be opened, or the weights are impossible.
    """
    check_weights([source.weight for source in sources])
    lanes_per_row = data.lanes_per_row if repeat else 1
    lanes = global_batch_size * lanes_per_row
    opened = open_sources(sources, data, encoder, repeat=repeat)
    in_one = repeat and data.mix == "documents" and len(sources) > 1
    plan = RowPlan(
        sources=[ConcatenatedSource(opened)] if in_one else opened,
        encoder=encoder,
        epochs=epochs_of(sources, data.mix, in_one) if repeat else [1.0] * len(sources),
        mixture=Mixture(
            weights=(1.0,) if in_one else tuple(float(source.weight) for source in sources),
            seed=seed,
            stages=tuple((stage.start, tuple(map(float, stage.weights))) for stage in data.stages) if repeat else (),
            rows_per_step=global_batch_size,
            lanes_per_row=lanes_per_row,
            in_sequence=repeat and data.mix == "sequence",
        ),
        shape=RowShape(
            seq_len=seq_len,
            context_len=(context_len or seq_len) if varlen else 0,
            packing=data.packing,
            too_long=data.too_long,
            shuffle=data.shuffle,
            seed=seed,
            whole=getattr(encoder, "whole", False),
        ),
        lanes=lanes,
        seed=seed,
        shuffle=data.shuffle,
        on_bad_row=data.on_bad_row,
        max_document_bytes=data.max_document_bytes,
        is_endless=repeat,
        mix=data.mix,
    )
    for source, epochs in zip(plan.sources, plan.epochs, strict=True):
        if epochs is None and len(source) < lanes:
            logger.warning("%s: %d documents for %d lanes, so rows repeat others", source.name, len(source), lanes)
    return plan


def open_sources(
    sources: Sequence[Source], data: DataConfig, encoder: Encoder, *, repeat: bool = True
) -> list[DocumentSource]:
    """Opens every source for an encoder; ``repeat`` as for ``build_loader``.

    Raises:
        DataError: One cannot be read, is made with another tokenizer, or does not go together with the others.
    """
    columns, identity = getattr(encoder, "columns", None), identity_of(encoder)
    opened = [open_source(source, columns, data.max_document_bytes, identity) for source in sources]
    if data.mix == "documents" and repeat:
        ConcatenatedSource(opened)  # refuses text beside token ids
    return opened


def epochs_of(sources: Sequence[Source], mix: str, in_one: bool) -> list[float | None]:
    """Most passes over every source of the plan."""
    epochs = [source.epochs or None for source in sources]
    if in_one:
        return epochs[:1]
    if mix == "sequence":
        return [*(passes or 1.0 for passes in epochs[:-1]), epochs[-1]]
    return epochs


def check_weights(weights: Sequence[float]) -> None:
    """Raises DataError where there are no weights, or impossible ones."""
    if not weights:
        raise DataError("there is no data source: add a [[data.sources]] table with a path")
    if min(weights) < 0 or not any(weights):
        raise DataError(f"data source weights {weights}: make them positive")
