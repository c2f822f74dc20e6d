"""LLaDA: a masked diffusion language model."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from flame.plugin import ModelPlugin

from .configuration_llada import LLaDAConfig
from .modeling_llada import LLaDAModel, LLaDAModelLM

AutoConfig.register("llada", LLaDAConfig, exist_ok=True)
AutoModel.register(LLaDAConfig, LLaDAModel, exist_ok=True)
AutoModelForCausalLM.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)

PLUGIN = ModelPlugin(
    model_type="llada",
    tiny=lambda: LLaDAConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        mask_token_id=None,
    ),
    decodes_with_cache=False,
    objective="masked_diffusion",
)
