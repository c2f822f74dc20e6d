"""What HGRN is made of that no kernel shows: each layer forgets less than the one below (arXiv 2311.04823)."""

from typing import Any

import pytest
import torch

from flame.models.build import model_class, plain_model
from flame.models.config import tiny_config
from flame.plugin import load_plugin


@pytest.mark.parametrize("family", ["hgrn", "hgrn2"])
def test_the_least_a_layer_keeps_grows_with_depth(family: str) -> None:
    plugin = load_plugin(family)
    config: Any = tiny_config(plugin)
    config.num_hidden_layers, config.use_lower_bound = 4, True
    model: Any = plain_model(model_class(plugin, config, "causal_lm"), config, seed=0).eval()
    seen = []
    for layer in model.model.layers:
        layer.attn.register_forward_pre_hook(
            lambda module, args, given: seen.append(given["lower_bound"]), with_kwargs=True
        )
    with torch.no_grad():
        model.model.lower_bounds.normal_(generator=torch.Generator().manual_seed(0))
        model(input_ids=torch.arange(8).unsqueeze(0))
    assert len(seen) == 4 and not seen[0].any()
    for below, above in zip(seen, seen[1:], strict=False):
        assert (above > below).all() and (above < 1).all()
