"""nanochat's architecture of 2026 (https://github.com/karpathy/nanochat)."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

from flame.plugin import ModelPlugin

from .configuration_nanochat_plus import NanoChatPlusConfig
from .modeling_nanochat_plus import NanoChatPlusForCausalLM, NanoChatPlusModel

AutoConfig.register("nanochat_plus", NanoChatPlusConfig, exist_ok=True)
AutoModel.register(NanoChatPlusConfig, NanoChatPlusModel, exist_ok=True)
AutoModelForCausalLM.register(NanoChatPlusConfig, NanoChatPlusForCausalLM, exist_ok=True)


def forward_flops(config: PreTrainedConfig, length: int) -> int:
    """Products of matrices, and of attention the pairs of positions that a layer's window lets see each other."""
    width, heads = config.hidden_size, config.num_attention_heads
    group = config.num_key_value_heads * (width // heads)
    gates = sum(config.has_value_embedding(layer) for layer in range(config.num_hidden_layers))
    weights = config.num_hidden_layers * 2 * width * (width + group + config.intermediate_size)
    weights += gates * config.gate_channels * config.num_key_value_heads
    weights += config.smear_channels + width * config.padded_vocab_size
    windows = {"full_attention": length, "sliding_attention": min(config.sliding_window, length)}
    pairs = sum(w * length - w * (w - 1) // 2 for w in (windows[kind] for kind in config.layer_types))
    return 2 * weights * length + 4 * width * pairs


PLUGIN = ModelPlugin(
    model_type="nanochat_plus",
    tiny=lambda: NanoChatPlusConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=5,
        window_pattern="SL",
    ),
    forward_flops=forward_flops,
    refuses={
        "pipeline": "every layer adds the embeddings, and the middle one's output is taken off the last one's",
        "context": "an embedding is smeared with the one before it, which another rank may hold",
    },
)
