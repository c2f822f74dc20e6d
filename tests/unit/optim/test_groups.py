"""What parameters are to an optimizer, over families of every kind."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from flame.config.optimization import ROLES
from flame.models.build import build_model, model_class
from flame.models.config import shrink
from flame.optim.groups import Parameter, by_role, classify
from flame.plugin import load_plugin

FAMILIES = [
    *("llama", "gpt2", "phi3", "mixtral", "gpt_oss", "deepseek_v3", "nanochat", "opt", "recurrent_gemma"),
    *("mamba", "mamba2", "gla", "delta_net", "rwkv6", "rwkv7", "hgrn2", "kda", "samba"),
]


def model_of(model_type: str, **options: Any) -> PreTrainedModel:
    plugin = load_plugin(model_type)
    config = shrink(AutoConfig.for_model(model_type, **options), layers=2, divisor=2)
    with torch.device("meta"):
        return build_model(model_class(plugin, config, "causal_lm"), config)


def named(model: PreTrainedModel) -> dict[str, Parameter]:
    return {parameter.name: parameter for parameter in classify(model)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_role(family: str) -> None:
    model = model_of(family)
    found = classify(model)
    assert {parameter.name for parameter in found} == {name for name, _ in model.named_parameters()}
    grouped = [parameter.name for _, held in by_role(found) for parameter in held]
    assert sorted(grouped) == sorted(parameter.name for parameter in found)
    assert {role for role, _ in by_role(found)} <= set(ROLES)
    roles = {role: sum(p.value.numel() for p in held) for role, held in by_role(found)}
    assert {"matrices", "scalars"} <= roles.keys() or family == "nanochat"
    assert roles.get("head", 0) > 0, "the head, or the embedding that is tied to it"
    # Most of the layers is matrices, whatever the family; the low-rank updates of RWKV7 are not, and large if shrunk.
    assert roles["matrices"] > (1 if family == "rwkv7" else 5) * roles.get("scalars", 0)


@pytest.mark.parametrize(
    ("family", "roles"),
    [
        ("llama", {"model.embed_tokens.weight": "embeddings", "lm_head.weight": "head"}),
        ("llama", {"model.layers.0.self_attn.q_proj.weight": "matrices", "model.norm.weight": "scalars"}),
        ("gpt2", {"transformer.wte.weight": "head", "transformer.wpe.weight": "embeddings"}),
        ("gpt2", {"transformer.h.0.mlp.c_fc.weight": "matrices", "transformer.h.0.mlp.c_fc.bias": "scalars"}),
        ("mixtral", {"model.layers.0.mlp.experts.gate_up_proj": "matrices"}),
        ("gpt_oss", {"model.layers.0.mlp.experts.gate_up_proj_bias": "scalars"}),
        ("mamba", {"backbone.layers.0.mixer.A_log": "scalars", "backbone.layers.0.mixer.conv1d.weight": "scalars"}),
        ("rwkv7", {"model.layers.0.attn.w_lora.lora.0.weight": "scalars", "model.layers.0.attn.x_r": "scalars"}),
        ("hgrn2", {"model.lower_bounds": "scalars"}),
    ],
)
def test_parameters_are_what_they_are_called(family: str, roles: dict[str, str]) -> None:
    found = named(model_of(family))
    known = {name: found[name].role for name in roles}
    assert known == roles


def test_an_embedding_tied_to_the_head_goes_by_the_heads_rules() -> None:
    found = named(model_of("llama", tie_word_embeddings=True))
    assert found["model.embed_tokens.weight"].role == "head"


def test_a_stage_without_the_head_knows_that_its_embedding_is_tied() -> None:
    model = model_of("llama", tie_word_embeddings=True)
    model.lm_head = torch.nn.Identity()  # type: ignore[assignment]
    assert named(model)["model.embed_tokens.weight"].role == "head"


def test_fused_projections_are_known_with_their_parts() -> None:
    found = named(model_of("phi3", num_attention_heads=8, num_key_value_heads=4))
    qkv = found["model.layers.0.self_attn.qkv_proj.weight"]
    assert len(qkv.parts) == 3 and sum(qkv.parts) == qkv.value.shape[0] and qkv.parts[0] == 2 * qkv.parts[1]
    gate_up = found["model.layers.0.mlp.gate_up_proj.weight"]
    assert gate_up.parts == (gate_up.value.shape[0] // 2,) * 2
    attention = named(model_of("gpt2"))["transformer.h.0.attn.c_attn.weight"]
    assert attention.transposed and attention.parts == (attention.value.shape[1] // 3,) * 3


@pytest.mark.parametrize(
    ("family", "fused"),
    [
        ("granitemoehybrid", ("shared_mlp.input_linear", "experts.gate_up_proj")),
        ("jetmoe", ("mlp.input_linear", "kv_proj")),
    ],
)
def test_experts_of_granite_and_jetmoe_are_two_matrices(family: str, fused: tuple[str, ...]) -> None:
    parts = {name.removesuffix(".weight"): parameter.parts for name, parameter in named(model_of(family)).items()}
    for name, found in parts.items():
        assert bool(found) == name.endswith(fused), name
    assert any(parts.values())


def test_interleaved_parts_stay_one_matrix() -> None:
    assert named(model_of("gpt_oss"))["model.layers.0.mlp.experts.gate_up_proj"].parts == ()


def test_a_family_names_its_own_fused_projections() -> None:
    model = model_of("llama")
    type(model)._fused_projections = {"up_proj": "halves"}  # type: ignore[attr-defined]
    parameter = named(model)["model.layers.0.mlp.up_proj.weight"]
    assert parameter.parts == (parameter.value.shape[0] // 2,) * 2
