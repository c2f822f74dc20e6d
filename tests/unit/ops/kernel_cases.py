"""Which of fla's kernels are compared with our functions, on what inputs: those of its modules, and all together."""

from tests.unit.ops.kernel_comparison import Case
from tests.unit.ops.mixer_cases import ATTENTION, DELTA, FINAL, LINEAR

MODULES = [
    Case("fla.modules.norm.layernorm:layer_norm", "x:BTD weight:D bias:D residual:BTD", {"prenorm": True}),
    Case("fla.modules.norm.layernorm:group_norm", "x:BTD weight:D bias:D", {"num_groups": 4}),
    Case(
        "fla.modules.norm.layernorm:rms_norm",
        "x:BTD weight:D bias:D residual:BTD",
        {"prenorm": True, "residual_in_fp32": True},
    ),
    Case(
        "fla.modules.norm.layernorm:layer_norm_linear", "x:BTD norm_weight:D norm_bias:D linear_weight:ED linear_bias:E"
    ),
    Case(
        "fla.modules.norm.layernorm:rms_norm_linear",
        "x:BTD norm_weight:D norm_bias:D linear_weight:ED linear_bias:E residual:BTD",
        {"prenorm": True},
    ),
    Case(
        "fla.modules.norm.layernorm:group_norm_linear",
        "x:BTD norm_weight:D norm_bias:D linear_weight:ED linear_bias:E",
        {"num_groups": 4, "is_rms_norm": True},
    ),
    Case("fla.modules.norm.l2norm:l2norm", "x:BTHK"),
    Case(
        "fla.modules.norm.fused_norm_gate:layer_norm_gated",
        "x:BTD g:BTD weight:D bias:D residual:BTD",
        {"prenorm": True},
    ),
    Case("fla.modules.norm.fused_norm_gate:rms_norm_gated", "x:BTD g:BTD weight:D bias:D", {"activation": "sigmoid"}),
    Case(
        "fla.modules.norm.fused_norm_gate:layer_norm_swish_gate_linear",
        "x:BTD g:BTD norm_weight:D norm_bias:D linear_weight:ED linear_bias:E",
    ),
    Case(
        "fla.modules.norm.fused_norm_gate:rms_norm_swish_gate_linear",
        "x:BTD g:BTD norm_weight:D norm_bias:D linear_weight:ED linear_bias:E",
    ),
    Case("fla.modules.norm.layernorm_gated:layernorm_fn", "x:BTD weight:D bias:D z:BTD"),
    Case(
        "fla.modules.norm.layernorm_gated:layernorm_fn",
        "x:BTD weight:D bias:D z:BTD",
        {"norm_before_gate": False},
        "after",
    ),
    Case("fla.modules.norm.layernorm_gated:rmsnorm_fn", "x:BTD weight:D bias:D z:BTD", {"group_size": 16}),
    Case(
        "fla.modules.causal_conv1d.ops:causal_conv1d",
        "x:BTD weight:D4 bias:D residual:BTD initial_state:ND4",
        {**FINAL, "activation": "swish"},
        detached_states=True,
    ),
    Case("fla.modules.causal_conv1d.ops:causal_conv1d", "x:BTD weight:D4", {}, "bare"),
    Case(
        "fla.modules.causal_conv1d.ops:causal_conv1d_update",
        "x:B1D cache:BD4 weight:D4 bias:D",
        {"activation": "silu"},
        forward_only=True,
    ),
    Case(
        "fla.modules.causal_conv1d.ops:causal_conv1d_update_states",
        "x:BTD initial_state:ND4",
        {"state_len": 4},
        forward_only=True,
    ),
    *(
        Case(f"fla.modules.activations.ops:{name}", "x:BTD", positional=True)
        for name in ("sigmoid", "elu_p1", "logsigmoid", "swish", "fast_gelu_impl", "sqrelu")
    ),
    Case("fla.modules.activations.ops:bias_gelu_impl", "x:TD bias:D", positional=True),
    *(Case(f"fla.modules.activations.ops:{name}", "x:BTD y:BTD", positional=True) for name in ("swiglu", "sigmoidglu")),
    Case("fla.modules.activations.ops:sigmoidglu_linear", "x:BTD y:BTD weight:ED bias:E", positional=True),
    Case("fla.modules.activations.ops:powglu", "x:BTD y:BTD"),
    *(
        Case(f"fla.modules.activations.ops:{name}", "x:BTD y:BTD weight:ED bias:E")
        for name in ("swiglu_linear", "powglu_linear")
    ),
    Case("fla.modules.rotary.ops:rotary_embedding", "x:BTHK cos:T8:small sin:T8:small"),
    Case(
        "fla.modules.rotary.ops:rotary_embedding",
        "x:BTHK cos:T8:small sin:T8:small",
        {"interleaved": True},
        "interleaved",
    ),
    Case("fla.modules.token_shift:token_shift", "x:BTD cache:ND", {"output_cache": True}),
    Case("fla.modules.token_shift:token_shift", "x:BTD", {}, "bare"),
    Case(
        "fla.ops.attnres.fused:fused_attnres",
        "query:D residuals.0:BTD residuals.1:BTD residuals.2:BTD rms_weight:D output_rms_weight:D",
        {"scale": 0.3},
    ),
    Case(
        "fla.modules.fused_cross_entropy.ops:cross_entropy_loss",
        "logits:TE target:T:index",
        {"label_smoothing": 0.1, "logit_scale": 0.7, "lse_square_scale": 1e-2},
    ),
    Case(
        "fla.modules.fused_cross_entropy.ops:cross_entropy_loss",
        "logits:TE target:T:index",
        {"logit_softcapping": 2.0},
        "capped",
    ),
    Case(
        "fla.modules.fused_linear_cross_entropy.ops:fused_linear_cross_entropy_loss",
        "x:TD target:T:index weight:ED:small bias:E",
        {"label_smoothing": 0.1, "logit_scale": 0.7},
    ),
    Case(
        "fla.modules.fused_linear_cross_entropy.ops:fused_linear_cross_entropy_loss",
        "x:TD target:T:index weight:ED:small",
        {"reduction": "sum", "use_l2warp": True, "logit_softcapping": 2.0},
        "capped",
    ),
    Case(
        "fla.modules.fused_kl_div.ops:fused_kl_div_loss",
        "x:TD target_x:TD weight:ED:small target_weight:ED:small",
        fixed=("target_x", "target_weight"),
    ),
    Case(
        "fla.modules.fused_bitlinear:rms_norm_linear_quant",
        "x:BTD norm_weight:D norm_bias:D linear_weight:ED linear_bias:E",
    ),
    Case(
        "fla.modules.fused_bitlinear:layer_norm_linear_quant",
        "x:BTD norm_weight:D norm_bias:D linear_weight:ED linear_bias:E",
    ),
    Case("fla.modules.fused_bitlinear:bit_linear", "x:BTD weight:ED bias:E norm_weight:D"),
]

CASES: dict[str, Case] = {case.name: case for case in (*LINEAR, *DELTA, *ATTENTION, *MODULES)}

UNCOMPARED = {
    "fla.ops.deltaformer.parallel:deltaformer_attn": "needs the package flash-attn",
    "fla.ops.moba.parallel:parallel_moba": "needs the package flash-attn",
}
"""Entry points of fla's operators and modules without a case -> why."""
