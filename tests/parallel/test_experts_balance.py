"""Experts are balanced alike in every layout: all data count, once, and every rank moves its biases."""

from typing import Any

import pytest

from flame.models.experts import BIAS
from tests.parallel.parity import RECOMPUTE, STEPS, Train, assert_equal_runs
from tests.runs import Materials, Run

DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 2,  # a stage without experts
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 128,
    "num_nextn_predict_layers": 1,
    "initializer_range": 0.2,  # scores far enough apart for rounding not to change a choice
}
# Makes Adam step in proportion to gradients. Full steps of what is nothing but rounding would move scores by so much
# that some choices, and with them loads, come out otherwise.
STEADY = {"optimizer.eps": 1.0, "optimizer.lr": 0.3}
BALANCED = {**STEADY, "moe.bias_update_rate": 0.01, "moe.sequence_balance_loss": 0.05}


def run(train: Train, materials: Materials, **options: Any) -> Run:
    return train(**{"model.config": str(materials.model(DEEPSEEK)), **BALANCED, **options})


def biases(trained: Run) -> dict[str, Any]:
    return {name: value for name, value in trained.weights(STEPS).items() if name.endswith(BIAS)}


@pytest.mark.parametrize(
    "layout",
    ["dp2", pytest.param("dp2 ep2", marks=pytest.mark.slow), "tp2", "cp2", "pp2"],
)
def test_a_layout_balances_as_one_device_does(train: Train, materials: Materials, layout: str) -> None:
    alone, split = run(train, materials), run(train, materials, layout=layout)
    assert_equal_runs(split, alone)
    assert len(biases(alone)) == 2
    for figure in ("expert_load", "balance_loss"):
        assert split.series(figure) == pytest.approx(alone.series(figure), rel=1e-5)


def test_recomputation_counts_nothing_twice(train: Train, materials: Materials) -> None:
    alone = run(train, materials)
    recomputed = run(train, materials, **{RECOMPUTE: "full"})
    assert_equal_runs(recomputed, alone)
    assert recomputed.series("expert_load") == pytest.approx(alone.series("expert_load"))


def test_the_biases_move_and_the_reported_loss_is_cross_entropy_alone(train: Train, materials: Materials) -> None:
    balanced = run(train, materials)
    plain = run(train, materials, **{"moe.bias_update_rate": 0.0, "moe.sequence_balance_loss": 0.0})
    assert all(bias.any() for bias in biases(balanced).values())
    assert not any(bias.any() for bias in biases(plain).values())
    assert balanced.series("loss")[0] == plain.series("loss")[0]
    assert balanced.series("grad_norm")[0] != plain.series("grad_norm")[0]
    assert not plain.series("balance_loss")
