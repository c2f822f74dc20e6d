"""The loaders of a job: what its config says of training and validation data, for one data-parallel rank."""

from collections.abc import Sequence
from typing import Any, TypeGuard, cast

from flame.config import JobConfig, Source
from flame.data.encoder import Encoder
from flame.data.examples.build import build_example_loader
from flame.data.examples.example import ExampleEncoder
from flame.data.examples.loader import ExampleLoader
from flame.data.loader import Loader, build_loader
from flame.data.plan import open_sources

AnyEncoder = Encoder | ExampleEncoder
AnyLoader = Loader | ExampleLoader


def train_loader(config: JobConfig, encoder: AnyEncoder, dp_rank: int = 0, dp_world_size: int = 1) -> AnyLoader:
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


def validation_loader(config: JobConfig, encoder: AnyEncoder, dp_rank: int = 0, dp_world_size: int = 1) -> AnyLoader:
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


def reads_examples(encoder: AnyEncoder) -> TypeGuard[ExampleEncoder]:
    """Whether an encoder makes examples, which are batched as they are, rather than token ids."""
    return hasattr(encoder, "inputs_name")


def open_all(config: JobConfig, encoder: AnyEncoder) -> None:
    """Opens every source once, so that what is missing or unreadable shows before any rank starts.

    Raises:
        DataError: a source cannot be read.
    """
    held_out = config.validation.sources if config.validation.enable else []
    if reads_examples(encoder):
        for source in [*config.data.sources, *held_out]:
            encoder.open(source)
        return
    text_encoder = cast(Encoder, encoder)
    open_sources(config.data.sources, config.data, text_encoder)
    if held_out:
        open_sources(held_out, config.data, text_encoder, repeat=False)


def _loader(config: JobConfig, sources: Sequence[Source], encoder: AnyEncoder, **options: Any) -> AnyLoader:
    """What training and validation share: how rows, or batches of examples, are made."""
    training = config.training
    if reads_examples(encoder):
        return build_example_loader(
            sources=sources,
            data=config.data,
            encoder=encoder,
            longest=training.seq_len,
            budget=getattr(config.task, "steps_per_batch", 0),
            global_batch_size=training.global_batch_size,
            **options,
        )
    return build_loader(
        sources=sources,
        data=config.data,
        encoder=cast(Encoder, encoder),
        seq_len=training.seq_len,
        context_len=training.context_len,
        varlen=training.varlen,
        global_batch_size=training.global_batch_size,
        **options,
    )
