"""transformers' NanoChat against the equations of nanochat's first architecture (autumn 2025, the 561M "d20").

https://github.com/karpathy/nanochat
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, NanoChatConfig

from flame.losses import cross_entropy_sum
from flame.models.build import model_class, plain_model
from flame.models.head import head_is_last, loss_in_head
from flame.plugin import load_plugin, modeling_files

MACHINE_EPS = torch.finfo(torch.float32).eps


def configured(depth: int, vocabulary: int = 65536, **changes: Any) -> Any:
    """The depth rule: width 64 L, heads of at most 128 dimensions, an MLP four times as wide."""
    width = 64 * depth
    heads = math.ceil(width / 128)
    values = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": MACHINE_EPS,
        "pad_token_id": None,
    }
    return NanoChatConfig(**{**values, **changes})


def tiny(**changes: Any) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    return configured(2, 96, **{**sizes, "num_hidden_layers": 3, **changes})


def built(config: Any, seed: int = 0) -> Any:
    """A model whose weights are all far from zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        model.model.embed_tokens.weight.normal_()
    return model


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])  # of no gain, with the machine's epsilon


def rotated(x: Tensor, base: float = 10000.0) -> Tensor:
    """[B, T, H, D]: pairs (x[i], x[i + D / 2]) turned by MINUS position x frequency."""
    length, half = x.shape[1], x.shape[-1] // 2
    angles = torch.outer(torch.arange(length).double(), base ** -(torch.arange(half) / half).double())
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    first, second = x.split(half, -1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], -1)


def reference(weights: dict[str, Tensor], config: Any, ids: Tensor, cap: float = 15.0) -> Tensor:
    """Logits [B, T, V] from the equations."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    x = norm(F.embedding(ids, weights["model.embed_tokens.weight"]))
    length = ids.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(config.num_hidden_layers):
        own = {name.split(f"layers.{layer}.")[1]: w for name, w in weights.items() if f"layers.{layer}." in name}
        h = norm(x)
        q, k, v = (h @ own[f"self_attn.{name}_proj.weight"].mT for name in "qkv")
        q = norm(rotated(q.unflatten(-1, (heads, -1))))
        k = norm(rotated(k.unflatten(-1, (groups, -1)))).repeat_interleave(heads // groups, 2)
        v = v.unflatten(-1, (groups, -1)).repeat_interleave(heads // groups, 2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        weight = scores.masked_fill(future, -math.inf).softmax(-1)
        x = x + torch.einsum("bhqk,bkhd->bqhd", weight, v).flatten(2) @ own["self_attn.o_proj.weight"].mT
        x = x + F.relu(norm(x) @ own["mlp.fc1.weight"].mT).square() @ own["mlp.fc2.weight"].mT
    return cap * torch.tanh(norm(x) @ weights["lm_head.weight"].mT / cap)


def tokens(batch: int = 2, length: int = 24) -> Tensor:
    return torch.randint(0, 96, (batch, length), generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_the_equations() -> None:
    model, ids = built(tiny()), tokens()
    expected = reference(dict(model.state_dict()), model.config, ids)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert expected.abs().max() > 1  # into the bend of the cap
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_norms_use_the_epsilon_of_the_config_and_the_machine_s_is_nanochat_s() -> None:
    """Where activations are small the default of 1e-6 is another model."""
    ids = tokens()
    worst = {}
    for eps in (MACHINE_EPS, 1e-6):
        model = built(tiny(rms_norm_eps=eps))
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(1e-3)
            logits = model(input_ids=ids).logits
        worst[eps] = (logits - reference(dict(model.state_dict()), model.config, ids)).abs().max().item()
    assert worst[MACHINE_EPS] < 1e-5
    assert worst[1e-6] > 1e-2


def test_cap_bends_logits_by_tanh() -> None:
    model, ids = built(tiny()), tokens()
    open_ended = built(tiny(final_logit_softcapping=None))
    with torch.no_grad():
        raw = open_ended(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, 15 * torch.tanh(raw / 15))


def test_rotation_turns_backwards() -> None:
    """Llama's sign would be another function of the same weights."""
    model, ids = built(tiny()), tokens()
    weights = dict(model.state_dict())
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        model.model.rotary_emb.inv_freq.neg_()
        other = model(input_ids=ids).logits
    assert (logits - reference(weights, model.config, ids)).abs().max() < 1e-5
    # Scores depend on differences of positions, so both directions differ unless queries and keys were symmetric.
    assert (logits - other).abs().max() > 1e-2


