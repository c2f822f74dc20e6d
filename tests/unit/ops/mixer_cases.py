"""The kernels of fla's token mixers, and on what inputs they are compared with our functions."""

from tests.unit.ops.kernel_comparison import Case

FINAL = {"output_final_state": True}
NORMALISED = {**FINAL, "use_qk_l2norm_in_kernel": True}
QKV = "q:BTHK k:BTHK v:BTHV "
UNIT = "q:BTHK:unit k:BTHK:unit v:BTHV "
STATE = " initial_state:NHKV:state"
GROUPED = "q:BTGK k:BTHK v:BTHV "
DPLR = " v:BTHV a:BTHK:unit b:BTHK:small"

LINEAR = [
    Case("fla.ops.gla.chunk:chunk_gla", QKV + "g:BTHK:decay" + STATE, FINAL),
    Case("fla.ops.gla.fused_recurrent:fused_recurrent_gla", QKV + "gk:BTHK:decay" + STATE, FINAL),
    Case("fla.ops.gla.fused_recurrent:fused_recurrent_gla", QKV + "gv:BTHV:decay" + STATE, FINAL, "values"),
    Case("fla.ops.simple_gla.chunk:chunk_simple_gla", QKV + "g:BTH:decay" + STATE, FINAL),
    Case(
        "fla.ops.simple_gla.chunk:chunk_simple_gla", QKV + "g_gamma:H:decay" + STATE, FINAL, "gamma", fixed=("g_gamma",)
    ),
    Case(
        "fla.ops.simple_gla.chunk:chunk_simple_gla",
        QKV + "g:BTH:decay initial_state:NHVK:state",
        {**FINAL, "state_v_first": True},
        "v_first",
    ),
    Case("fla.ops.simple_gla.fused_recurrent:fused_recurrent_simple_gla", QKV + "g:BTH:decay" + STATE, FINAL),
    Case("fla.ops.simple_gla.fused_chunk:fused_chunk_simple_gla", QKV + "g:BTH:decay" + STATE, FINAL),
    Case("fla.ops.simple_gla.parallel:parallel_simple_gla", QKV + "g:BTH:decay"),
    Case("fla.ops.rwkv6.chunk:chunk_rwkv6", "r:BTHK k:BTHK v:BTHV w:BTHK:decay u:HK" + STATE, FINAL),
    Case(
        "fla.ops.rwkv6.fused_recurrent:fused_recurrent_rwkv6",
        "r:BTHK k:BTHK v:BTHV w:BTHK:decay u:HK" + STATE,
        FINAL,
        detached_states=True,
    ),
    Case(
        "fla.ops.gsa.chunk:chunk_gsa",
        QKV + "s:BTHM g:BTHM:decay initial_state.0:NHKM:state initial_state.1:NHMV:state",
        FINAL,
    ),
    Case("fla.ops.gsa.chunk:chunk_gsa", GROUPED + "s:BTHM g:BTHM:decay", FINAL, "grouped"),
    Case("fla.ops.gsa.fused_recurrent:fused_recurrent_gsa", QKV + "s:BTHM g:BTHM:decay", FINAL),
    Case("fla.ops.gsa.gate:fused_additive_gate", "x:BTHM initial_state:N1HM:state"),
    Case("fla.ops.abc.chunk:chunk_abc", QKV + "s:BTHM"),
    Case(
        "fla.ops.hgrn.chunk:chunk_hgrn",
        "x:BTD g:BTD:decay initial_state:ND:state",
        FINAL,
        fixed=("initial_state",),
        detached_states=True,
    ),
    Case("fla.ops.hgrn.fused_recurrent:fused_recurrent_hgrn", "x:BTD g:BTD:decay initial_state:ND:state", FINAL),
    Case("fla.ops.utils.cumsum:chunk_global_cumsum", "s:BTH:decay", forward_only=True),
    Case(
        "fla.ops.utils.cumsum:chunk_global_cumsum",
        "s:BTHM:decay",
        {"reverse": True, "scale": 0.5},
        "back",
        forward_only=True,
    ),
]

