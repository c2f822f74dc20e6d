"""Checks of how sources are mixed and packed: what contradicts itself, and what would have no effect, is refused."""

from collections.abc import Sequence

from flame.config.corpora import Data, Source
from flame.errors import ConfigError


def check_mixing(data: Data, validation: Sequence[Source], steps: int = 0, reads_text: bool = True) -> None:
    """Checks ``data.stages``, ``data.mix``, ``data.packing``, ``data.too_long``, and weights and epochs of sources.

    Args:
        data: The section; it has at least one source.
        validation: The sources of ``[validation]``.
        steps: Steps of the run, if they are known already; otherwise not positive.
        reads_text: Whether documents become rows; else examples are batched as they are.

    Raises:
        ConfigError: They do not go together; the message names the keys, their values and the remedy.
    """
    weights = [source.weight for source in data.sources]
    if not any(weights):
        raise ConfigError(f"data.sources: all weights are 0 ({weights}); make at least one positive.")
    _check_stages(data, steps)
    _check_never_read(data, weights)
    if data.mix != "tokens":
        _check_unweighted(data, weights)
    _check_packing(data, reads_text)
    for index, source in enumerate(validation):
        if source.epochs:
            raise ConfigError(
                f"validation.sources.{index}.epochs = {source.epochs:g} has no effect, since validation is one pass "
                "over its sources; remove it."
            )


def _check_packing(data: Data, reads_text: bool) -> None:
    if not reads_text and data.packing != "stream":
        raise ConfigError(
            f"data.packing = '{data.packing}' has no effect, since the task reads examples, which are not packed into "
            "rows; remove it."
        )
    if reads_text and data.packing == "stream" and data.too_long != "split":
        raise ConfigError(
            f"data.too_long = '{data.too_long}' has no effect with data.packing = 'stream', which cuts documents "
            "wherever a row ends; remove it, or set data.packing = 'best_fit' or 'rows'."
        )


def _check_stages(data: Data, steps: int) -> None:
    before = 0
    for index, stage in enumerate(data.stages):
        name = f"data.stages.{index}"
        if stage.start <= before:
            raise ConfigError(
                f"{name}.start = {stage.start} must be after the stage before it, which starts at step {before}; "
                "list stages in the order of their steps."
                if before
                else f"{name}.start = {stage.start} must be at least 1, the first step."
            )
        before = stage.start
        if stage.start > steps > 0:
            raise ConfigError(
                f"{name}.start = {stage.start} is after the last step, training.steps = {steps}; remove the stage, or "
                "make it start earlier."
            )
        if len(stage.weights) != len(data.sources):
            raise ConfigError(
                f"{name}.weights = {stage.weights} has {len(stage.weights)} weights for {len(data.sources)} sources; "
                "give one for each, in the order of data.sources."
            )
        if min(stage.weights) < 0 or not any(stage.weights):
            raise ConfigError(f"{name}.weights = {stage.weights} must not be negative, and not all 0.")


def _check_never_read(data: Data, weights: list[float]) -> None:
    for index, weight in enumerate(weights):
        if not weight and not any(stage.weights[index] for stage in data.stages):
            raise ConfigError(
                f"data.sources.{index}.weight = 0, and no stage gives it any: '{data.sources[index].path}' is never "
                "read; remove the source, or give it a weight."
            )


def _check_unweighted(data: Data, weights: list[float]) -> None:
    if data.stages:
        raise ConfigError(
            f"data.stages change weights, which data.mix = '{data.mix}' does not use; remove them, or set "
            "data.mix = 'tokens'."
        )
    if len(set(weights)) > 1:
        remedy = "list a source several times" if data.mix == "documents" else "set the epochs of sources"
        raise ConfigError(
            f"data.sources: the weights {weights} have no effect with data.mix = '{data.mix}'; make them equal and "
            f"{remedy}, or set data.mix = 'tokens'."
        )
    epochs = [source.epochs for source in data.sources]
    if data.mix == "documents" and len(set(epochs)) > 1:
        raise ConfigError(
            f"data.sources: the epochs {epochs} differ, but data.mix = 'documents' makes one collection of all "
            "sources; make them equal, and list a source several times to have more of it."
        )
