"""Absorbed decoding of latent attention gives what expanded decoding gives, from the same small cache."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

from flame.inference.absorbed import NAME, absorb, absorbed, latent_layers
from flame.models.config import tiny_config
from flame.plugin import load_plugin

YARN = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 10000.0}
YARN |= {"original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1}
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "V3": {"model_type": "deepseek_v3"},
    "V3, no query rank": {"model_type": "deepseek_v3", "q_lora_rank": None},
    "V3, plain rotation": {"model_type": "deepseek_v3", "rope_interleave": False},
    "V3, YaRN": {"model_type": "deepseek_v3", "rope_parameters": YARN},
    "dense": {"model_type": "deepseek_v3", "first_k_dense_replace": 3},
    "V2": {"model_type": "deepseek_v2"},
    "V2, YaRN": {"model_type": "deepseek_v2", "rope_parameters": YARN},
}


def build(shape: str = "V3", attention: str = "sdpa") -> Any:
    values = {**SIZES, **SHAPES[shape]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def prompt(rows: int = 2, length: int = 20) -> dict[str, Any]:
    ids = torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, : 3 * row] = 0  # padded on the left
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def decode(model: Any, cache: DynamicCache | None = None, **inputs: Any) -> Any:
    return model.generate(
        **inputs,
        max_new_tokens=24,
        do_sample=False,
        past_key_values=cache,
        return_dict_in_generate=True,
        output_logits=True,
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_a_padded_batch_equals_the_expanded_form(shape: str, attention: str) -> None:
    model = build(shape, attention)
    expected = decode(model, **prompt())
    with absorbed(model) as changed:
        found = decode(model, **prompt())
    assert changed
    assert torch.equal(found.sequences, expected.sequences)
    for right, logits in zip(expected.logits, found.logits, strict=True):
        assert (logits - right).abs().max() < 1e-4


def test_decoding_equals_one_pass_over_the_whole_sequence() -> None:
    model = build("V3, YaRN")
    ids = prompt(rows=1, length=60)["input_ids"]
    whole = model(input_ids=ids).logits
    absorb(model)
    cache = DynamicCache(config=model.config)
    parts = [
        model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in ids.split([30, 1, 1, 7, 21], 1)
    ]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-4


def test_the_cache_holds_latents_and_one_rotated_key() -> None:
    model = build()
    absorb(model)
    cache = DynamicCache(config=model.config)
    decode(model, cache, **prompt())
    for layer in cache.layers:
        values = layer.keys[0, :, 0].numel() + layer.values[0, :, 0].numel()  # type: ignore[index]
        assert values == SIZES["kv_lora_rank"] + SIZES["qk_rope_head_dim"]


def test_keys_and_values_of_heads_are_not_made_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    lengths: list[int] = []
    kind = type(latent_layers(model)[0])
    usual = kind.expand_kv
    monkeypatch.setattr(kind, "expand_kv", lambda self, c, k: lengths.append(c.shape[2]) or usual(self, c, k))
    decode(model, **prompt())
    assert len(lengths) == 24 * SIZES["num_hidden_layers"]
    lengths.clear()
    absorb(model)
    decode(model, **prompt())
    assert set(lengths) <= {20}  # the prompt, if that is less work


def test_a_long_prefill_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    assert absorb(model)
    assert not absorb(model)
    lengths: list[int] = []
    kind = type(latent_layers(model)[0])
    usual = kind.expand_kv
    monkeypatch.setattr(kind, "expand_kv", lambda self, c, k: lengths.append(c.shape[2]) or usual(self, c, k))
    model(input_ids=torch.ones(1, 200, dtype=torch.long))
    assert lengths == [200] * SIZES["num_hidden_layers"]


def test_leaving_the_block_restores_the_model() -> None:
    model = build(attention="eager")
    with absorbed(model):
        assert model.config._attn_implementation == NAME
        with absorbed(model) as again:
            assert not again
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "eager"
    assert all("expand_kv" not in vars(layer) for layer in latent_layers(model))


@pytest.mark.parametrize("model_type", ["llama", "deepseek_v32"])
def test_other_models_are_left_alone(model_type: str) -> None:
    config = tiny_config(load_plugin(model_type))
    model = AutoModelForCausalLM.from_config(config)
    before = model.config._attn_implementation
    assert not absorb(model)
    assert model.config._attn_implementation == before


def test_bfloat16_stays_bfloat16() -> None:
    model = build().to(torch.bfloat16)
    expected = model(**prompt()).logits
    absorb(model)
    found = model(**prompt()).logits
    assert found.dtype == torch.bfloat16
    real = prompt()["attention_mask"].bool()
    assert (found - expected)[real].abs().max() < 0.1 * expected[real].abs().max()
