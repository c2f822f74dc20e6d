import math

from transformers import PreTrainedConfig


class NanoChatPlusConfig(PreTrainedConfig):
    """nanochat's architecture of 2026 (https://github.com/karpathy/nanochat): that of ``nanochat`` with windows, value
    embeddings, mixed residual streams and smeared embeddings.

    Args:
        vocab_size: V, the tokens there are.
        vocab_padding: rows of tables and head that belong to no token; None for what V lacks to a multiple of 64.
        hidden_size: D; ``num_attention_heads`` divides it.
        intermediate_size: width of the MLP; None for ``4 * hidden_size``.
        num_key_value_heads: None for as many as of queries.
        max_position_embeddings: the longest sequence trained on.
        window_pattern: S (sliding) or L (long) for each layer, repeated over the layers; the last layer is long always.
        sliding_window: keys that a sliding layer sees, the own included; None for a quarter of
            ``max_position_embeddings`` rounded up to 128s, and the own.
        layer_types: ``sliding_attention`` or ``full_attention`` for each layer; None for what ``window_pattern`` says.
        qk_scale: what queries and keys are multiplied by after they are normalised.
        final_logit_softcapping: c of the logits ``c * tanh(logits / c)``; None leaves them as they are.
        gate_channels: of the hidden state, from which the gates of the value embeddings are computed.
        smear_channels: of the embedding, from which the gate of the smear is computed.

    Raises:
        ValueError: sizes that do not divide each other, or a pattern of other letters.
    """

    model_type = "nanochat_plus"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    base_model_tp_plan = {
        "layers.*.self_attn.value_embed": "embedding_colwise",
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
    }

    def __init__(
        self,
        vocab_size: int = 32768,
        vocab_padding: int | None = None,
        hidden_size: int = 768,
        intermediate_size: int | None = None,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 6,
        num_key_value_heads: int | None = None,
        max_position_embeddings: int = 2048,
        window_pattern: str = "SSSL",
        sliding_window: int | None = None,
        layer_types: list[str] | None = None,
        rope_parameters: dict | None = None,
        qk_scale: float = 1.2,
        rms_norm_eps: float = 2.0**-23,  # the machine's of float32
        final_logit_softcapping: float | None = 15.0,
        gate_channels: int = 12,
        smear_channels: int = 24,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = None,
        **kwargs,
    ):
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        if kwargs.pop("tie_word_embeddings", False):
            raise ValueError("embedding and head start at very different sizes and cannot be tied; leave it false")
        self.vocab_size = vocab_size
        self.vocab_padding = -vocab_size % 64 if vocab_padding is None else vocab_padding
        self.hidden_size = hidden_size
        self.intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
        self.hidden_act = "relu2"
        self.num_hidden_layers = num_hidden_layers
        self.max_position_embeddings = max_position_embeddings
        self.window_pattern = window_pattern
        quarter = 128 * math.ceil(max_position_embeddings / 4 / 128)
        self.sliding_window = quarter + 1 if sliding_window is None else sliding_window
        self.layer_types = _kinds(window_pattern, num_hidden_layers) if layer_types is None else layer_types
        self.rope_parameters = rope_parameters or {"rope_type": "default", "rope_theta": 100_000.0}
        self.qk_scale = qk_scale
        self.rms_norm_eps = rms_norm_eps
        self.final_logit_softcapping = final_logit_softcapping
        self.gate_channels = gate_channels
        self.smear_channels = smear_channels
        self.use_cache = use_cache
        kwargs.update(pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
        self._check_sizes()
        kwargs.update(tie_word_embeddings=False)
        super().__init__(**kwargs)

    def _check_sizes(self) -> None:
        width, heads, groups = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if width % heads or width // heads % 2:
            raise ValueError(f"hidden_size {width} must be an even multiple of num_attention_heads {heads}")
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} must be a multiple of num_key_value_heads {groups}")
        if max(self.gate_channels, self.smear_channels) > width:
            raise ValueError(f"gate_channels and smear_channels must be at most hidden_size {width}")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"{len(self.layer_types)} layer_types for num_hidden_layers {self.num_hidden_layers}; give one each"
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of tables and head."""
        return self.vocab_size + self.vocab_padding

    def has_value_embedding(self, layer: int) -> bool:
        """Whether a layer's values get a share of an embedding: every second layer's, the last one's among them."""
        return (self.num_hidden_layers - 1 - layer) % 2 == 0


def _kinds(pattern: str, layers: int) -> list[str]:
    """The types of layers that a pattern of S and L says; the last is long always."""
    kinds = {"S": "sliding_attention", "L": "full_attention"}
    if not pattern or set(pattern.upper()) - set(kinds):
        raise ValueError(f"window_pattern '{pattern}' must consist of S (sliding) and L (long)")
    return [kinds[pattern.upper()[layer % len(pattern)]] for layer in range(layers - 1)] + [kinds["L"]]
