"""A scaled-down instance of a family, to try things on before training."""

import logging

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from flame.models.build import count_parameters, plain_model
from flame.models.config import shrink

log = logging.getLogger(__name__)

_LARGEST = 50_000_000  # parameters


def trial_model(
    cls: type[PreTrainedModel], config: PreTrainedConfig, layers: int = 0, divisor: int = 1
) -> PreTrainedModel | None:
    """A small instance of ``cls`` with the flags of ``config``, unsharded, in eval mode on the CPU.

    Args:
        cls: the class that will be trained.
        config: its large config.
        layers: as in ``shrink``.
        divisor: as in ``shrink``.

    Returns:
        None where flame does not know the family's names for sizes, so that scaling them down gives a large model, or
        one that does not fit together or does not run here. The log says so; nothing may be taken as proven then.
    """
    try:
        small = shrink(config, layers, divisor)
        parameters = count_parameters(cls, small)
        if parameters > _LARGEST:
            raise ValueError(f"{parameters:,} parameters are left")
        model = plain_model(cls, small, seed=0).eval()
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 8, dtype=torch.long))
    except Exception as error:  # whatever a family's own code raises for a config it was not written for
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        log.info("family '%s' cannot be scaled down for a trial: %s", config.model_type, reason)
        return None
    return model


@torch.no_grad()
def stir(model: PreTrainedModel) -> PreTrainedModel:
    """Adds noise to every weight, and returns the model.

    Families start some projections at zero, so that layers do nothing at first: a comparison of fresh models would not
    see what becomes of their outputs.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model
