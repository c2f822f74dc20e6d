from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

# In upstream's files. They chose kernels there, or a rotation that its layer never applied.
_NO_EFFECT = ("fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "rope_theta")


class SBAConfig(PreTrainedConfig):
    """A decoder with stick-breaking attention (Tan et al. 2024, https://arxiv.org/abs/2410.17980).

    Args:
        vocab_size: V.
        hidden_size: D; ``num_heads`` divides it.
        num_hidden_layers: decoder layers.
        num_heads: heads of queries.
        num_kv_heads: heads of keys and values; None for as many as of queries.
        qkv_bias: whether the projections of queries, keys and values have a bias.
        attend_current: whether a token sees itself; the first token of a document sees nothing otherwise.
        add_remainder: whether what a query leaves of its stick goes to its own value.
        max_position_embeddings: the longest sequence trained on; the model knows no positions.
        hidden_ratio: width of the MLP as a multiple of D before gating, where ``intermediate_size`` is None.
        intermediate_size: width of the gated MLP; None for ``2 / 3 * hidden_ratio * hidden_size`` rounded up to 256s.
        hidden_act: of the MLP's gate.
        initializer_range: standard deviation of fresh weights.
        norm_eps: epsilon of the norms.

    Raises:
        ValueError: sizes that do not divide each other, an unknown activation, or an option of upstream's that was
            never implemented.
    """

    model_type = "sba"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    attribute_map = {"num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads"}
    base_model_tp_plan = {
        "layers.*.attn.q_proj": "colwise",
        "layers.*.attn.k_proj": "colwise",
        "layers.*.attn.v_proj": "colwise",
        "layers.*.attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 2048,
        num_hidden_layers: int = 24,
        num_heads: int = 32,
        num_kv_heads: int | None = None,
        qkv_bias: bool = False,
        attend_current: bool = False,
        add_remainder: bool = False,
        max_position_embeddings: int = 2048,
        hidden_ratio: int = 4,
        intermediate_size: int | None = None,
        hidden_act: str = "swish",
        initializer_range: float = 0.006,
        norm_eps: float = 1e-6,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 1,
        eos_token_id: int | None = 2,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        for name, only in (("window_size", None), ("elementwise_affine", True), ("qk_norm", False)):
            if (value := kwargs.pop(name, only)) not in (only, None):
                raise ValueError(f"{name} = {value} is not implemented; leave it out")
        if kwargs.pop("attention_bias", False) and not qkv_bias:
            raise ValueError("attention_bias = True is not implemented; set qkv_bias for biases")
        for name in _NO_EFFECT:
            kwargs.pop(name, None)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} must be a multiple of num_heads {num_heads}")
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_heads {num_heads} must be a multiple of num_kv_heads {num_kv_heads}")
        if num_hidden_layers < 1:
            raise ValueError(f"num_hidden_layers {num_hidden_layers} must be at least 1")
        if hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {hidden_act!r} is none of {', '.join(sorted(ACT2FN))}")
        if intermediate_size is None:
            intermediate_size = -(-int(hidden_size * hidden_ratio * 2 / 3) // 256) * 256
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.qkv_bias = qkv_bias
        self.attend_current = attend_current
        self.add_remainder = add_remainder
        self.max_position_embeddings = max_position_embeddings
        self.hidden_ratio = hidden_ratio
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.initializer_range = initializer_range
        self.norm_eps = norm_eps
        self.use_cache = use_cache
        kwargs.update(pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
        kwargs.update(tie_word_embeddings=tie_word_embeddings)
        super().__init__(**kwargs)