@pytest.mark.parametrize("field, leaf", [("pad_token_id", 1), ("pad_token_id", 5)])
def test_a_pad_token_would_freeze_a_row_of_the_embedding(field: str, leaf: int) -> None:
    """Why nanochat's configs leave ``pad_token_id`` out: transformers gives that row no gradient."""
    ids = torch.tensor([[leaf, 7, leaf, 8]])
    for config, frozen in ((tiny(**{field: leaf}), True), (tiny(), False)):
        model = built(config)
        model(input_ids=ids).logits.square().sum().backward()
        gradient = model.model.embed_tokens.weight.grad
        assert gradient is not None
        assert (gradient[leaf].abs().max() == 0) == frozen


def of_flame(config: Any) -> Any:
    return plain_model(model_class(load_plugin("nanochat"), config, "causal_lm"), config, seed=0)


@torch.no_grad()
def test_flame_starts_the_weights_as_nanochat_does() -> None:
    """transformers' own start has a standard deviation of 0.02 throughout."""
    config = configured(4, 2048, num_key_value_heads=1)
    fresh = of_flame(config)
    for layer in fresh.model.layers:
        own = layer.self_attn
        for linear, share in ((own.q_proj, 1.0), (own.k_proj, math.sqrt(0.5)), (own.v_proj, math.sqrt(0.5))):
            assert linear.weight.std() == pytest.approx(share / 16, rel=0.02)  # half as many outputs as inputs, or all
        assert layer.mlp.fc1.weight.std() == pytest.approx(1 / 16, rel=0.02)  # more outputs than inputs
        assert not own.o_proj.weight.any()
        assert not layer.mlp.fc2.weight.any()
    assert fresh.model.embed_tokens.weight.std() == pytest.approx(1, rel=0.01)
    assert not fresh.lm_head.weight.any()
    labels = torch.randint(0, 2048, (2, 16))
    loss = cross_entropy_sum(fresh(input_ids=labels).logits, labels) / labels.numel()
    assert loss.item() == pytest.approx(math.log(2048), rel=1e-6)  # no token is likelier than another


def test_an_export_is_transformers_own_class() -> None:
    config = tiny()
    assert modeling_files(model_class(load_plugin("nanochat"), config, "causal_lm")) == []


def test_the_cap_is_taken_in_float32_where_the_loss_is() -> None:
    """In bfloat16 the model's own cap rounds every logit once more."""
    ids = tokens()
    model = built(tiny())
    model.lm_head.weight.data.mul_(8)
    assert head_is_last(model)
    exact = cross_entropy_sum(model(input_ids=ids).logits, ids)
    torch.testing.assert_close(loss_in_head(model, {"input_ids": ids}, ids), exact, rtol=1e-5, atol=0)
    narrow = model.bfloat16()
    fused = loss_in_head(narrow, {"input_ids": ids}, ids)
    logits = narrow.lm_head(narrow.model(input_ids=ids).last_hidden_state).float()
    capped = 15 * torch.tanh(logits / 15)
    torch.testing.assert_close(fused, cross_entropy_sum(capped, ids), rtol=1e-5, atol=0)
    assert (narrow(input_ids=ids).logits - capped).abs().max() > 1e-2


@pytest.mark.parametrize(
    "depth, parameters",
    [
        (4, 36_700_160),
        (6, 60_948_480),
        (8, 92_274_688),
        (10, 133_038_080),
        (12, 185_597_952),
        (16, 335_544_320),
        (20, 560_988_160),
        (24, 880_803_840),
        (26, 1_081_999_360),
        (32, 1_879_048_192),
        (34, 2_217_082_880),
    ],
)
def test_depth_gives_the_published_number_of_parameters(depth: int, parameters: int) -> None:
    config = configured(depth)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    width = config.hidden_size
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert parameters == 12 * depth * width**2 + 2 * 65536 * width
    assert width % config.num_attention_heads == 0
    assert width // config.num_attention_heads <= 128
