"""Scaling a config down: the small model takes the large one's code path."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from flame.models.build import model_class
from flame.models.config import shrink
from flame.models.layer_kinds import keep_few_layers
from flame.models.trial import trial_model
from flame.plugin import load_plugin

# One of each way to say what is large: names, nested configs, lists per layer, periods, counts of first or last layers.
FAMILIES = [
    "deepseek_v3",
    "falcon_h1",
    "gemma3_text",
    "gemma4_text",
    "gpt2",
    "gpt_neo",
    "gpt_oss",
    "jamba",
    "llama",
    "llama4_text",
    "mixtral",
    "nemotron_h",
    "opt",
    "phi3",
    "qwen3_moe",
    "smollm3",
    "xlstm",
    "zamba2",
]


def config_of(family: str, **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(family, **changes)


def kinds(config: PreTrainedConfig) -> dict[str, set[str]]:
    """The kinds of layers that each list with one for each layer tells apart."""
    lists = {name: value for name, value in config.to_dict().items() if isinstance(value, list)}
    return {
        name: set(kinds)
        for name, kinds in lists.items()
        if len(kinds) == config.num_hidden_layers and type(kinds[0]) is str
    }


@pytest.mark.parametrize("layers, divisor", [(0, 1), (8, 2), (0, 4), (4, 8)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_model_of_every_family_runs(family: str, layers: int, divisor: int) -> None:
    config = config_of(family)
    cls = model_class(load_plugin(family), config, "causal_lm")
    model = trial_model(cls, config, layers, divisor)
    assert model is not None
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    ids = torch.arange(64).unsqueeze(0) + 3
    with torch.no_grad():
        assert model(input_ids=ids).logits.isfinite().all()


@pytest.mark.parametrize("layers", [0, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_layer_survives(family: str, layers: int) -> None:
    large = config_of(family)
    small = shrink(large, layers)
    assert max(layers, 2) <= small.num_hidden_layers <= max(layers, 8)
    assert kinds(small) == kinds(large)


@pytest.mark.parametrize("divisor", [2, 4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_multiples_of_the_divisor(family: str, divisor: int) -> None:
    large, small = config_of(family), shrink(config_of(family), divisor=divisor)
    names = ("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_experts")
    for name in (*names, "num_local_experts", "n_routed_experts", "ffn_dim"):
        value = getattr(small, name, None) or 0
        assert value % divisor == 0, f"{name} = {value}"
    for name in ("num_attention_heads", "num_key_value_heads", "mamba_n_heads", "num_heads"):
        before, after = (getattr(config, name, None) for config in (large, small))
        if before and after:
            assert math.gcd(after, divisor) == math.gcd(before, divisor), f"{name}: {before} -> {after}"


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "heads, groups", [(1, 1), (32, 8), (32, 32), (14, 2), (71, 1), (9, 3), (40, 10), (64, 4), (3, 3)]
)
def test_groups_of_heads_stay_what_they_were(heads: int, groups: int, divisor: int) -> None:
    small = shrink(
        config_of("llama", hidden_size=heads * 128, num_attention_heads=heads, num_key_value_heads=groups), 0, divisor
    )
    few, fewer = small.num_attention_heads, small.num_key_value_heads
    assert few % fewer == 0 and small.hidden_size % (few * divisor // math.gcd(few, divisor)) == 0
    assert (few == fewer) == (heads == groups)
    assert [math.gcd(few, divisor), math.gcd(fewer, divisor)] == [math.gcd(heads, divisor), math.gcd(groups, divisor)]


def test_experts_suffice_to_be_spread_and_few_are_chosen() -> None:
    for divisor, experts in ((1, 4), (2, 4), (8, 8)):
        small = shrink(config_of("deepseek_v3"), divisor=divisor)
        assert (small.n_routed_experts, small.num_experts_per_tok, small.n_group, small.topk_group) == (
            experts,
            2,
            2,
            1,
        )


def test_windows_and_chunks_are_shorter_than_a_trial() -> None:
    assert 8 <= shrink(config_of("gemma3_text")).sliding_window <= 32
    assert 8 <= shrink(config_of("llama4_text")).attention_chunk_size <= 32
    assert shrink(config_of("gemma3_text")).max_position_embeddings == 256
    assert shrink(config_of("mistral", sliding_window=None)).sliding_window is None


def test_more_layers_follow_the_family_s_pattern() -> None:
    assert shrink(config_of("smollm3"), layers=8).no_rope_layers == [1, 1, 1, 0, 1, 1, 1, 0]
    local, full = "sliding_attention", "full_attention"
    assert shrink(config_of("olmo3"), layers=6).layer_types == [local, local, local, full, local, full]
    short = config_of("qwen2", num_hidden_layers=2, layer_types=[local, full], use_sliding_window=True)
    assert shrink(short, layers=5).layer_types == [local, full, local, full, local]


def test_first_and_last_layers_of_another_kind_stay_at_their_ends() -> None:
    assert shrink(config_of("deepseek_v3", first_k_dense_replace=3)).first_k_dense_replace == 1
    small = shrink(config_of("gemma4_text", num_kv_shared_layers=12))
    assert (small.num_hidden_layers, small.num_kv_shared_layers) == (4, 2), "a local and a full one, own and shared"


def test_lists_of_layers_name_the_same_layers_afterwards() -> None:
    values: dict[str, Any] = {"hybrid_layer_ids": [2, 5], "rates": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    assert keep_few_layers(values, 6, 3) == 3
    # One of those it names not, one that it names, the last; and the foremost to make three.
    assert values == {"hybrid_layer_ids": [2], "rates": [0.1, 0.2, 0.6]}
    hybrid: dict[str, Any] = {"attn": {"layers": [1, 3]}, "rope": {"long_factor": [1.0] * 4}}
    assert keep_few_layers(hybrid, 4, 2) == 2
    assert hybrid == {"attn": {"layers": [1]}, "rope": {"long_factor": [1.0] * 4}}


def test_a_head_s_rotated_part_keeps_its_share() -> None:
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096, **factors}
    small = shrink(config_of("phi3", hidden_size=3072, num_attention_heads=32, rope_parameters=rope))
    assert len(small.rope_parameters["short_factor"]) == small.hidden_size // small.num_attention_heads // 2
    gptj = shrink(config_of("gptj"))  # 64 of 256 dimensions
    assert gptj.rotary_dim == gptj.n_embd // gptj.n_head // 4


def test_the_large_config_stays_as_it_was() -> None:
    for family in ("gemma4_text", "gpt_neo", "deepseek_v3"):
        config = config_of(family)
        before = config.to_json_string()
        shrink(config, 8, 4)
        assert config.to_json_string() == before


def test_a_config_that_does_not_fit_is_no_trial(caplog: pytest.LogCaptureFixture) -> None:
    """MoE sizes without defaults: the class cannot be built, at any size."""
    config = config_of("dots1")
    with caplog.at_level("INFO"):
        assert trial_model(model_class(load_plugin("dots1"), config, "causal_lm"), config) is None
    assert "'dots1' cannot be scaled down" in caplog.text
