from transformers import LlamaConfig

# What the configs on the hub call what Llama's has too.
_HUB_NAMES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
    "init_std": "initializer_range",
}
# Choices of the hub's configs that this architecture has made, with the values that agree with it.
_CHOICES = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "embedding_dropout": (0.0,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "multi_query_attention": (False, None),
    "residual_dropout": (0.0,),
    "rope": (True,),
    "scale_logits": (False,),
}
# Keys of the hub's configs that change nothing the model computes.
_WITHOUT_EFFECT = (
    "alibi_bias_max",
    "attention_layer_norm_with_affine",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "precision",
    "rope_full_precision",
)
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)


class LLaDAConfig(LlamaConfig):
    """LLaDA (https://arxiv.org/abs/2502.09992): Llama without a causal mask, and a token that hides others.

    The defaults are LLaDA-8B's. The field names of the hub's configs (``d_model``, ``n_layers`` ...) are understood
    too; what is saved has Llama's names.

    Args:
        block_length: tokens of a block that is filled in before those to its right are begun and never sees them (block
            diffusion); 0: every token sees every other.
        mask_token_id: the token that hides others; None until training finds one for its tokenizer.
        is_causal: always false.

    Raises:
        ValueError: a choice of the hub's configs that this architecture does not have, a causal mask, or sizes that
            are not positive or do not divide each other.
    """

    model_type = "llada"
    attribute_map = _HUB_NAMES
    default_theta = 500_000.0

    vocab_size: int = 126_464
    hidden_size: int = 4096
    intermediate_size: int = 12_288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    use_cache: bool = False
    bos_token_id: int | None = 126_080
    eos_token_id: int | list[int] | None = 126_081
    pad_token_id: int | None = 126_081
    mask_token_id: int | None = 126_336
    block_length: int = 0
    is_causal: bool = False

    def __post_init__(self, **kwargs):
        for name, agreeing in _CHOICES.items():
            value = kwargs.pop(name, agreeing[0])
            if value not in agreeing:
                raise ValueError(f"{name} = {value!r}: LLaDA's architecture here has {agreeing[0]!r}")
        for name in _WITHOUT_EFFECT:
            kwargs.pop(name, None)
        ratio = kwargs.pop("mlp_ratio", None)
        width = kwargs.get("d_model", self.hidden_size)
        if ratio and "d_model" in kwargs and kwargs.get("mlp_hidden_size") is None:
            kwargs["mlp_hidden_size"] = ratio * width
        for name, own in _HUB_NAMES.items():
            if name in kwargs:
                setattr(self, own, kwargs.pop(name))
        # The hub's embedding may have more rows than its vocabulary; so has its head.
        self.vocab_size = max(self.vocab_size, kwargs.pop("embedding_size", None) or 0)
        if self.is_causal:
            raise ValueError("is_causal = True: LLaDA predicts masked tokens from both sides; leave the key out")
        self._check_sizes()
        super().__post_init__(**kwargs)

    def _check_sizes(self) -> None:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        for name in _SIZES:
            size = getattr(self, name)
            if size is None and name in ("num_key_value_heads", "head_dim"):
                continue  # follow from the others
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} = {size!r} must be a whole number from 1")
        if not isinstance(self.block_length, int) or self.block_length < 0 or self.block_length == 1:
            raise ValueError(f"block_length = {self.block_length!r} must be 0, for no blocks, or a whole number from 2")
        if self.mask_token_id is not None and (not isinstance(self.mask_token_id, int) or self.mask_token_id is True):
            raise ValueError(f"mask_token_id = {self.mask_token_id!r} must be a whole number, or null")
        if self.hidden_size % heads:
            raise ValueError(f"hidden_size = {self.hidden_size} is no multiple of num_attention_heads = {heads}")
        if heads % (groups or heads):
            raise ValueError(f"num_attention_heads = {heads} is no multiple of num_key_value_heads = {groups}")
        if (dim := self.head_dim or self.hidden_size // heads) % 2:
            raise ValueError(f"head_dim = {dim} must be even, since rotary embeddings turn pairs")
