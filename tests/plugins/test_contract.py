"""What every family of text keeps, whichever folder it comes from; a new one in ``custom_models/`` is tested by being
there. Those of recordings and series are in ``test_example_families``.

All of transformers:  pytest tests/plugins -m slow
"""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from flame.checkpoint.hf_export import export_hf
from flame.config import JobConfig
from flame.errors import ConfigError
from flame.losses import cross_entropy_sum
from flame.models.build import build_model, count_parameters, model_class, plain_model
from flame.models.config import load_config, shrink, tiny_config
from flame.models.head import head_is_last, loss_in_head
from flame.parallel.layout import Layout
from flame.parallel.parallelize import parallelize
from flame.plugin import ModelPlugin, custom_families, fla_families, load_plugin, transformers_families
from tests.conftest import FAMILIES
from tests.parallel.matrix import COMPLETED

REPRESENTATIVE = [
    "deepseek_v3",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mixtral",
    "nanochat",
    "olmo2",
    "opt",
    "phi3",
    "qwen3",
    "qwen3_moe",
    "smollm3",
]
TEXT = [name for name in custom_families() if "causal_lm" in load_plugin(name).auto_classes]
TESTED = [*TEXT, "ema_lm", *REPRESENTATIVE, *fla_families()]
OTHERS = sorted(set(transformers_families()) - set(TESTED))


def plugin_and_config(model_type: str) -> tuple[ModelPlugin, PreTrainedConfig]:
    plugin = load_plugin(model_type, str(FAMILIES))
    if plugin.needs_triton and not torch.accelerator.is_available():
        pytest.skip("needs a GPU")
    if model_type in COMPLETED and plugin.origin == "fla":  # a family whose default config makes no model
        config = shrink(AutoConfig.for_model(model_type, **COMPLETED[model_type]))
    else:
        config = tiny_config(plugin)
    parameters = count_parameters(model_class(plugin, config, "causal_lm"), config)
    if parameters > 20_000_000:
        pytest.skip(f"flame does not know this family's names for sizes: {parameters:,} parameters are left")
    return plugin, config


@pytest.fixture(
    params=[
        *TESTED,
        *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS),
    ]
)
def family(request: pytest.FixtureRequest) -> tuple[ModelPlugin, PreTrainedConfig]:
    return plugin_and_config(request.param)


def plain(family: tuple[ModelPlugin, PreTrainedConfig]):
    plugin, config = family
    return plain_model(model_class(plugin, config, "causal_lm"), config, seed=1)


def tokens(config: PreTrainedConfig, batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


def test_config_survives_a_round_trip(family, tmp_path: Path) -> None:
    plugin, config = family
    config.save_pretrained(tmp_path)
    again, found = load_config(str(tmp_path), str(FAMILIES))
    assert found.model_type == plugin.model_type
    assert again.to_dict() == config.to_dict()


def test_meta_init_equals_plain_init(family, process_group) -> None:
    plugin, config = family
    cls = model_class(plugin, config, "causal_lm")
    cls.init_seed = 1  # type: ignore[attr-defined]
    with torch.device("meta"):
        model = build_model(cls, config)
    job = JobConfig()
    job.training.mixed_precision_param = "float32"
    model = parallelize(model, Layout(1, 1, 1, 1, 1, 1, 1, world_size=1), job)
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.init_weights(buffer_device=None)  # type: ignore[call-arg]

    expected = plain(family)
    weights = dict(expected.named_parameters())
    assert {name for name, _ in model.named_parameters()} == set(weights)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert torch.equal(parameter.full_tensor(), weights[name]), name
    buffers = dict(expected.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_every_weight_learns(family) -> None:
    _, config = family
    model = plain(family)
    ids = tokens(config)
    loss = cross_entropy_sum(model(input_ids=ids).logits, ids)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing or "moe" in config.model_type or hasattr(config, "num_local_experts"), missing


def test_the_models_own_loss_can_be_shared_out_over_batches(family) -> None:
    """transformers' Trainer divides by the labels of all batches of a step where ``forward`` takes ``**kwargs``."""
    plugin, config = family
    model = plain(family).eval()
    if plugin.origin != "custom_models" or not any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(model.forward).parameters.values()
    ):
        pytest.skip("transformers answers for it")
    ids = tokens(config)
    losses = [model(input_ids=ids, labels=ids, num_items_in_batch=items).loss for items in (10, 40)]
    if losses[0] is None:
        pytest.skip("this family computes no loss itself")
    torch.testing.assert_close(losses[0], 4 * losses[1])


def test_loss_in_the_head_is_the_loss_of_the_logits(family) -> None:
    _, config = family
    model = plain(family).eval()  # without dropout
    if not head_is_last(model):
        pytest.skip("this family changes its logits after the head, so flame computes them in full")
    ids, labels = tokens(config), tokens(config).roll(-1, 1)
    labels[:, ::3] = -100
    naive = copy.deepcopy(model)
    expected = cross_entropy_sum(naive(input_ids=ids).logits, labels)
    expected.backward()
    loss = loss_in_head(model, {"input_ids": ids}, labels)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for (name, parameter), other in zip(model.named_parameters(), naive.parameters(), strict=True):
        if other.grad is not None:
            assert parameter.grad is not None
            assert (parameter.grad - other.grad).norm() <= 1e-5 * other.grad.norm() + 1e-6, name


def test_cached_generation_equals_uncached(family) -> None:
    plugin, config = family
    if not plugin.decodes_with_cache:
        pytest.skip("this family generates without a cache")
    model: Any = plain(family).eval()
    ids = tokens(config, batch=1, length=6)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
    uncached = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    assert torch.equal(cached, uncached)


def test_saved_model_loads_with_equal_logits(family, tmp_path: Path) -> None:
    _, config = family
    model = plain(family).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens(config)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_exported_checkpoint_loads_with_equal_logits(family, process_group, tmp_path: Path) -> None:
    _, config = family
    model = plain(family).eval()
    config.save_pretrained(tmp_path / "model")
    save(dict(model.state_dict()), checkpoint_id=tmp_path / "step-1")
    export_hf(tmp_path / "step-1", tmp_path / "model", tmp_path / "hf", progress=False)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    again, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = tokens(config)
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=ids).logits, model(input_ids=ids).logits)


def test_unknown_family_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'llama'"):
        load_plugin("lllama")


def test_head_that_a_family_lacks_is_refused() -> None:
    plugin, config = plugin_and_config("llama")
    with pytest.raises(ConfigError, match="no head 'ctc'"):
        model_class(plugin, config, "ctc")
