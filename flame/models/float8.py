"""Float8 training: what torchtitan's converter will do to a model, said before the run starts.

The converter passes over layers that it cannot convert without a word, and finds out only on every rank that the
device is too old.
"""

import logging

import torch
from torch import nn
from torchtitan.components.quantization import utils as titan
from transformers import PreTrainedConfig, PreTrainedModel

from flame import compat
from flame.config import JobConfig
from flame.errors import ConfigError

log = logging.getLogger(__name__)

FLOAT8 = "quantize.linear.float8"
_ADA = (8, 9)  # the first compute capability with float8 matrix products
_CHOSEN_BY_TORCHAO = "auto_filter_small_kn"


def check_float8(model_class: type[PreTrainedModel], config: PreTrainedConfig, job: JobConfig) -> None:
    """Refuses float8 where nothing would come of it, and logs which linear layers stay as they are.

    Raises:
        ConfigError: the device has no float8, emulation is to be compiled, or no layer can be converted.
    """
    if FLOAT8 not in job.model.converters:
        return
    options = job.quantize.linear.float8
    if options.emulate and job.compile.enable:
        raise ConfigError(f"{FLOAT8}.emulate = true cannot be compiled; set compile.enable to false")
    if not options.emulate and not _device_has_float8():
        raise ConfigError(
            f"{FLOAT8} needs a GPU of compute capability 8.9 or later; take it out of model.converters, or try it "
            f"slowly with {FLOAT8}.emulate = true"
        )
    if _CHOSEN_BY_TORCHAO in options.filter_fqns:
        return
    with torch.device("meta"):
        model = model_class(config)
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    kept = {name for name, layer in linear.items() if not titan.module_filter_fn(layer, name, options.filter_fqns)}
    odd = [name for name in sorted(kept) if titan.module_filter_fn(linear[name], name, []) is False]
    if len(kept) == len(linear):
        raise ConfigError(
            f"{FLOAT8} converts none of the {len(linear)} linear layers of '{config.model_type}': their sizes must be "
            "multiples of 16, and their names not in filter_fqns; take it out of model.converters"
        )
    example = f" ({odd[0]}: {linear[odd[0]].out_features} x {linear[odd[0]].in_features})" if odd else ""
    log.info(
        "float8: %d of %d linear layers; %d are named in filter_fqns, %d have a size that is no multiple of 16%s",
        *(len(linear) - len(kept), len(linear), len(kept) - len(odd), len(odd), example),
    )


def _device_has_float8() -> bool:
    if compat.DEVICE_TYPE != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability() >= _ADA
