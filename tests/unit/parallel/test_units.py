import pytest
import torch
from transformers import AutoConfig

from flame.errors import ConfigError
from flame.models.build import build_model, model_class
from flame.models.config import shrink
from flame.models.families.units import UNITS, made_of_units, unit_of, units_of
from flame.ops.install import resolve
from flame.parallel.units import check_units
from flame.plugin import load_plugin

KEY = "parallelism.tensor_parallel_degree"


def small(model_type: str, **values):
    plugin = load_plugin(model_type)
    config = shrink(AutoConfig.for_model(model_type, **values))
    with torch.device("meta"):
        return build_model(model_class(plugin, config, "causal_lm"), config)


@pytest.mark.parametrize("path", UNITS)
def test_every_unit_is_a_class_of_fla(path):
    load_plugin("gla")
    assert issubclass(resolve(path), torch.nn.Module)


def test_projections_of_heads_are_columns_and_the_output_is_rows():
    unit = units_of(small("gla"))["model.layers.0.attn"]
    kinds = {"q_proj.weight": "columns", "gk_proj.0.weight": "whole", "gk_proj.1.bias": "columns"}
    kinds |= {"o_proj.weight": "rows", "g_norm_swish_gate.weight": "whole"}
    assert {name: unit.kind(name) for name in kinds} == kinds


def test_every_parameter_that_a_pattern_should_name_is_named():
    """A mixer whose projections all stay whole would be computed by every rank, and summed as often."""
    for family in ("gated_deltanet", "kda", "hgrn2", "rwkv6", "rwkv7", "mamba2", "transformer"):
        model = small(family)
        for path, unit in units_of(model).items():
            kinds = {unit.kind(name) for name, _ in model.get_submodule(path).named_parameters()}
            assert "rows" in kinds and kinds & {"columns", "packed"}, path


def test_a_degree_that_heads_do_not_divide_by_is_refused():
    with pytest.raises(ConfigError, match=r"degree = 3 does not divide num_heads = 4 of model.layers.0.attn"):
        check_units(small("gla"), 3, KEY)


def test_a_mixer_that_is_no_unit_is_refused():
    with pytest.raises(ConfigError, match="BitAttention, the 'attn' of family 'bitnet', cannot be split by heads"):
        check_units(small("bitnet"), 2, KEY)


def test_a_mixer_outside_the_layers_is_refused():
    """YOCO's cross decoder is a list of its own."""
    with pytest.raises(ConfigError, match="YOCOCrossAttention, the 'attn' of family 'yoco', cannot be split by heads"):
        check_units(small("yoco"), 2, KEY, mixers_only=True)


@pytest.mark.parametrize("family, option", [("gated_deltaproduct", "num_householder"), ("mamba2", "n_groups")])
def test_parameters_that_pack_more_than_heads_are_refused(family, option):
    with pytest.raises(ConfigError, match=f"with {option} = 2 cannot be split by heads"):
        check_units(small(family, **{option: 2}), 2, KEY)


def test_what_weighs_residuals_may_stay_whole():
    check_units(small("gla", attnres_block_size=1), 2, KEY)


def test_only_families_of_fla_are_made_of_units():
    assert made_of_units(small("gla"))
    assert not made_of_units(small("llama"))
    assert unit_of(torch.nn.Linear(2, 2)) is None
