"""The stick-breaking family: its cache, its documents, and what it takes of upstream."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedModel

from flame.models.build import count_parameters, model_class, plain_model
from flame.models.documents import documents_are_isolated
from flame.models.trial import stir
from flame.plugin import load_plugin
from tests.plugins.exported import export, without_flame

load_plugin("sba")
SBAConfig = importlib.import_module("custom_models.sba.configuration_sba").SBAConfig

UPSTREAM_340M = {
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "fuse_cross_entropy": True,
    "fuse_norm": True,
    "hidden_act": "swish",
    "hidden_size": 1024,
    "initializer_range": 0.006,
    "max_position_embeddings": 8192,
    "model_type": "sba",
    "num_heads": 16,
    "num_hidden_layers": 24,
    "norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32000,
}


def model(**changes: Any) -> PreTrainedModel:
    """A small model whose weights are far from zero, so that everything shows."""
    plugin = load_plugin("sba")
    assert plugin.tiny is not None
    config = SBAConfig(**{**plugin.tiny().to_dict(), **changes})
    return stir(plain_model(model_class(plugin, config, "causal_lm"), config, seed=0).eval())


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(1))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden_act 'swosh' is none of .*, silu, .*swish"):
        SBAConfig(hidden_act="swosh")


@pytest.mark.parametrize("options", [{}, {"attend_current": True}, {"add_remainder": True}], ids=str)
@torch.no_grad()
def test_decoding_with_a_cache_equals_one_pass(options) -> None:
    tried, text = model(**options), ids(2, 20)
    whole = tried(input_ids=text, use_cache=False).logits
    cache, start, parts = None, 0, []
    for stop in (7, 8, 9, 13, 20):  # a prompt, single tokens, and several at once
        output = tried(input_ids=text[:, start:stop], past_key_values=cache, use_cache=True)
        cache, start = output.past_key_values, stop
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_is_left_goes_to_the_own_value() -> None:
    """The first token sees no key, so all of the stick is left: attention hands on its value."""
    tried: Any = model(add_remainder=True)
    layer = tried.model.layers[0].attn
    hidden = torch.randn(1, 1, 64)
    expected = layer.o_proj(layer.v_proj(hidden).unflatten(-1, (2, 16)).repeat_interleave(2, 2).flatten(2))
    torch.testing.assert_close(layer(hidden, None, None), expected)


@pytest.mark.parametrize("attend_current", [False, True])
def test_packed_documents_do_not_see_each_other(attend_current) -> None:
    assert documents_are_isolated(model(attend_current=attend_current), "position_ids")


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_is_not_seen(side) -> None:
    tried, text = model(), ids(2, 12)
    mask = torch.ones_like(text)
    mask[0, slice(0, 5) if side == "left" else slice(7, 12)] = 0
    logits = tried(input_ids=text, attention_mask=mask).logits
    short = text[:1, mask[0].bool()]
    torch.testing.assert_close(logits[:1, mask[0].bool()], tried(input_ids=short).logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[1:], tried(input_ids=text[1:]).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_hole_in_the_mask_is_skipped() -> None:
    tried, text = model(), ids(1, 12)
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1]])
    logits = tried(input_ids=text, attention_mask=mask).logits[:, mask[0].bool()]
    torch.testing.assert_close(logits, tried(input_ids=text[:, mask[0].bool()]).logits, rtol=1e-5, atol=1e-5)


def test_prompts_of_different_length_generate_what_they_do_alone() -> None:
    tried: Any = model()
    prompts = [ids(1, 9)[:, 4:], ids(1, 9)]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    alone = [tried.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, -8:] for prompt in prompts]
    padded = torch.cat([torch.nn.functional.pad(prompts[0], (4, 0)), prompts[1]])
    together = tried.generate(padded, attention_mask=(padded > 0).long(), **options)[:, -8:]
    assert torch.equal(together, torch.cat(alone))


def test_a_mask_that_leaves_out_the_cache_is_refused() -> None:
    tried = model()
    cache = tried(input_ids=ids(1, 5), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cached tokens included"):
        tried(input_ids=ids(1, 1), attention_mask=torch.ones(1, 1), past_key_values=cache)


def test_a_cache_of_fixed_length_is_refused() -> None:
    tried: Any = model()
    with pytest.raises(ValueError, match="a cache that grows"):
        tried.generate(ids(1, 5), max_new_tokens=2, cache_implementation="static", pad_token_id=0)


def test_upstream_s_json_loads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(UPSTREAM_340M))
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, SBAConfig)
    assert (config.num_kv_heads, config.intermediate_size) == (16, 2816)
    assert (config.attend_current, config.add_remainder, config.qkv_bias) == (False, False, False)
    width, layers, vocabulary = 1024, 24, 32000
    expected = layers * (4 * width**2 + 3 * width * 2816 + 2 * width) + 2 * vocabulary * width + width
    assert count_parameters(model_class(load_plugin("sba"), config, "causal_lm"), config) == expected == 373_867_520


def test_parameters_have_upstream_s_names() -> None:
    names = {name for name in model().state_dict() if "layers.1." not in name}
    layer = [
        "attn_norm",
        *(f"attn.{x}_proj" for x in "qkvo"),
        "mlp_norm",
        *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
    ]
    assert names == {
        "model.embeddings.weight",
        *(f"model.layers.0.{name}.weight" for name in layer),
        "model.norm.weight",
        "lm_head.weight",
    }


@pytest.mark.parametrize(
    "values, named",
    [
        ({"hidden_size": 65}, "hidden_size 65"),
        ({"num_kv_heads": 3}, "num_kv_heads 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"window_size": 128}, "window_size = 128"),
        ({"elementwise_affine": False}, "elementwise_affine = False"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"qk_norm": True}, "qk_norm = True"),
    ],
)
def test_what_the_model_cannot_be_is_refused(values, named) -> None:
    with pytest.raises(ValueError, match=named):
        SBAConfig(**{"hidden_size": 64, "num_heads": 4, **values})


def test_upstreams_files_may_say_both_kinds_of_bias() -> None:
    assert SBAConfig(**{**UPSTREAM_340M, "qkv_bias": True, "attention_bias": False}).qkv_bias


def test_weights_start_as_the_config_says() -> None:
    config = SBAConfig(vocab_size=512, hidden_size=128, num_hidden_layers=1, num_heads=4)
    fresh = plain_model(model_class(load_plugin("sba"), config, "causal_lm"), config, seed=0)
    for name, weight in fresh.named_parameters():
        if weight.dim() == 2:
            assert 0.0057 < weight.std() < 0.0063, name


@pytest.mark.parametrize("current", [False, True])
def test_flops_are_those_of_the_pairs_that_see_each_other(current) -> None:
    plugin, length = load_plugin("sba"), 40
    tried = model(attend_current=current)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tried(input_ids=ids(1, length), use_cache=False)
    # One block multiplies all pairs, in both layers.
    unseen = 2 * (length * (length + 1) // 2 - (length if current else 0))
    assert plugin.forward_flops is not None
    assert plugin.forward_flops(tried.config, length) == counter.get_total_flops() - 4 * 64 * unseen


def test_context_parallelism_is_refused_with_its_reason() -> None:
    assert "softmax" in load_plugin("sba").refuses["context"]


def test_an_exported_folder_decodes_equally_without_flame(process_group, tmp_path: Path) -> None:
    tried: Any = model()
    prompt, mask = ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    logits, tokens = without_flame(export(tried, tmp_path), prompt, mask, **options)
    assert torch.equal(logits, tried(input_ids=prompt, attention_mask=mask).logits)
    assert torch.equal(tokens, tried.generate(prompt, attention_mask=mask, **options))
