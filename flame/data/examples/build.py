"""From what a job says of its examples to the loader of one data-parallel rank."""

from collections.abc import Sequence
from typing import Any

from flame.config import Source
from flame.data.base_loader import DataloaderConfig
from flame.data.examples.batches import BatchPlan
from flame.data.examples.example import ExampleEncoder
from flame.data.examples.loader import ExampleLoader
from flame.data.examples.maker import Share
from flame.data.mixture import Mixture
from flame.data.plan import DataConfig, check_weights, epochs_of
from flame.errors import DataError


def build_example_loader(
    *,
    sources: Sequence[Source],
    data: DataConfig,
    encoder: ExampleEncoder,
    longest: int,
    budget: int,
    global_batch_size: int,
    local_batch_size: int,
    dp_rank: int,
    dp_world_size: int,
    seed: int,
    dataloader: DataloaderConfig,
    repeat: bool = True,
) -> ExampleLoader:
    """Builds the loader of one data-parallel rank.

    Args:
        sources: Where the examples come from; weights are shares of examples.
        data: How sources are mixed, shuffling, and what happens to bad and to long examples.
        encoder: The task's way from records to examples.
        longest: Most steps of an example.
        budget: Most steps of a global batch, padding included; 0 for no limit.
        global_batch_size: Most examples of a step, over all ranks.
        local_batch_size: Most examples of a micro-batch.
        dp_rank: This rank.
        dp_world_size: Number of data-parallel ranks.
        seed: Decides the order, together with the config.
        dataloader: Worker processes, how far they read ahead, and pinned memory.
        repeat: Whether this is training, in which sources start over and examples are altered at random; else every
            example is given once as it is.

    Raises:
        DataError: A source cannot be opened, or the sizes do not fit together.
    """
    at_once = local_batch_size * dp_world_size
    rows = global_batch_size if repeat else at_once
    if rows % at_once:
        raise DataError(
            f"global_batch_size {rows} is not a multiple of {at_once}, the local batch times the data-parallel ranks: "
            "change one of them"
        )
    plan = _plan(sources, data, encoder, longest, budget if repeat else 0, rows, seed, repeat)
    passes = rows // at_once
    pieces = tuple(range(dp_rank * passes, (dp_rank + 1) * passes))
    share = Share(plan, plan.start(), pieces, passes * dp_world_size, lanes=1, on_bad_row=data.on_bad_row)
    return ExampleLoader(share, {**_layout(plan), "mix": data.mix}, dataloader, is_endless=repeat)


def _layout(plan: BatchPlan) -> dict[str, Any]:
    """What a place in the stream depends on, for comparison with the job that goes on from it."""
    return {
        "rows": plan.rows,
        "budget": plan.budget,
        "longest": plan.longest,
        "seed": plan.seed,
        "shuffle": plan.shuffle,
        "examples": [len(source) for source in plan.sources],
        "encoder": plan.encoder.fingerprint,
        "weights": list(plan.mixture.weights),
        "epochs": plan.epochs,
    }


def _plan(
    sources: Sequence[Source],
    data: DataConfig,
    encoder: ExampleEncoder,
    longest: int,
    budget: int,
    rows: int,
    seed: int,
    repeat: bool,
) -> BatchPlan:
    check_weights([source.weight for source in sources])
    if data.stages and budget:
        raise DataError("data.stages count steps, which have no fixed number of examples with task.steps_per_batch: 0")
    opened = [encoder.open(source) for source in sources]
    for source, described in zip(opened, sources, strict=True):
        if not len(source):
            raise DataError(f"'{described.path}' holds no examples: check data.sources path, split and data_files")
    in_one = data.mix == "documents"
    # One collection of all examples has them in proportion to their numbers.
    weights = tuple(float(len(source) if in_one else one.weight) for source, one in zip(opened, sources, strict=True))
    return BatchPlan(
        sources=opened,
        encoder=encoder,
        epochs=epochs_of(sources, data.mix, in_one=False) if repeat else [1.0] * len(opened),
        mixture=Mixture(
            weights=weights,
            seed=seed,
            # The mixture counts examples here.
            stages=tuple(((stage.start - 1) * rows + 1, tuple(map(float, stage.weights))) for stage in data.stages)
            if repeat
            else (),
            in_sequence=not repeat or data.mix == "sequence",
        ),
        rows=rows,
        budget=budget,
        longest=longest,
        cuts=data.too_long == "cut",
        seed=seed,
        shuffle=data.shuffle and repeat,
        alters=repeat,
    )
