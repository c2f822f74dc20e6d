import shutil
from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from flame import compat
from flame.config import JobConfig
from flame.errors import ConfigError
from flame.models.config import shrink
from flame.parallel.layout import Layout
from flame.parallel.parallelize import checkpoint_layers, compile_layers, parallelize
from flame.parallel.reduce import sum_over_data
from flame.parallel.split import layer_stack

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}


def llama(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, use_cache=False, **changes)
    return AutoModelForCausalLM.from_config(config)


def job(**changes: Any) -> JobConfig:
    config = JobConfig()
    config.training.mixed_precision_param = "float32"
    for key, value in changes.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    return config


def alone() -> Layout:
    return Layout(1, 1, 1, 1, 1, 1, 1, world_size=1)


@pytest.mark.parametrize(
    "name, path",
    [("llama", "model.layers"), ("gpt2", "transformer.h"), ("opt", "model.decoder.layers"), ("mpt", None)],
)
def test_the_stack_of_layers_is_found(name: str, path: str | None) -> None:
    model = AutoModelForCausalLM.from_config(shrink(AutoConfig.for_model(name)))
    stack = layer_stack(model)
    assert len(stack) == 2
    assert path is None or stack is model.get_submodule(path)


def test_a_model_without_a_stack_is_refused() -> None:
    model = llama()
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(ConfigError, match="no list of layers"):
        layer_stack(model)


def test_every_layer_embedding_and_head_is_a_group_of_its_own(process_group: None) -> None:
    model = parallelize(llama(), alone(), job())
    groups = {name for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    assert groups == {"", "model.embed_tokens", "lm_head", *(f"model.layers.{index}" for index in range(4))}


def test_tied_weights_stay_one_tensor_in_one_group(process_group: None) -> None:
    model = parallelize(llama(tie_word_embeddings=True), alone(), job())
    groups = {name for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    assert groups == {"", *(f"model.layers.{index}" for index in range(4))}
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "mode, option, wrapped", [("full", "2", 4), ("selective", "2", 2), ("selective", "1", 4), ("selective", "op", 4)]
)
def test_recomputation_changes_neither_names_nor_gradients(mode: str, option: str, wrapped: int) -> None:
    plain, model = llama(), llama()
    options = {"activation_checkpoint__mode": mode, "activation_checkpoint__selective_ac_option": option}
    checkpoint_layers(layer_stack(model), job(**options))
    assert sum(isinstance(layer, CheckpointWrapper) for layer in model.model.layers) == wrapped
    assert list(model.state_dict()) == list(plain.state_dict())
    ids = torch.arange(20).reshape(2, 10)
    for each in (plain, model):
        each(input_ids=ids, labels=ids).loss.backward()
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_layers_are_compiled_in_place_under_their_names() -> None:
    model = llama()
    compile_layers(layer_stack(model), "aot_eager")
    assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
    assert list(model.state_dict()) == list(llama().state_dict())


def test_compiling_without_a_compiler_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(compat, "DEVICE_TYPE", "cpu")
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        compile_layers(layer_stack(llama()), "inductor")


def test_bfloat16_computes_and_float32_keeps(process_group: None) -> None:
    model = parallelize(llama(), alone(), job(training__mixed_precision_param="bfloat16"))
    seen = []
    model.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(args[0].dtype))
    logits = model(input_ids=torch.arange(8).unsqueeze(0)).logits
    logits.float().sum().backward()
    assert seen == [torch.bfloat16]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_figures_of_one_process_are_themselves() -> None:
    figures = {"loss": torch.tensor(0.1, dtype=torch.float64), "tokens": torch.tensor(2**40 + 1)}
    assert sum_over_data(figures, alone()) == {"loss": 0.1, "tokens": 2**40 + 1}
