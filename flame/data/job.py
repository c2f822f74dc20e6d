"""The loaders of a job: what its config says of training and validation data, for one data-parallel rank."""

from collections.abc import Sequence
from typing import Any

from flame.config import JobConfig, Source
from flame.data.encoder import Encoder
from flame.data.loader import Loader, build_loader


def train_loader(config: JobConfig, encoder: Encoder, dp_rank: int = 0, dp_world_size: int = 1) -> Loader:
    """Endless batches from ``data.sources``.

    Args:
        config: resolved.
        encoder: the task's.
        dp_rank: the rank among those that read batches of their own.
        dp_world_size: how many such ranks there are.

    Raises:
        DataError: a source cannot be read.
    """
    return _loader(
        config,
        config.data.sources,
        encoder=encoder,
        local_batch_size=config.training.local_batch_size,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        seed=config.debug.seed,
        dataloader=config.training.dataloader,
    )


def validation_loader(config: JobConfig, encoder: Encoder, dp_rank: int = 0, dp_world_size: int = 1) -> Loader:
    """One pass over ``validation.sources``, always in the same order. Arguments and errors as in ``train_loader``."""
    return _loader(
        config,
        config.validation.sources,
        encoder=encoder,
        local_batch_size=config.validation.local_batch_size,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        seed=0,
        dataloader=config.validation.dataloader,
        repeat=False,
    )


def _loader(config: JobConfig, sources: Sequence[Source], **options: Any) -> Loader:
    """What training and validation share: how rows are made."""
    training = config.training
    return build_loader(
        sources=sources,
        data=config.data,
        seq_len=training.seq_len,
        context_len=training.context_len,
        varlen=training.varlen,
        global_batch_size=training.global_batch_size,
        **options,
    )
