"""Config of Huginn, the recurrent-depth language model (https://arxiv.org/abs/2502.05171), with the official names."""

import inspect
import math
from typing import Any

from transformers import PreTrainedConfig

BLOCKS = ("SandwichBlock", "TransformerPreNormBlock", "TransformerPostNormBlock")
NORMS = ("RMSNorm_llama", "UnparametrizedRMSNorm")
INJECTIONS = ("none", "add", "linear", "ffn", "modulated")
STATES = ("like-init", "normal", "embed", "zero", "unit")
NOISES = ("fixed", "geom", "sqrt", "line", "chi")
STRATEGIES = ("takase", "scaled")
# What the official configs may say in one way only here.
_FIXED = {
    "architecture_class_name": "RecurrentGPT",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "bias": False,
}
# What the official configs hold beside: names, and how its own trainer recomputes activations.
_NOT_OF_THE_MODEL = ("name", "hf_config", "activation_checkpoint_impl", "padding_multiple", "init_values")


class RavenConfig(PreTrainedConfig):
    """A prelude, a core that is run ``mean_recurrence`` times on average, and a coda.

    Args:
        n_embd: width.
        n_heads: attention heads; their dimension ``n_embd / n_heads`` is even.
        num_key_value_heads: keys and values, ``n_heads`` unless given; fewer only without ``qk_bias``.
        n_layers_in_prelude: blocks that run once before the core.
        n_layers_in_recurrent_block: blocks of the core.
        n_layers_in_coda: blocks that run once after it.
        intermediate_size: of the gated MLP.
        vocab_size: rows of the embedding, padding included.
        block_size: longest context the model is made for; longer ones run.
        rope_base: base of the rotary embedding.
        norm_eps: of every norm.
        norm_class_name: ``RMSNorm_llama``, or ``UnparametrizedRMSNorm`` without weights.
        block_class_name: where the norms of a block are: ``SandwichBlock`` (four), ``TransformerPreNormBlock``,
            ``TransformerPostNormBlock``.
        injection_type: how a step of the core receives the embedded input e beside the state s: ``linear``, a
            projection of [s; e]; ``ffn``, a gated MLP of it; ``modulated``, a gated MLP of e scales and shifts s;
            ``add``; ``none``, where the state begins as e.
        state_init: the first state: ``like-init`` (as embeddings begin), ``normal``, ``embed`` (normal with variance
            1 / n_embd), ``zero``, ``unit`` (normal with mean 0 and variance 1 at each position).
        init_strategy: ``takase`` (embeddings times sqrt(n_embd)) or ``scaled`` (without).
        init_orthogonal: matrices start orthogonal, with the same variance.
        qk_bias: learnt biases of queries and keys.
        tie_embeddings: the output head is the embedding.
        mean_recurrence: steps of the core where nothing else is asked for.
        mean_backprop_depth: the last steps, through which gradients run.
        sampling_scheme: how training draws the number of steps; see flame's task ``recurrent_depth``.
        test_time_noise: how much noise the state gets before each step, 0 for none.
        test_time_noise_type: how it depends on the step: ``fixed``, ``geom`` (1/i), ``sqrt`` (1/sqrt(i)), ``line``
            (falls linearly), ``chi`` (of a random amount).

    Raises:
        ValueError: values out of range or that do not go together.
    """

    model_type = "huginn_raven"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "stats"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "n_embd",
        "num_attention_heads": "n_heads",
        "n_kv_heads": "num_key_value_heads",
        "num_hidden_layers": "n_layers",
        "padded_vocab_size": "vocab_size",
        "max_position_embeddings": "block_size",
        "rope_theta": "rope_base",
        "rms_norm_eps": "norm_eps",
        "tie_embeddings": "tie_word_embeddings",
    }

    base_model_tp_plan = {  # noqa: RUF012
        "transformer.wte": "embedding_rowwise",
        **{
            f"transformer.{part}.*.{name}": style
            for part in ("prelude", "core_block", "coda")
            # Queries, keys and values are fused, so they are gathered and every rank attends with all heads.
            for name, style in (
                ("attn.Wqkv", "colwise_gather_output"),
                ("attn.proj", "rowwise_rep"),
                ("mlp.fc", "packed_colwise"),
                ("mlp.proj", "rowwise"),
            )
        },
    }

    def __init__(
        self,
        n_embd: int = 5280,
        n_heads: int = 55,
        num_key_value_heads: int | None = None,
        n_layers_in_prelude: int = 2,
        n_layers_in_recurrent_block: int = 4,
        n_layers_in_coda: int = 2,
        intermediate_size: int = 17920,
        vocab_size: int = 65536,
        block_size: int = 4096,
        rope_base: float = 50_000,
        norm_eps: float = 1e-6,
        norm_class_name: str = "RMSNorm_llama",
        block_class_name: str = "SandwichBlock",
        injection_type: str = "linear",
        state_init: str = "like-init",
        init_strategy: str = "takase",
        init_orthogonal: bool = False,
        qk_bias: bool = True,
        tie_embeddings: bool = True,
        mean_recurrence: int = 32,
        mean_backprop_depth: int = 8,
        sampling_scheme: str = "poisson-lognormal-filling",
        test_time_noise: float = 0.0,
        test_time_noise_type: str = "fixed",
        **kwargs: Any,
    ) -> None:
        own = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        for alias, name in self.attribute_map.items():
            if alias in kwargs and name in own:
                own[name] = _agreed(name, own[name], alias, kwargs.pop(alias))
        own["tie_word_embeddings"] = kwargs.pop("tie_word_embeddings", own.pop("tie_embeddings"))
        if own["num_key_value_heads"] is None:
            own["num_key_value_heads"] = own["n_heads"]
        for name, value in own.items():
            setattr(self, name, value)
        self._check()
        derived = {name: kwargs.pop(name) for name in ("n_layers", "num_hidden_layers") if name in kwargs}
        derived |= {name: kwargs.pop(name) for name in ("head_dim", "effective_expected_depth") if name in kwargs}
        self._check_derived(derived)
        for name, value in _FIXED.items():
            if kwargs.pop(name, value) != value:
                raise ValueError(f"{name}: this implementation has {value!r} only")
        for name in _NOT_OF_THE_MODEL:
            kwargs.pop(name, None)
        super().__init__(**{"tie_word_embeddings": own["tie_word_embeddings"], **kwargs})

    def _check(self) -> None:
        for name, values in {
            "norm_class_name": NORMS,
            "block_class_name": BLOCKS,
            "injection_type": INJECTIONS,
            "state_init": STATES,
            "init_strategy": STRATEGIES,
            "test_time_noise_type": NOISES,
        }.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} '{getattr(self, name)}' is none of {', '.join(values)}")
        for name in (
            *("n_embd", "n_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "block_size"),
            *("n_layers_in_prelude", "n_layers_in_recurrent_block", "n_layers_in_coda"),
            *("mean_recurrence", "mean_backprop_depth"),
        ):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} {size!r} must be a whole number from 1")
        if not isinstance(self.sampling_scheme, str) or not self.sampling_scheme:
            raise ValueError(f"sampling_scheme {self.sampling_scheme!r} is no name; leave it out for the default")
        if self.n_embd % self.n_heads or self.head_dim % 2:
            raise ValueError(f"n_embd {self.n_embd} must be an even multiple of n_heads {self.n_heads}")
        if self.n_heads % self.num_key_value_heads:
            raise ValueError(f"n_heads {self.n_heads} is no multiple of num_key_value_heads {self.num_key_value_heads}")
        if self.qk_bias and self.num_key_value_heads != self.n_heads:
            raise ValueError("qk_bias has one bias per head for queries and keys alike; set it to false for fewer keys")
        for name, least in {"test_time_noise": 0, "rope_base": 1, "norm_eps": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not least <= value < math.inf:
                raise ValueError(f"{name} {value!r} must be a number from {least}")
        for name in ("qk_bias", "init_orthogonal", "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} {getattr(self, name)!r} must be true or false")

    def _check_derived(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            if value != getattr(self, name):
                raise ValueError(f"{name} {value} contradicts the other sizes, which give {getattr(self, name)}")

    @property
    def n_layers(self) -> int:
        """Blocks with weights of their own."""
        return self.n_layers_in_prelude + self.n_layers_in_recurrent_block + self.n_layers_in_coda

    @property
    def head_dim(self) -> int:
        """Dimension of a head."""
        return self.n_embd // self.n_heads

    @property
    def effective_expected_depth(self) -> int:
        """Blocks that a token passes at the mean number of steps."""
        return (
            self.n_layers_in_prelude + self.n_layers_in_coda + self.n_layers_in_recurrent_block * self.mean_recurrence
        )

    def block_flops(self, length: int) -> int:
        """FLOPs of one block over a sequence of ``length`` tokens: products with weights, and causal attention."""
        width, keys = self.n_embd, self.num_key_value_heads * self.head_dim
        weights = 2 * width * width + 2 * width * keys + 3 * width * self.intermediate_size
        return 2 * weights * length + 2 * width * length * (length + 1)

    def core_flops(self, length: int) -> int:
        """FLOPs of one step of the core over a sequence."""
        width, inner = self.n_embd, self.intermediate_size
        adapter = {"linear": 2 * width * width, "ffn": 5 * width * inner, "modulated": 4 * width * inner}
        blocks = self.n_layers_in_recurrent_block * self.block_flops(length)
        return blocks + 2 * adapter.get(self.injection_type, 0) * length

    def outer_flops(self, length: int) -> int:
        """FLOPs of all that runs once: prelude, coda and head."""
        blocks = (self.n_layers_in_prelude + self.n_layers_in_coda) * self.block_flops(length)
        return blocks + 2 * self.n_embd * self.vocab_size * length

    @property
    def init_std(self) -> float:
        """Standard deviation of matrices and embeddings at the start: sqrt(2 / 5h)."""
        return math.sqrt(2 / (5 * self.n_embd))

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied with."""
        return math.sqrt(self.n_embd) if self.init_strategy == "takase" else 1.0


def _agreed(name: str, value: Any, alias: str, other: Any) -> Any:
    """The value of an argument that has two names; refuses two values, unless one is the default."""
    default = inspect.signature(RavenConfig.__init__).parameters[name].default
    if value not in (default, other):
        raise ValueError(f"{name} {value!r} and {alias} {other!r} are the same size; give one of them")
    return other
