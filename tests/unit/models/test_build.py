from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flame.config import JobConfig
from flame.errors import ConfigError
from flame.models.build import build_model, model_class, plain_model
from flame.parallel.layout import Layout
from flame.parallel.parallelize import parallelize
from flame.plugin import load_plugin

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
CONFIG = LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1)


def llama_class(config: LlamaConfig = CONFIG) -> type:
    return model_class(load_plugin("llama"), config, "causal_lm")


def test_the_class_is_huggingfaces_under_its_own_name() -> None:
    cls = llama_class()
    assert issubclass(cls, LlamaForCausalLM)
    assert (cls.__name__, cls.__module__) == ("LlamaForCausalLM", LlamaForCausalLM.__module__)
    names = {name for name, _ in build_model(cls, CONFIG).named_parameters()}
    assert names == {name for name, _ in LlamaForCausalLM(CONFIG).named_parameters()}


def test_building_leaves_the_config_alone() -> None:
    before = CONFIG.to_dict()
    model = build_model(llama_class(), CONFIG)
    assert CONFIG.to_dict() == before
    assert model.config is not CONFIG and not model.config.use_cache


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = plain_model(llama_class(), CONFIG, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was moved"
    torch.manual_seed(2)
    second, other = plain_model(llama_class(), CONFIG, seed=5), plain_model(llama_class(), CONFIG, seed=6)
    for (name, weight), same in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, same), name
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_built_on_meta_becomes_the_plain_one(process_group: None, tied: bool, dtype: torch.dtype) -> None:
    config = LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied)
    cls = llama_class(config)
    cls.init_seed = 9
    job = JobConfig()
    job.training.mixed_precision_param = "float32"
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model: Any = build_model(cls, config)
        model = parallelize(model, Layout(1, 1, 1, 1, 1, 1, 1, world_size=1), job)
        model.to_empty(device="cpu")
        with torch.no_grad():
            model.init_weights(buffer_device=None)
        expected = plain_model(cls, config, 9)
    finally:
        torch.set_default_dtype(previous)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    weights = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.full_tensor(), weights[name]), name
    assert torch.equal(model.model.rotary_emb.inv_freq, expected.model.rotary_emb.inv_freq)


def test_a_head_that_the_family_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="family 'llama' has no head 'ctc' \\(it has: causal_lm\\)"):
        model_class(load_plugin("llama"), CONFIG, "ctc")


def test_the_token_that_pads_learns_too() -> None:
    """Most tokenizers pad with the token that ends documents."""
    config = LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, pad_token_id=2, eos_token_id=2)
    model = build_model(llama_class(config), config)
    ids = torch.tensor([[5, 2, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad[2].any()