DELTA = [
    Case("fla.ops.delta_rule.chunk:chunk_delta_rule", QKV + "beta:BTH:share" + STATE, NORMALISED, half_only=True),
    Case("fla.ops.delta_rule.fused_recurrent:fused_recurrent_delta_rule", QKV + "beta:BTH:share" + STATE, NORMALISED),
    Case(
        "fla.ops.delta_rule.fused_recurrent:fused_recurrent_delta_rule",
        UNIT + "beta:BTHV:share" + STATE,
        FINAL,
        "headwise",
    ),
    Case(
        "fla.ops.gated_delta_rule.chunk:chunk_gated_delta_rule", QKV + "g:BTH:decay beta:BTH:share" + STATE, NORMALISED
    ),
    Case(
        "fla.ops.gated_delta_rule.chunk:chunk_gated_delta_rule",
        "q:BTHK k:BTHK v:BTGV g:BTG:decay beta:BTG:state initial_state:NGVK:state",
        {**NORMALISED, "state_v_first": True, "use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": True},
        "grouped",
    ),
    Case(
        "fla.ops.gated_delta_rule.chunk:chunk_gated_delta_rule",
        QKV + "g:BTH:state beta:BTH:share A_log:H:state dt_bias:H:state",
        {**NORMALISED, "use_gate_in_kernel": True},
        "raw_gate",
        loose=5,
    ),
    Case(
        "fla.ops.gated_delta_rule.fused_recurrent:fused_recurrent_gated_delta_rule",
        QKV + "g:BTH:decay beta:BTH:share" + STATE,
        NORMALISED,
        forward_only=True,
    ),
    Case(
        "fla.ops.gated_delta_rule.fused_recurrent:fused_recurrent_gated_delta_rule",
        QKV + "gk:BTHK:decay gv:BTHV:decay beta:BTH:share" + STATE,
        NORMALISED,
        "channels",
        forward_only=True,
    ),
    Case("fla.ops.comba.chunk:chunk_comba", UNIT + "p:BTHK:unit g:BTH:decay beta:BTH:share" + STATE, FINAL),
    Case(
        "fla.ops.comba.chunk:chunk_comba", QKV + "p:BTHK g:BTH:decay beta:BTH:share" + STATE, NORMALISED, "normalised"
    ),
    Case(
        "fla.ops.comba.fused_recurrent:fused_recurrent_comba",
        UNIT + "p:BTHK:unit g:BTH:decay beta:BTH:share" + STATE,
        FINAL,
        forward_only=True,
    ),
    Case(
        "fla.ops.gated_delta_product.chunk:chunk_gated_delta_product",
        "q:BTHK k:B(T2)HK v:B(T2)HV g:BTH:decay beta:B(T2)H:share" + STATE,
        {**NORMALISED, "num_householder": 2},
        half_only=True,
    ),
    Case("fla.ops.kda.chunk:chunk_kda", QKV + "g:BTHK:decay beta:BTH:share" + STATE, NORMALISED),
    Case(
        "fla.ops.kda.chunk:chunk_kda",
        QKV + "g:BTHK:state beta:BTH:state A_log:H:state dt_bias:(HK):state",
        {**NORMALISED, "use_gate_in_kernel": True, "use_beta_sigmoid_in_kernel": True},
        "raw_gate",
        loose=5,
    ),
    Case(
        "fla.ops.kda.fused_recurrent:fused_recurrent_kda",
        QKV + "g:BTHK:decay beta:BTH:share" + STATE,
        NORMALISED,
        forward_only=True,
    ),
    Case("fla.ops.kda.gate:fused_kda_gate", "g:BTHK A_log:H:state dt_bias:(HK):state"),
    Case(
        "fla.ops.kda.gate:fused_kda_gate", "g:BTHK A_log:H:state dt_bias:(HK):state", {"lower_bound": -5.0}, "bounded"
    ),
    Case("fla.ops.gdn2.chunk:chunk_gdn2", QKV + "g:BTHK:decay b:BTHK:share w:BTHV:share" + STATE, NORMALISED),
    Case(
        "fla.ops.gdn2.fused_recurrent:fused_recurrent_gdn2",
        QKV + "g:BTHK:decay b:BTHK:share w:BTHV:share" + STATE,
        NORMALISED,
        forward_only=True,
    ),
    Case(
        "fla.ops.precond_gated_delta_rule.chunk:chunk_precond_gated_delta_rule",
        QKV + "g_atk:BTH:decay g:BTH:decay beta_atk:BTH:share beta:BTH:share" + STATE,
        FINAL,
    ),
    Case(
        "fla.ops.precond_gated_delta_rule.fused_recurrent:fused_recurrent_precond_gated_delta_rule",
        QKV + "g_atk:BTH:decay g:BTH:decay beta_atk:BTH:share beta:BTH:share" + STATE,
        FINAL,
        forward_only=True,
    ),
    Case(
        "fla.ops.precond_kda.chunk:chunk_precond_kda",
        QKV + "g_atk:BTH:decay g:BTHK:decay beta_atk:BTH:share beta:BTH:share" + STATE,
        FINAL,
    ),
    Case(
        "fla.ops.precond_kda.fused_recurrent:fused_recurrent_precond_kda",
        QKV + "g_atk:BTH:decay g:BTHK:decay beta_atk:BTH:share beta:BTH:share" + STATE,
        FINAL,
        forward_only=True,
    ),
    Case(
        "fla.ops.mesa_net.chunk:chunk_mesa_net",
        "q:BTHK:unit k:BTHK:unit v:BTHK g:BTH:decay beta:BTH:share lamb:HK:ridge",
        FINAL,
        rounds=True,
    ),
    Case(
        "fla.ops.mesa_net.decoding_one_step:mesa_net_decoding_one_step",
        "q:BHK:unit k:BHK:unit v:BHV g:BH:decay lamb:HK:ridge beta:BH:share prev_h_kk:BHKK:zero prev_h_kv:BHKV:state",
        forward_only=True,
    ),
    Case(
        "fla.ops.momentum_delta_rule.chunk:chunk_momentum_delta_rule",
        QKV + "log_alpha:BTH:decay log_mu:BTH:decay p:BTHK beta:BTH:share eta:BTH:share",
        FINAL,
        half_only=True,
        dense_only=True,
    ),
    Case(
        "fla.ops.momentum_delta_rule.fused_recurrent:fused_recurrent_momentum_delta_rule",
        QKV + "log_alpha:BTH:decay log_mu:BTH:decay p:BTHK beta:BTH:share eta:BTH:share",
        FINAL,
        dense_only=True,
    ),
    Case("fla.ops.rwkv7.chunk:chunk_rwkv7", "r:BTHK w:BTHK:decay k:BTHK" + DPLR + STATE, FINAL),
    Case(
        "fla.ops.rwkv7.fused_recurrent:fused_recurrent_rwkv7",
        "r:BTHK w:BTHK:decay k:BTHK" + DPLR + STATE,
        FINAL,
        forward_only=True,
    ),
    Case(
        "fla.ops.rwkv7.fused_recurrent:fused_mul_recurrent_rwkv7",
        "r:BTHK w:BTHK:decay k:BTHK v:BTHV kk:BTHK:unit a:BTHK:share" + STATE,
        FINAL,
        forward_only=True,
    ),
    Case(
        "fla.ops.rwkv7.fused_addcmul:fused_addcmul_rwkv7",
        "hidden_states:BTD delta:BTD xr:11D xw:11D xk:11D xv:11D xa:11D xg:11D",
    ),
    Case("fla.ops.rwkv7.fused_k_update:fused_k_rwkv7", "k:BTD a:BTD ka:11D"),
    Case(
        "fla.ops.rwkv7.gate_output_correction:gate_output_correction", "o:BT(HV) r:BTHV k:BTHV r_k:HV v:BTHV g:BT(HV)"
    ),
    Case(
        "fla.ops.generalized_delta_rule.dplr.chunk:chunk_dplr_delta_rule",
        "q:BTHK k:BTHK gk:BTHK:decay" + DPLR + STATE,
        FINAL,
    ),
    Case(
        "fla.ops.generalized_delta_rule.dplr.fused_recurrent:fused_recurrent_dplr_delta_rule",
        "q:BTHK k:BTHK gk:BTHK:decay" + DPLR + STATE,
        FINAL,
        forward_only=True,
    ),
    Case(
        "fla.ops.generalized_delta_rule.iplr.chunk:chunk_iplr_delta_rule",
        "q:BTHK k:BTHK" + DPLR + STATE,
        FINAL,
        forward_only=True,
    ),
    Case(
        "fla.ops.generalized_delta_rule.iplr.fused_recurrent:fused_recurrent_iplr_delta_rule",
        "q:BTHK k:BTHK" + DPLR + STATE,
        FINAL,
    ),
]

