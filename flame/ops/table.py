"""Which function of ours stands in for which entry point of flash-linear-attention."""

ENTRY_POINTS: dict[str, str] = {
    # Gated linear attention
    "fla.ops.gla.chunk:chunk_gla": "flame.ops.linear_entries:chunk_gla",
    "fla.ops.gla.fused_recurrent:fused_recurrent_gla": "flame.ops.linear_entries:fused_recurrent_gla",
    "fla.ops.simple_gla.chunk:chunk_simple_gla": "flame.ops.linear_entries:chunk_simple_gla",
    "fla.ops.simple_gla.fused_recurrent:fused_recurrent_simple_gla": (
        "flame.ops.linear_entries:fused_recurrent_simple_gla"
    ),
    "fla.ops.simple_gla.fused_chunk:fused_chunk_simple_gla": "flame.ops.linear_entries:fused_chunk_simple_gla",
    "fla.ops.simple_gla.parallel:parallel_simple_gla": "flame.ops.linear_entries:parallel_simple_gla",
    "fla.ops.rwkv6.chunk:chunk_rwkv6": "flame.ops.linear_entries:chunk_rwkv6",
    "fla.ops.rwkv6.fused_recurrent:fused_recurrent_rwkv6": "flame.ops.linear_entries:fused_recurrent_rwkv6",
    "fla.ops.gsa.chunk:chunk_gsa": "flame.ops.slots:chunk_gsa",
    "fla.ops.gsa.fused_recurrent:fused_recurrent_gsa": "flame.ops.slots:fused_recurrent_gsa",
    "fla.ops.gsa.gate:fused_additive_gate": "flame.ops.slots:fused_additive_gate",
    "fla.ops.abc.chunk:chunk_abc": "flame.ops.slots:chunk_abc",
    # Delta rules
    "fla.ops.delta_rule.chunk:chunk_delta_rule": "flame.ops.delta_entries:chunk_delta_rule",
    "fla.ops.delta_rule.fused_recurrent:fused_recurrent_delta_rule": (
        "flame.ops.delta_entries:fused_recurrent_delta_rule"
    ),
    "fla.ops.gated_delta_rule.chunk:chunk_gated_delta_rule": "flame.ops.delta_entries:chunk_gated_delta_rule",
    "fla.ops.gated_delta_rule.fused_recurrent:fused_recurrent_gated_delta_rule": (
        "flame.ops.delta_entries:fused_recurrent_gated_delta_rule"
    ),
    "fla.ops.comba.chunk:chunk_comba": "flame.ops.delta_entries:chunk_comba",
    "fla.ops.comba.fused_recurrent:fused_recurrent_comba": "flame.ops.delta_entries:fused_recurrent_comba",
    "fla.ops.gated_delta_product.chunk:chunk_gated_delta_product": "flame.ops.delta_entries:chunk_gated_delta_product",
    "fla.ops.kda.chunk:chunk_kda": "flame.ops.kda:chunk_kda",
    "fla.ops.kda.fused_recurrent:fused_recurrent_kda": "flame.ops.kda:fused_recurrent_kda",
    "fla.ops.kda.gate:fused_kda_gate": "flame.ops.kda:fused_kda_gate",
    "fla.ops.gdn2.chunk:chunk_gdn2": "flame.ops.kda:chunk_gdn2",
    "fla.ops.gdn2.fused_recurrent:fused_recurrent_gdn2": "flame.ops.kda:fused_recurrent_gdn2",
    "fla.ops.precond_gated_delta_rule.chunk:chunk_precond_gated_delta_rule": (
        "flame.ops.preconditioned:chunk_precond_gated_delta_rule"
    ),
    "fla.ops.precond_gated_delta_rule.fused_recurrent:fused_recurrent_precond_gated_delta_rule": (
        "flame.ops.preconditioned:fused_recurrent_precond_gated_delta_rule"
    ),
    "fla.ops.precond_kda.chunk:chunk_precond_kda": "flame.ops.preconditioned:chunk_precond_kda",
    "fla.ops.precond_kda.fused_recurrent:fused_recurrent_precond_kda": (
        "flame.ops.preconditioned:fused_recurrent_precond_kda"
    ),
    "fla.ops.mesa_net.chunk:chunk_mesa_net": "flame.ops.mesa:chunk_mesa_net",
    "fla.ops.mesa_net.decoding_one_step:mesa_net_decoding_one_step": "flame.ops.mesa:mesa_net_decoding_one_step",
    "fla.ops.momentum_delta_rule.chunk:chunk_momentum_delta_rule": "flame.ops.momentum:chunk_momentum_delta_rule",
    "fla.ops.momentum_delta_rule.fused_recurrent:fused_recurrent_momentum_delta_rule": (
        "flame.ops.momentum:fused_recurrent_momentum_delta_rule"
    ),
    "fla.layers.mom:transform": "flame.ops.memories:transform",
    # RWKV7
    "fla.ops.rwkv7.chunk:chunk_rwkv7": "flame.ops.rwkv7:chunk_rwkv7",
    "fla.ops.rwkv7.fused_recurrent:fused_recurrent_rwkv7": "flame.ops.rwkv7:fused_recurrent_rwkv7",
    "fla.ops.rwkv7.fused_recurrent:fused_mul_recurrent_rwkv7": "flame.ops.rwkv7:fused_mul_recurrent_rwkv7",
    "fla.ops.rwkv7.fused_addcmul:fused_addcmul_rwkv7": "flame.ops.rwkv7:fused_addcmul_rwkv7",
    "fla.ops.rwkv7.fused_k_update:fused_k_rwkv7": "flame.ops.rwkv7:fused_k_rwkv7",
    "fla.ops.rwkv7.gate_output_correction:gate_output_correction": "flame.ops.rwkv7:gate_output_correction",
    "fla.ops.generalized_delta_rule.dplr.chunk:chunk_dplr_delta_rule": "flame.ops.dplr:chunk_dplr_delta_rule",
    "fla.ops.generalized_delta_rule.dplr.fused_recurrent:fused_recurrent_dplr_delta_rule": (
        "flame.ops.dplr:fused_recurrent_dplr_delta_rule"
    ),
    "fla.ops.generalized_delta_rule.iplr.chunk:chunk_iplr_delta_rule": "flame.ops.dplr:chunk_iplr_delta_rule",
    "fla.ops.generalized_delta_rule.iplr.fused_recurrent:fused_recurrent_iplr_delta_rule": (
        "flame.ops.dplr:fused_recurrent_iplr_delta_rule"
    ),
    # Element-wise scans and state spaces
    "fla.ops.hgrn.chunk:chunk_hgrn": "flame.ops.scan:chunk_hgrn",
    "fla.ops.hgrn.fused_recurrent:fused_recurrent_hgrn": "flame.ops.scan:fused_recurrent_hgrn",
    # Attention
    "fla.ops.attn.parallel:parallel_attn": "flame.ops.forgetting:parallel_attn",
    "fla.ops.attn.decoding:attn_decoding_one_step": "flame.ops.forgetting:attn_decoding_one_step",
    "fla.ops.forgetting_attn.parallel:parallel_forgetting_attn": "flame.ops.forgetting:parallel_forgetting_attn",
    "fla.ops.stickbreaking_attn.parallel:parallel_stickbreaking_attn": (
        "flame.ops.stickbreaking:parallel_stickbreaking_attn"
    ),
    "fla.ops.path_attn.parallel:parallel_path_attn": "flame.ops.path_attention:parallel_path_attn",
    "fla.ops.wall_attn.parallel:parallel_wall_attn": "flame.ops.wall:parallel_wall_attn",
    "fla.ops.wall_attn.decode:parallel_wall_attn_decode": "flame.ops.wall:parallel_wall_attn_decode",
    "fla.ops.wall_attn.decode:build_wall_kv_cache": "flame.ops.wall:build_wall_kv_cache",
    "fla.ops.parallax.parallel:parallel_parallax": "flame.ops.parallax:parallel_parallax",
    "fla.ops.parallax.decode:parallax_decode": "flame.ops.parallax:parallax_decode",
    "fla.ops.parallax.decode:parallax_decode_one_step": "flame.ops.parallax:parallax_decode_one_step",
    "fla.ops.deltaformer.parallel:deltaformer_attn": "flame.ops.deltaformer:deltaformer_attn",
    "fla.ops.based.parallel:parallel_based": "flame.ops.taylor:parallel_based",
    "fla.ops.based.fused_chunk:fused_chunk_based": "flame.ops.taylor:parallel_based",
    "fla.ops.rebased.parallel:parallel_rebased": "flame.ops.taylor:parallel_rebased",
    "fla.ops.nsa.parallel:parallel_nsa": "flame.ops.nsa:parallel_nsa",
    "fla.ops.moba.parallel:parallel_moba": "flame.ops.moba:parallel_moba",
    "fla.models.cat.modeling_cat:create_block_mask_compiled": "flame.ops.flex:create_block_mask_compiled",
    "fla.models.cat.modeling_cat:flex_attention_compiled": "flame.ops.flex:flex_attention_compiled",
    # Shared modules
    "fla.modules.norm.layernorm:layer_norm": "flame.ops.norms:layer_norm",
    "fla.modules.norm.layernorm:group_norm": "flame.ops.norms:group_norm",
    "fla.modules.norm.layernorm:rms_norm": "flame.ops.norms:rms_norm",
    "fla.modules.norm.layernorm:layer_norm_linear": "flame.ops.norms:layer_norm_linear",
    "fla.modules.norm.layernorm:rms_norm_linear": "flame.ops.norms:rms_norm_linear",
    "fla.modules.norm.layernorm:group_norm_linear": "flame.ops.norms:group_norm_linear",
    "fla.modules.norm.l2norm:l2norm": "flame.ops.norms:l2norm",
    "fla.modules.norm.fused_norm_gate:layer_norm_gated": "flame.ops.gated_norms:layer_norm_gated",
    "fla.modules.norm.fused_norm_gate:rms_norm_gated": "flame.ops.gated_norms:rms_norm_gated",
    "fla.modules.norm.fused_norm_gate:layer_norm_swish_gate_linear": (
        "flame.ops.gated_norms:layer_norm_swish_gate_linear"
    ),
    "fla.modules.norm.fused_norm_gate:rms_norm_swish_gate_linear": "flame.ops.gated_norms:rms_norm_swish_gate_linear",
    "fla.modules.norm.layernorm_gated:layernorm_fn": "flame.ops.gated_norms:layernorm_fn",
    "fla.modules.norm.layernorm_gated:rmsnorm_fn": "flame.ops.gated_norms:rmsnorm_fn",
    "fla.modules.causal_conv1d.ops:causal_conv1d": "flame.ops.convolution:causal_conv1d",
    "fla.modules.causal_conv1d.ops:causal_conv1d_update": "flame.ops.convolution:causal_conv1d_update",
    "fla.modules.causal_conv1d.ops:causal_conv1d_update_states": "flame.ops.convolution:causal_conv1d_update_states",
    "fla.modules.activations.ops:sigmoid": "flame.ops.activations:sigmoid",
    "fla.modules.activations.ops:elu_p1": "flame.ops.activations:elu_p1",
    "fla.modules.activations.ops:logsigmoid": "flame.ops.activations:logsigmoid",
    "fla.modules.activations.ops:swish": "flame.ops.activations:swish",
    "fla.modules.activations.ops:fast_gelu_impl": "flame.ops.activations:fast_gelu",
    "fla.modules.activations.ops:bias_gelu_impl": "flame.ops.activations:bias_gelu",
    "fla.modules.activations.ops:sqrelu": "flame.ops.activations:sqrelu",
    "fla.modules.activations.ops:swiglu": "flame.ops.activations:swiglu",
    "fla.modules.activations.ops:swiglu_linear": "flame.ops.activations:swiglu_linear",
    "fla.modules.activations.ops:sigmoidglu": "flame.ops.activations:sigmoidglu",
    "fla.modules.activations.ops:sigmoidglu_linear": "flame.ops.activations:sigmoidglu_linear",
    "fla.modules.activations.ops:powglu": "flame.ops.activations:powglu",
    "fla.modules.activations.ops:powglu_linear": "flame.ops.activations:powglu_linear",
    "fla.modules.rotary.ops:rotary_embedding": "flame.ops.rotary:rotary_embedding",
    "fla.modules.token_shift:token_shift": "flame.ops.shifts:token_shift",
    "fla.ops.attnres.fused:fused_attnres": "flame.ops.residuals:fused_attnres",
    "fla.modules.fused_cross_entropy.ops:cross_entropy_loss": "flame.ops.cross_entropy:cross_entropy_loss",
    "fla.modules.fused_linear_cross_entropy.ops:fused_linear_cross_entropy_loss": (
        "flame.ops.linear_cross_entropy:fused_linear_cross_entropy_loss"
    ),
    "fla.modules.fused_kl_div.ops:fused_kl_div_loss": "flame.ops.divergence:fused_kl_div_loss",
    "fla.modules.fused_bitlinear:layer_norm_linear_quant": "flame.ops.bitlinear:layer_norm_linear_quant",
    "fla.modules.fused_bitlinear:rms_norm_linear_quant": "flame.ops.bitlinear:rms_norm_linear_quant",
    "fla.modules.fused_bitlinear:bit_linear": "flame.ops.bitlinear:bit_linear",
    "fla.ops.utils.cumsum:chunk_global_cumsum": "flame.ops.cumsum:chunk_global_cumsum",
}
"""``module:name`` in fla -> ``module:name`` in ``flame.ops``, with the same parameters in the same order."""

