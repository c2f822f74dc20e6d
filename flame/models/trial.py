"""A scaled-down instance of a family, to try things on before training."""

import logging

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from flame.models.build import count_parameters, plain_model
from flame.models.config import shrink

log = logging.getLogger(__name__)

_LARGEST = 50_000_000  # parameters


def trial_model(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel | None:
    """A small instance of ``cls`` with the flags of ``config``, unsharded, in eval mode on the CPU.

    Returns:
        None where flame does not know the family's names for sizes, so that scaling them down gives a large model, or
        one that does not fit together. The log says so; nothing may be taken as proven then.
    """
    try:
        small = shrink(config)
        parameters = count_parameters(cls, small)
        if parameters > _LARGEST:
            raise ValueError(f"{parameters:,} parameters are left")
        model = plain_model(cls, small, seed=0).eval()
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 8, dtype=torch.long))
    except (ValueError, TypeError, RuntimeError, StrictDataclassError) as error:
        log.info("family '%s' cannot be scaled down for a trial: %s", config.model_type, " ".join(str(error).split()))
        return None
    return model