ATTENTION = [
    Case("fla.ops.attn.parallel:parallel_attn", GROUPED + "g:BTG:decay sink_bias:G"),
    Case("fla.ops.attn.parallel:parallel_attn", GROUPED, {"window_size": 20}, "window"),
    Case("fla.ops.forgetting_attn.parallel:parallel_forgetting_attn", GROUPED + "g:BTG:decay"),
    Case(
        "fla.ops.forgetting_attn.parallel:parallel_forgetting_attn",
        GROUPED + "g:BTG:decay",
        {"window_size": 20},
        "window",
    ),
    Case("fla.ops.stickbreaking_attn.parallel:parallel_stickbreaking_attn", QKV),
    Case(
        "fla.ops.path_attn.parallel:parallel_path_attn", "q:BTGK k:BTHK v:BTHK w:BTHK:unit beta:BTH:share g:BTG:decay"
    ),
    Case(
        "fla.ops.path_attn.parallel:parallel_path_attn",
        "q:BTGK k:BTHK v:BTHK w:BTHK:unit beta:BTH:share",
        {},
        "ungated",
    ),
    Case("fla.ops.wall_attn.parallel:parallel_wall_attn", GROUPED + "g:BTGK:decay g_scalar:BTG:decay sink_bias:G"),
    Case("fla.ops.wall_attn.parallel:parallel_wall_attn", GROUPED + "g:BTGK:decay", {"window_size": 20}, "window"),
    Case("fla.ops.parallax.parallel:parallel_parallax", "q:BTGK r:BTGK k:BTHK v:BTHK", half_only=True),
    Case(
        "fla.ops.parallax.parallel:parallel_parallax",
        "q:BTGK r:BTGK k:BTHK v:BTHK",
        {"window_size": 20},
        "window",
        half_only=True,
    ),
    Case(
        "fla.ops.nsa.parallel:parallel_nsa",
        "q:BTQK k:BTHK v:BTHV g_cmp:BTQ:share g_slc:BTQ:share",
        {"block_counts": 4, "block_size": 16},
    ),
    Case(
        "fla.ops.attn.decoding:attn_decoding_one_step",
        "q:1NGK k:BTHK v:BTHV g:BTG:decay sink_bias:G",
        {"do_gate_scale": True, "window_size": 20},
        forward_only=True,
        packed_only=True,
    ),
    Case(
        "fla.ops.parallax.decode:parallax_decode", "q:B3GK r:B3GK k:BTHK v:BTHK", {"window_size": 20}, forward_only=True
    ),
    Case("fla.ops.parallax.decode:parallax_decode_one_step", "q:B1GK r:B1GK k:BTHK v:BTHK", forward_only=True),
    Case("fla.ops.wall_attn.decode:build_wall_kv_cache", "k:BTHK g_cumsum:BTGK", {"chunk_size": 64}, forward_only=True),
    Case(
        "fla.ops.wall_attn.decode:parallel_wall_attn_decode",
        "q:B3GK v:BTHV p_curr:B3GK:small k_tilde:BTGK r_cache:BCGK:small sink_bias:G g_scalar_cumsum:BTG",
        {"scale": 0.2, "cache_chunk_size": 64, "window_size": 20},
        forward_only=True,
    ),
    Case("fla.ops.based.parallel:parallel_based", "q:BTHF k:BTHF v:BTHV"),
    Case("fla.ops.based.fused_chunk:fused_chunk_based", "q:BTHF k:BTHF v:BTHV"),
    Case("fla.ops.rebased.parallel:parallel_rebased", "q:BTHF k:BTHF v:BTHV"),
]