PACKAGES: dict[str, str] = {
    "flash_attn_func": "flame.ops.attention:flash_attn_func",
    "flash_attn_varlen_func": "flame.ops.attention:flash_attn_varlen_func",
}
"""Names that fla's layers import from packages of kernels, None where those are missing -> ours, on any device."""

METHODS: dict[str, str] = {
    "fla.modules.fused_cross_entropy.ops:FusedCrossEntropyLoss.forward": (
        "flame.ops.cross_entropy:fused_cross_entropy_forward"
    ),
    "fla.layers.stickbreaking_attn:StickBreakingAttention.forward": "flame.ops.stickbreaking:stickbreaking_forward",
    "fla.layers.mom:MomAttention.forward": "flame.ops.memories:mom_forward",
    "fla.layers.mamba:Mamba.slow_forward": "flame.ops.mamba:mamba_forward",
    "fla.layers.mamba2:Mamba2.torch_forward": "flame.ops.mamba:mamba2_forward",
}
"""Methods of fla that are wrong, refuse a device, or are slow where a package of kernels is missing -> ours, on any
device."""

KERNELS_ONLY: dict[str, str] = {
    "cyclic_flow_attention": "its operators run on CUDA devices only",
    "log_linear_mamba2": "its layer runs on CUDA devices only",
    "mamba3": "its kernels are in the mamba-ssm package, and its layer runs on CUDA devices only",
}
"""Families of fla that need a GPU -> why."""

WITHOUT_CACHE: dict[str, str] = {
    "deltaformer": "its layer refuses a cache",
    "forgetting_transformer": "it decodes with an attention mask only, and generate() leaves out one of ones",
    "mesa_net": "a cached token's conjugate gradients end a thousandth from those of a sequence",
    "moba": "a cached token attends to all blocks, one of a sequence to the chosen ones",
    "path_attn": "it decodes with an attention mask only, and generate() leaves out one of ones",
    "stickbreaking_attn": "its layer refuses a cache",
}
"""Families of fla whose cached pass is none, or not that over the whole sequence -> why; they generate without a
cache."""
