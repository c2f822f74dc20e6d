"""Stick-breaking attention (https://arxiv.org/abs/2410.17980), with the names of upstream flame's ``sba``."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

from flame.plugin import ModelPlugin

from .configuration_sba import SBAConfig
from .modeling_sba import SBAForCausalLM, SBAModel

AutoConfig.register("sba", SBAConfig, exist_ok=True)
AutoModel.register(SBAConfig, SBAModel, exist_ok=True)
AutoModelForCausalLM.register(SBAConfig, SBAForCausalLM, exist_ok=True)


def forward_flops(config: PreTrainedConfig, length: int) -> int:
    """Products of matrices, and of attention the pairs of positions that see each other."""
    width, group = config.hidden_size, config.num_kv_heads * (config.hidden_size // config.num_heads)
    weights = config.num_hidden_layers * width * (2 * (width + group) + 3 * config.intermediate_size)
    pairs = length * (length - 1) // 2 + (length if config.attend_current else 0)
    return 2 * (weights + width * config.vocab_size) * length + 4 * width * pairs * config.num_hidden_layers


PLUGIN = ModelPlugin(
    model_type="sba",
    tiny=lambda: SBAConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=128
    ),
    forward_flops=forward_flops,
    refuses={
        "context": "flame brings the parts of a sequence together for softmax attention and for fla's layers only"
    },
)
