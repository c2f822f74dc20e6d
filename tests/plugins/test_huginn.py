"""Huginn: the equations, its names, and what training and generation rest on."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    set_seed,
)

from custom_models.huginn_raven import PLUGIN, RavenConfig, RavenForCausalLM, forward_flops
from custom_models.huginn_raven.modeling_raven_cache import RavenCache
from custom_models.huginn_raven.modeling_raven_exits import THRESHOLDS, ExitRule
from custom_models.huginn_raven.modeling_raven_states import (
    initial_state,
    random_seeds,
    state_figures,
    truncated_normal,
)
from tests.plugins.exported import export, without_flame

OFFICIAL = {
    "architectures": ["RavenForCausalLM"],
    "model_type": "huginn_raven",
    "architecture_class_name": "RecurrentGPT",
    "activation_checkpoint_impl": "per-iteration",
    "bias": False,
    "block_class_name": "SandwichBlock",
    "block_size": 4096,
    "effective_expected_depth": 132,
    "head_dim": 96,
    "init_orthogonal": False,
    "init_strategy": "takase",
    "injection_type": "linear",
    "intermediate_size": 17920,
    "mean_backprop_depth": 8,
    "mean_recurrence": 32,
    "mlp_class_name": "GatedMLP",
    "n_embd": 5280,
    "n_heads": 55,
    "n_layers": 8,
    "n_layers_in_coda": 2,
    "n_layers_in_prelude": 2,
    "n_layers_in_recurrent_block": 4,
    "nonlin_name": "SiLU",
    "norm_class_name": "RMSNorm_llama",
    "norm_eps": 1e-06,
    "num_key_value_heads": 55,
    "padded_vocab_size": 65536,
    "padding_multiple": 4096,
    "qk_bias": True,
    "rope_base": 50000,
    "sampling_scheme": "poisson-lognormal-filling",
    "state_init": "like-init",
    "test_time_noise": 0,
    "test_time_noise_type": "fixed",
    "tie_embeddings": True,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 65536,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "sandwich": {},
    "pre-norm": {"block_class_name": "TransformerPreNormBlock"},
    "post-norm, add": {
        "block_class_name": "TransformerPostNormBlock",
        "injection_type": "add",
        "init_strategy": "scaled",
        "qk_bias": False,
        "num_key_value_heads": 2,
    },
    "no norm weights": {"norm_class_name": "UnparametrizedRMSNorm", "injection_type": "add", "init_orthogonal": True},
    "no injection": {"injection_type": "none"},
    "ffn": {"injection_type": "ffn", "state_init": "normal"},
    "modulated": {"injection_type": "modulated", "state_init": "unit"},
    "embed": {"state_init": "embed", "tie_embeddings": False},
    "zero": {"state_init": "zero"},
    **{f"{kind} noise": {"test_time_noise": 0.1, "test_time_noise_type": kind} for kind in ("fixed", "geom", "sqrt")},
    **{f"{kind} noise": {"test_time_noise": 0.1, "test_time_noise_type": kind} for kind in ("line", "chi")},
}


def small(**changes: Any) -> RavenConfig:
    config: Any = PLUGIN.tiny
    return RavenConfig(**{**config().to_diff_dict(), **changes})


def made(seed: int = 0, **changes: Any) -> RavenForCausalLM:
    """A model whose weights are all random: biases begin as 0 and norms as 1."""
    set_seed(seed)
    model = RavenForCausalLM(small(**changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model() -> RavenForCausalLM:
    return made()


def tokens(rows: int = 2, length: int = 12) -> Tensor:
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(1))


def loss_of(model: RavenForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    logits = model(ids[:, :-1], **options).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def gradients(model: RavenForCausalLM, ids: Tensor, **options: Any) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model, ids, **options).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


# The equations, written out once more with nothing but the weights.


def norm(weights: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights.get(f"{name}.weight", 1.0)


def attention(weights: dict[str, Tensor], name: str, x: Tensor, config: RavenConfig) -> Tensor:
    rows, length, _ = x.shape
    dim, heads, groups = config.head_dim, config.n_heads, config.num_key_value_heads
    fused = x @ weights[f"{name}.Wqkv.weight"].T
    query, key, value = fused.split([heads * dim, groups * dim, groups * dim], dim=-1)
    bias = weights.get(f"{name}.qk_bias")
    result = torch.zeros(rows, length, heads, dim)
    for head in range(heads):
        group = head * groups // heads
        q, k, v = (
            part[..., index * dim : (index + 1) * dim] for part, index in ((query, head), (key, group), (value, group))
        )
        if bias is not None:
            q, k = q + bias[0, 0, head], k + bias[1, 0, head]
        q, k = turned(q, config.rope_base), turned(k, config.rope_base)
        for position in range(length):
            scores = torch.einsum("bd,btd->bt", q[:, position], k[:, : position + 1]) / dim**0.5
            result[:, position, head] = torch.einsum("bt,btd->bd", scores.softmax(-1), v[:, : position + 1])
    return result.flatten(2) @ weights[f"{name}.proj.weight"].T


def turned(x: Tensor, base: float) -> Tensor:
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    angles = torch.arange(x.shape[1]).unsqueeze(1) * base ** -(torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def mlp(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    first, second = (x @ weights[f"{name}.fc.weight"].T).chunk(2, dim=-1)
    return (F.silu(first) * second) @ weights[f"{name}.proj.weight"].T


def block(weights: dict[str, Tensor], name: str, x: Tensor, config: RavenConfig) -> Tensor:
    def n(index: int, value: Tensor) -> Tensor:
        return norm(weights, f"{name}.norm_{index}", value, config.norm_eps)

    if config.block_class_name == "SandwichBlock":
        a = n(2, x + attention(weights, f"{name}.attn", n(1, x), config))
        return n(4, a + mlp(weights, f"{name}.mlp", n(3, a)))
    if config.block_class_name == "TransformerPreNormBlock":
        a = x + attention(weights, f"{name}.attn", n(1, x), config)
        return a + mlp(weights, f"{name}.mlp", n(2, a))
    a = n(1, x + attention(weights, f"{name}.attn", x, config))
    return n(2, a + mlp(weights, f"{name}.mlp", a))


def reference(model: RavenForCausalLM, ids: Tensor, state: Tensor, steps: int) -> Tensor:
    config: Any = model.config
    weights = {name: value.detach() for name, value in model.state_dict().items()}

    def through(part: str, count: int, x: Tensor) -> Tensor:
        for index in range(count):
            x = block(weights, f"transformer.{part}.{index}", x, config)
        return x

    scale = config.n_embd**0.5 if config.init_strategy == "takase" else 1.0
    e = through("prelude", config.n_layers_in_prelude, scale * weights["transformer.wte.weight"][ids])
    for _ in range(steps):
        adapter = "transformer.adapter"
        if config.injection_type == "linear":
            u = torch.cat([state, e], -1) @ weights[f"{adapter}.weight"].T
        elif config.injection_type == "ffn":
            u = mlp(weights, adapter, torch.cat([state, e], -1))
        elif config.injection_type == "modulated":
            scaled, shift = mlp(weights, adapter, e).chunk(2, -1)
            u = state * (1 + scaled) + shift
        else:
            u = state + e
        state = through("core_block", config.n_layers_in_recurrent_block, u)
    y = norm(weights, "transformer.ln_f", state, config.norm_eps)
    y = through("coda", config.n_layers_in_coda, y)
    return norm(weights, "transformer.ln_f", y, config.norm_eps) @ weights["lm_head.weight"].T


@pytest.mark.parametrize("name", ["sandwich", "pre-norm", "post-norm, add", "no norm weights", "ffn", "modulated"])
def test_logits_are_those_of_the_equations(name: str) -> None:
    model = made(**VARIANTS[name])
    state = torch.randn(2, 7, 64)
    with torch.no_grad():
        logits = model(tokens(length=7), input_states=state, num_steps=3).logits
    torch.testing.assert_close(logits, reference(model, tokens(length=7), state, 3), rtol=1e-4, atol=1e-4)


# Names and sizes.


def official_shapes() -> dict[str, tuple[int, ...]]:
    width, inner = 5280, 17920
    shapes: dict[str, tuple[int, ...]] = {
        "freqs_cis": (1, 4096, 1, 48, 2),
        "transformer.wte.weight": (65536, width),
        "transformer.adapter.weight": (width, 2 * width),
        "transformer.ln_f.weight": (width,),
        "lm_head.weight": (65536, width),
    }
    for part, count in {"prelude": 2, "core_block": 4, "coda": 2}.items():
        for name in (f"transformer.{part}.{index}" for index in range(count)):
            shapes |= {f"{name}.norm_{number}.weight": (width,) for number in (1, 2, 3, 4)}
            shapes |= {f"{name}.attn.qk_bias": (2, 1, 55, 96), f"{name}.attn.Wqkv.weight": (3 * width, width)}
            shapes |= {f"{name}.attn.proj.weight": (width, width), f"{name}.mlp.fc.weight": (2 * inner, width)}
            shapes[f"{name}.mlp.proj.weight"] = (width, inner)
    return shapes


def test_names_and_shapes_are_those_of_the_official_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL))
    config: Any = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = RavenForCausalLM(config)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == official_shapes()
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_564_976_800


def test_the_stored_table_is_the_rotation_that_is_used(model: RavenForCausalLM) -> None:
    queries = torch.randn(1, 128, 1, 16)
    table = torch.view_as_complex(model.freqs_cis[0, :, 0])  # [T, D / 2]
    by_table = torch.view_as_complex(queries.unflatten(-1, (-1, 2)).contiguous()) * table[:, None]
    expected = turned(queries.squeeze(2), model.config.rope_base)
    torch.testing.assert_close(torch.view_as_real(by_table).flatten(-2).squeeze(2), expected, rtol=1e-4, atol=1e-4)


def test_common_names_of_sizes_are_understood() -> None:
    config = RavenConfig(hidden_size=96, num_attention_heads=6, n_kv_heads=3, qk_bias=False, tie_word_embeddings=False)
    assert (config.n_embd, config.n_heads, config.num_key_value_heads, config.head_dim) == (96, 6, 3, 16)
    assert config.num_hidden_layers == 8 and config.max_position_embeddings == 4096
    assert config.tie_embeddings is False
    again = RavenConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_heads": 7}, "n_heads 7"),
        ({"num_key_value_heads": 2}, "qk_bias"),
        ({"num_key_value_heads": 3, "qk_bias": False}, "num_key_value_heads 3"),
        ({"injection_type": "gate"}, "injection_type 'gate'"),
        ({"block_class_name": "Brick"}, "block_class_name 'Brick'"),
        ({"mean_recurrence": 0}, "mean_recurrence 0"),
        ({"mean_recurrence": 2.5}, "mean_recurrence 2.5 must be a whole number"),
        ({"mean_backprop_depth": True}, "mean_backprop_depth True"),
        ({"n_embd": 64.0}, "n_embd 64.0"),
        ({"vocab_size": -1}, "vocab_size -1"),
        ({"n_layers_in_coda": "2"}, "n_layers_in_coda '2'"),
        ({"sampling_scheme": None}, "sampling_scheme None is no name"),
        ({"norm_eps": -1e-6}, "norm_eps -1e-06"),
        ({"bias": True}, "bias"),
        ({"n_layers": 9}, "n_layers 9"),
        ({"test_time_noise": -1.0}, "test_time_noise"),
        ({"rope_base": math.inf}, "rope_base inf"),
        ({"qk_bias": "no"}, "qk_bias 'no' must be true or false"),
        ({"n_embd": 64, "hidden_size": 128}, "n_embd 64 and hidden_size 128 are the same size"),
        ({"vocab_size": 300, "padded_vocab_size": 320}, "vocab_size 300 and padded_vocab_size 320"),
    ],
)
def test_values_that_make_no_model_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        small(**changes)


def test_matrices_begin_as_takase_says() -> None:
    set_seed(0)
    model = RavenForCausalLM(small(n_embd=128, intermediate_size=256))
    std = (2 / (5 * 128)) ** 0.5
    depth = 1 + 1 + 2 * 4
    weights = model.state_dict()
    # A normal distribution cut at three standard deviations has 0.9866 of its own.
    for name, expected in {
        "transformer.wte": std,
        "transformer.adapter": std,
        "transformer.core_block.1.attn.Wqkv": std,
        "transformer.coda.0.mlp.fc": std,
        "transformer.core_block.0.attn.proj": std / (2 * depth) ** 0.5,
        "transformer.prelude.0.mlp.proj": std / (2 * depth) ** 0.5,
    }.items():
        weight = weights[f"{name}.weight"]
        assert weight.std().item() == pytest.approx(0.9866 * expected, rel=0.02), name
        assert weight.abs().max() <= 3.001 * expected
    assert not weights["transformer.coda.0.attn.qk_bias"].any()


def test_fused_projections_begin_orthogonal_each_for_itself() -> None:
    model = RavenForCausalLM(small(init_orthogonal=True))
    weight = model.state_dict()["transformer.core_block.0.attn.Wqkv.weight"]
    std2 = 2 / (5 * 64)
    for part in weight.chunk(3):
        torch.testing.assert_close(part @ part.T, 64 * std2 * torch.eye(64), rtol=1e-4, atol=1e-4)


def test_flops_are_those_of_the_products() -> None:
    for name in ("sandwich", "post-norm, add", "ffn", "modulated"):
        config = small(**VARIANTS[name])
        length, counter = 32, FlopCounterMode(display=False)
        with torch.device("meta"):
            model = RavenForCausalLM(config).eval()
            model.set_attn_implementation("eager")
        with counter, torch.no_grad():
            model(torch.zeros(1, length, dtype=torch.long, device="meta"))
        blocks = config.effective_expected_depth
        unseen = blocks * 4 * config.n_embd * length * (length - 1) // 2  # pairs that a causal kernel leaves out
        assert forward_flops(config, length) == counter.get_total_flops() - unseen, name


# The first state.


def test_the_first_state_belongs_to_its_position() -> None:
    seeds = random_seeds(torch.zeros(4, 64))
    drawn = truncated_normal(seeds, 256, "state")
    assert drawn.mean().abs() < 0.01 and drawn.std().item() == pytest.approx(0.9866, abs=0.01)
    assert drawn.abs().max() <= 3
    assert torch.equal(truncated_normal(seeds[1:3, 5:9], 256, "state"), drawn[1:3, 5:9])
    flat = F.normalize(drawn.flatten(0, 1) - drawn.mean(), dim=-1)
    others = (flat @ flat.T).fill_diagonal_(0)
    assert others.abs().max() < 6 / 256**0.5  # neighbouring channels and positions have nothing to do with each other
    torch.testing.assert_close(flat.T.cov().diagonal(offset=1).abs().max(), torch.tensor(0.0), rtol=0, atol=3e-3)
    for stream, step in (("noise", 0), ("noise", 1)):
        assert not torch.isclose(truncated_normal(seeds, 256, stream, step), drawn).float().mean() > 1e-3


@pytest.mark.parametrize(
    ("changes", "std"),
    [
        ({}, 0.9866 * 0.4**0.5),  # sqrt(2 / 5h) * sqrt(h)
        ({"init_strategy": "scaled"}, 0.9866 * (0.4 / 64) ** 0.5),
        ({"state_init": "normal"}, 1.0),
        ({"state_init": "embed"}, 1 / 8),
        ({"state_init": "unit"}, 1.0),
        ({"state_init": "zero"}, 0.0),
    ],
)
def test_the_first_state_has_the_size_of_its_kind(changes: dict[str, Any], std: float) -> None:
    embedded = torch.randn(4, 256, 64)
    state = initial_state(small(**changes), embedded, random_seeds(embedded[..., 0]), 1.0)
    assert state.std().item() == pytest.approx(std, abs=0.01 * max(std, 0.1))
    torch.testing.assert_close(
        initial_state(small(**changes), embedded, random_seeds(embedded[..., 0]), 0.0), 0 * state
    )


def test_the_end_does_not_depend_on_the_beginning(model: RavenForCausalLM) -> None:
    ids, apart = tokens(), []
    with torch.no_grad():
        for steps in (1, 4, 16, 64):
            first, second = (model(ids, num_steps=steps, state_seed=seed).logits.log_softmax(-1) for seed in (0, 7))
            apart.append((first - second).abs().max().item())
    assert apart[0] > apart[1] > apart[2] > apart[3] and apart[3] < 1e-3 * apart[0], apart


def test_training_draws_another_beginning_each_time(model: RavenForCausalLM) -> None:
    training = copy.deepcopy(model).train()
    with torch.no_grad():
        assert not torch.equal(training(tokens()).logits, training(tokens()).logits)
        seeds = random_seeds(tokens())
        given = [training(tokens(), state_seeds=seeds).logits for _ in range(2)]
        assert torch.equal(*given)
        half = training(tokens()[1:], state_seeds=seeds[1:]).logits
    torch.testing.assert_close(given[0][1:], half)


# Variants and training.


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_and_decodes(name: str) -> None:
    model = made(**VARIANTS[name])
    found = gradients(model, tokens())
    missing = {name for name, _ in model.named_parameters()} - found.keys()
    assert not missing and all(value.isfinite().all() for value in found.values())
    with torch.no_grad():
        whole = model(tokens()).logits
        cache = model(tokens()[:, :8], use_cache=True).past_key_values
        rest = model(tokens()[:, 8:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 8:], rtol=1e-4, atol=1e-4)


def test_steps_are_shared_out_between_graph_and_none(model: RavenForCausalLM) -> None:
    assert model.depth(None) == (2, 2) and model.depth(1) == (0, 1) and model.depth(9) == (7, 2)
    assert model.depth((3, 4)) == (3, 4) == model.depth(torch.tensor([3, 4]))
    wrong_ones: list[Any] = [0, (0, 0), (-1, 3), (1, 2, 3), 2.5]
    for wrong in wrong_ones:
        with pytest.raises(ValueError, match="num_steps"):
            model.depth(wrong)


def test_gradients_run_through_the_last_steps_only(model: RavenForCausalLM) -> None:
    ids = tokens()
    found = gradients(model, ids, num_steps=(3, 2))
    with torch.no_grad():
        after_three = model(ids[:, :-1], num_steps=(3, 0)).latent_states
    expected = gradients(model, ids, num_steps=(0, 2), input_states=after_three)
    assert found.keys() == expected.keys() == {name for name, _ in model.named_parameters()}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    full = gradients(model, ids, num_steps=(0, 5))
    assert (full["transformer.adapter.weight"] - found["transformer.adapter.weight"]).norm() > 1e-3


def test_few_steps_are_not_truncated(model: RavenForCausalLM) -> None:
    assert model.config.mean_backprop_depth == 2
    for steps in (1, 2):
        short, full = gradients(model, tokens(), num_steps=steps), gradients(model, tokens(), num_steps=(0, steps))
        assert all(torch.equal(short[name], full[name]) for name in full)


def test_autocast_loses_no_gradient(model: RavenForCausalLM) -> None:
    """Weights that are cast in the steps without a graph must not be used in those with one."""
    ids = tokens()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        after_three = model(ids[:, :-1], num_steps=(3, 0)).latent_states
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, ids, num_steps=(3, 2))
        expected = gradients(model, ids, num_steps=(0, 2), input_states=after_three)
    plain = gradients(model, ids, num_steps=(3, 2))
    assert found.keys() == expected.keys() == plain.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert (found[name] - plain[name]).norm() < 0.05 * plain[name].norm() + 1e-4, name


def test_recomputing_activations_changes_no_gradient(model: RavenForCausalLM) -> None:
    training = copy.deepcopy(model).train()
    options = {"num_steps": (1, 3), "state_seeds": random_seeds(tokens()[:, 1:])}
    expected = gradients(training, tokens(), **options)
    training.gradient_checkpointing_enable()
    calls = []
    training.transformer["core_block"][0].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index]
    found = gradients(training, tokens(), **options)
    assert len(calls) == 1 + 2 * 3  # the steps with a graph run again
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_recomputing_whole_steps_keeps_one_input_each(model: RavenForCausalLM) -> None:
    training = copy.deepcopy(model).train()
    options = {"num_steps": (1, 4), "state_seeds": random_seeds(tokens()[:, 1:])}

    def kept() -> int:
        """Bytes that the backward pass finds again."""
        held: list[int] = []
        storages: set[int] = set()

        def hold(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in storages:
                storages.add(tensor.data_ptr())
                held.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            loss = loss_of(training, tokens(), **options)
        del loss
        return sum(held)

    expected, plain = gradients(training, tokens(), **options), kept()
    training.recompute_iterations = True
    assert not training.gradient_checkpointing
    runs = {name: [] for name in ("prelude", "core_block")}
    for name, calls in runs.items():
        training.transformer[name][0].register_forward_hook(lambda *_, calls=calls: calls.append(1))  # type: ignore[index]
    found = gradients(training, tokens(), **options)
    assert (len(runs["prelude"]), len(runs["core_block"])) == (1, 1 + 2 * 4)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert kept() < 0.5 * plain
    runs["core_block"].clear()
    gradients(training.eval(), tokens(), **options)
    assert len(runs["core_block"]) == 5


def test_labels_are_shifted_as_everywhere_in_transformers(model: RavenForCausalLM) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(tokens(), labels=tokens()).loss, loss_of(model, tokens()))


def test_figures_tell_collapse() -> None:
    same, other = torch.randn(1, 1, 64).expand(2, 9, 64), torch.randn(2, 9, 64)
    assert state_figures(same, other)["token_correlation"].item() == pytest.approx(1, abs=1e-4)
    figures = state_figures(other, other)
    assert abs(figures["token_correlation"].item()) < 0.1 and figures["step_residual"] == 0
    centred = F.normalize(other[0] - other[0].mean(-1, keepdim=True), dim=-1)
    pairs = (centred @ centred.T).fill_diagonal_(0).sum() / (9 * 8)
    torch.testing.assert_close(state_figures(other[:1], other[:1])["token_correlation"], pairs, rtol=1e-4, atol=1e-5)


def test_more_steps_predict_better_once_trained() -> None:
    """A token is the sum of the two before it: what one step cannot do, several can."""
    set_seed(0)
    model = RavenForCausalLM(small(vocab_size=32, mean_recurrence=4)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

    def batch(rows: int) -> Tensor:
        ids = torch.randint(0, 24, (rows, 2))
        for _ in range(14):
            ids = torch.cat([ids, (ids[:, -1:] + ids[:, -2:-1]) % 24], dim=1)
        return ids

    for step in range(150):
        optimizer.zero_grad()
        loss_of(model, batch(16), num_steps=(step % 4, 2)).backward()
        optimizer.step()
    model.eval()
    held_out = batch(256)
    with torch.no_grad():
        losses = {steps: loss_of(model, held_out, num_steps=steps).item() for steps in (1, 4)}
    assert losses[1] > 1.1 * losses[4], losses


# Masks, positions, caches.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_on_either_side_changes_nothing(model: RavenForCausalLM, attention: str) -> None:
    model = copy.deepcopy(model)
    model.set_attn_implementation(attention)
    ids, pad = tokens(), torch.zeros(2, 3, dtype=torch.long)
    ones, none = torch.ones_like(ids), torch.zeros_like(pad)
    with torch.no_grad():
        alone = model(ids).logits
        left = model(torch.cat([pad, ids], 1), attention_mask=torch.cat([none, ones], 1)).logits[:, 3:]
        right = model(torch.cat([ids, pad], 1), attention_mask=torch.cat([ones, none], 1)).logits[:, :-3]
        by_row = torch.cat([model(row).logits for row in ids.split(1)])
    for found in (left, right, by_row):
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_packed_documents_stay_apart(model: RavenForCausalLM) -> None:
    ids, positions = tokens(), torch.arange(12).expand(2, -1)
    with torch.no_grad():
        packed = model(ids.view(1, -1), position_ids=positions.reshape(1, -1)).logits
        torch.testing.assert_close(packed.view(2, 12, -1), model(ids).logits, rtol=1e-4, atol=1e-4)


def test_attention_is_told_positions_and_what_it_cannot_do_is_refused(model: RavenForCausalLM) -> None:
    model, told = copy.deepcopy(model), []

    def attend(module: Any, query: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, None]:
        told.append(options["position_ids"])  # by which flash attention tells documents apart
        return query.transpose(1, 2), None

    AttentionInterface.register("told", attend)
    model.set_attn_implementation("told")
    positions = torch.arange(6).repeat(2).expand(2, -1)
    with torch.no_grad():
        model(tokens(), position_ids=positions)
        assert len(told) == 1 + 2 * 4 + 1 and all(torch.equal(each, positions) for each in told)
        with pytest.raises(ValueError, match="skip"):
            model(tokens(), past_key_values=RavenCache(model.config, "skip"))
        with pytest.raises(ValueError, match="DynamicCache"):
            model(tokens(), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="eval"):
        model.train()(tokens(), exit_criterion="kl")


def test_cached_decoding_equals_one_pass(model: RavenForCausalLM) -> None:
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with torch.no_grad():
        for options in ({}, {"attention_mask": mask}):
            whole = model(ids, num_steps=5, **options).logits
            cache, parts = RavenCache(model.config), []
            for start, end in ((0, 4), (4, 5), (5, 9), (9, 12)):
                here = {"attention_mask": mask[:, :end]} if options else {}
                parts.append(model(ids[:, start:end], num_steps=5, past_key_values=cache, **here).logits)
            found = torch.cat(parts, 1)
            torch.testing.assert_close(found[:, 2:], whole[:, 2:], rtol=1e-4, atol=1e-4)
        assert cache.get_seq_length() == 12 and cache.batch_size == 2


def test_tokens_taken_out_of_a_cache_leave_no_trace(model: RavenForCausalLM) -> None:
    ids = tokens()
    with torch.no_grad():
        whole = model(ids, num_steps=5).logits
        cache = RavenCache(model.config)
        model(ids[:, :8], num_steps=5, past_key_values=cache)
        model(ids[:, 3:6], num_steps=9, past_key_values=cache)
        cache.clear_last_k_entries(3)
        cache.reorder_cache(torch.tensor([1, 0]))
        found = model(ids[[1, 0], 8:], num_steps=5, past_key_values=cache).logits
    torch.testing.assert_close(found[[1, 0]], whole[:, 8:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="13"):
        cache.clear_last_k_entries(13)
    sizes = []
    for change in (0, -2, 7, 9):  # nothing, two less, seven stay, as many as there are
        cache.crop(change)
        sizes.append(cache.seen)
    assert sizes == [12, 10, 7, 7] and cache.keys[0].shape[2] == 7


def test_missing_steps_are_looked_up_by_policy(model: RavenForCausalLM) -> None:
    """A prompt of 2 steps, then a token of 4, whose later steps find nothing of their own in the cache."""
    ids, slots = tokens(1), {}
    config = model.config
    with torch.no_grad():
        for lookup in ("latest-m2", "available-m2", "always-last-m2", "skip", "randomized", "full"):
            cache = RavenCache(config, lookup)
            model(ids[:, :6], num_steps=2, past_key_values=cache)
            seen = {}
            for index, each in enumerate(model.transformer["core_block"]):  # type: ignore[arg-type]
                each.attn.register_forward_pre_hook(lambda *_: None)
                seen[index] = cache.keys[1 + 2 + index].clone()  # of the second step
            if lookup == "full":
                with pytest.raises(ValueError, match="full"):
                    model(ids[:, 6:7], num_steps=4, past_key_values=cache)
                continue
            slots[lookup] = model(ids[:, 6:7], num_steps=4, past_key_values=cache).logits
            last = 1 + 2 * 3
            assert cache.own[last].tolist() == [[False] * 6 + [True]]
            for index in range(2):
                assert torch.equal(cache.keys[last + index][:, :, :6], seen[index])
    assert torch.equal(slots["latest-m2"], slots["available-m2"])
    assert torch.equal(slots["latest-m2"], slots["always-last-m2"]) is False  # its first step sees the second one
    assert not torch.equal(slots["latest-m2"], slots["skip"])


def test_always_last_shows_the_deepest_step(model: RavenForCausalLM) -> None:
    ids = tokens(1)
    with torch.no_grad():
        cache = RavenCache(model.config, "always-last")
        model(ids[:, :6], num_steps=5, past_key_values=cache)
        deepest = [cache.keys[1 + 2 * 4 + layer].clone() for layer in range(2)]
        model(ids[:, 6:7], num_steps=1, past_key_values=cache)
    for layer in range(2):
        assert torch.equal(cache.last[layer][0][:, :, :6], deepest[layer])


def test_skipping_sees_present_entries_only(model: RavenForCausalLM) -> None:
    ids = tokens(1)
    with torch.no_grad():
        cache = RavenCache(model.config, "skip")
        slot = cache.slot(1 + 2)  # second step, first layer
        cache.begin(3)
        key = torch.randn(1, 4, 3, 16)
        active = torch.tensor([[True, False, True]])
        cache.slot(1).update(key, key, None)
        cache.slot(1 + 2, active).update(key, key, None)
        cache.begin(1)
        cache.slot(1).update(key[:, :, :1], key[:, :, :1], None)
        mask = slot.update(key[:, :, :1], key[:, :, :1], None)[2]
        assert mask is not None and mask.flatten().tolist() == [True, False, True, True]
        plain = model(ids, num_steps=3).logits
        again = model(ids, num_steps=3, past_key_values=RavenCache(model.config, "skip")).logits
    torch.testing.assert_close(again, plain)


def test_shared_slots_are_numbered_as_their_names_say() -> None:
    config = RavenConfig()  # 2 blocks in the prelude, 4 in the core
    expected = {
        "compress-s16": lambda index: (index - 2) % 16 + 2,
        "latest-m4-compress-s4": lambda index: (index - 2) % 4 + 2,
        "compress-r8": lambda index: (index - 2) // 8 + 2,
        "latest-m4-compress-anchor": lambda index: index if index < 34 else 34 + (index - 34) % 4,
        "latest-m4": lambda index: index,
    }
    for lookup, rule in expected.items():
        cache = RavenCache(config, lookup)
        assert [cache.shared(index) for index in (-2, -1, 0, 1)] == [-2, -1, 0, 1]
        assert [cache.shared(index) for index in range(2, 130)] == [rule(index) for index in range(2, 130)]


def test_shared_slots_take_less_memory_and_agree_once_states_settle(model: RavenForCausalLM) -> None:
    ids, sizes, logits = tokens(), {}, {}
    with torch.no_grad():
        for lookup in ("latest", "latest-m2-compress-s4", "compress-s2", "compress-r4", "latest-m2-compress-anchor"):
            cache = RavenCache(model.config, lookup)
            parts = [model(part, num_steps=40, past_key_values=cache).logits for part in ids.split(3, dim=1)]
            sizes[lookup], logits[lookup] = cache.nbytes, torch.cat(parts, 1)
    rows_of_keys = 2 * 12 * 64 * 4 * 2  # rows, tokens, width, bytes, keys and values
    assert sizes["latest"] == (2 + 2 * 40) * rows_of_keys
    assert sizes["latest-m2-compress-s4"] == (2 + 4) * rows_of_keys and sizes["compress-s2"] == 4 * rows_of_keys
    assert sizes["compress-r4"] == (2 + 20) * rows_of_keys
    assert sizes["latest-m2-compress-anchor"] == (2 + 2 * 8 + 2) * rows_of_keys
    for lookup in ("latest-m2-compress-s4", "compress-s2", "latest-m2-compress-anchor"):
        likeliest = (logits[lookup].argmax(-1) == logits["latest"].argmax(-1)).float().mean()
        assert likeliest > 0.9, lookup


def test_unknown_lookups_are_refused(model: RavenForCausalLM) -> None:
    for lookup in ("newest", "latest-m4", "latest-compress-x3", "compress-s0"):
        with pytest.raises(ValueError, match=lookup):
            RavenCache(model.config, lookup)


# Exits.


@pytest.mark.parametrize("criterion", [name for name in THRESHOLDS if name != "none"])
def test_tokens_stop_one_by_one(model: RavenForCausalLM, criterion: str) -> None:
    ids, options = tokens(), {"num_steps": 64, "exit_criterion": criterion}
    with torch.no_grad():
        whole = model(ids, **options)
        steps = whole.stats["steps"]
        assert steps.min() >= 2 and steps.max() < 64 and len(steps.unique()) > 1
        later = model(ids, min_steps=20, **options).stats["steps"]
        assert later.min() >= 20
        rare = model(ids, check_every=5, **options).stats["steps"]
        assert bool((rare % 5 == 0).all())
        # Each row for itself, and token after token.
        for row in range(2):
            alone = model(ids[row : row + 1], **options)
            assert torch.equal(alone.stats["steps"], steps[row : row + 1])
        cache, parts, ran = RavenCache(model.config), [], []
        for part in ids.split(1, dim=1):
            output = model(part, past_key_values=cache, **options)
            parts.append(output.logits)
            ran.append(output.stats["steps"])
    # Predictions look back through the coda, where a prompt's tokens have not finished before the next ones begin.
    if not ExitRule(criterion, None, 1, 1).reads_logits:
        assert torch.equal(torch.cat(ran, 1), steps)
        torch.testing.assert_close(torch.cat(parts, 1), whole.logits, rtol=1e-4, atol=1e-4)


def test_a_token_that_stopped_predicts_from_the_state_it_had(model: RavenForCausalLM) -> None:
    ids = tokens(1, 6)
    with torch.no_grad():
        output = model(ids, num_steps=40, exit_criterion="latent-diff")
        first = int(output.stats["steps"][0, 0])
        alone = model(ids[:, :1], num_steps=first).logits
    torch.testing.assert_close(output.logits[:, :1], alone, rtol=1e-4, atol=1e-4)


def test_nothing_stops_below_a_threshold_of_zero(model: RavenForCausalLM) -> None:
    with torch.no_grad():
        output = model(tokens(), num_steps=9, exit_criterion="kl", exit_threshold=-1.0)
        torch.testing.assert_close(output.logits, model(tokens(), num_steps=9).logits, rtol=1e-5, atol=1e-5)
        assert bool((output.stats["steps"] == 9).all())
        prompt = model(tokens(), num_steps=9, exit_criterion="kl", exit_in_prefill=False)
    assert prompt.stats is None


def test_criteria_measure_what_they_are_called() -> None:
    first, second = torch.randn(1, 3, 50), torch.randn(1, 3, 50)
    p, q = second.softmax(-1), first.softmax(-1)
    entropies = [-(x * x.log()).sum(-1) for x in (p, q)]
    likely = p >= 0.1 * p.amax(-1, keepdim=True)
    kept = [(x * likely) / (x * likely).sum(-1, keepdim=True) for x in (p, q)]
    minp = torch.where(likely, kept[0] * (kept[0].clamp_min(1e-30) / kept[1].clamp_min(1e-30)).log(), 0).sum(-1)
    values = {
        "kl": (p * (p / q).log()).sum(-1),
        "minp-kl": minp,
        "entropy-diff": (entropies[0] - entropies[1]).abs(),
        "latent-diff": (second - first).norm(dim=-1) / second.norm(dim=-1),
        "cosine": 1 - F.cosine_similarity(first, second, dim=-1),
    }
    for name, value in values.items():
        for factor, stops in ((1.01, True), (0.99, False)):
            for token in range(3):
                rule = ExitRule(name, factor * value[0, token].item(), 1, 1)
                rule.settled(1, first[:, token : token + 1])
                assert bool(rule.settled(2, second[:, token : token + 1])) is stops, name
    rule = ExitRule("argmax-stability", 2.0, 1, 1)
    assert [bool(rule.settled(step, x[:, :1])) for step, x in enumerate((first, second, second, second), 1)] == [
        *(False, False, False),
        True,
    ]
    with pytest.raises(ValueError, match="'never'"):
        ExitRule("never", None, 1, 1)


# Generation.

GREEDY: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def test_generation_with_a_cache_equals_one_without(model: RavenForCausalLM) -> None:
    ids, mask = tokens(), torch.ones_like(tokens())
    ids[0, :3], mask[0, :3] = 0, 0
    for options in ({"num_steps": 7}, {"num_steps": 30, "exit_criterion": "cosine"}, {"state_seed": 5}):
        found = [
            model.generate(ids, attention_mask=mask, max_new_tokens=10, use_cache=use, **GREEDY, **options)
            for use in (True, False)
        ]
        assert torch.equal(*found), options
    alone = model.generate(ids[:1, 3:], max_new_tokens=10, state_seed=5, **GREEDY)
    assert torch.equal(found[0][:1, 3:], alone)


def test_depth_and_seed_decide_what_is_written(model: RavenForCausalLM) -> None:
    written = [
        model.generate(tokens(), max_new_tokens=12, num_steps=steps, state_seed=seed, **GREEDY)
        for steps, seed in ((1, 0), (1, 0), (1, 1), (20, 0))
    ]
    assert torch.equal(written[0], written[1])
    assert not torch.equal(written[0], written[2]) and not torch.equal(written[0], written[3])


def test_beams_and_samples_go_through_the_cache(model: RavenForCausalLM) -> None:
    options = {**GREEDY, "max_new_tokens": 6, "num_beams": 3}
    assert torch.equal(model.generate(tokens(), **options), model.generate(tokens(), use_cache=False, **options))
    set_seed(0)
    sampled = model.generate(tokens(), max_new_tokens=6, do_sample=True, num_return_sequences=2, pad_token_id=0)
    assert sampled.shape[0] == 4


def test_a_thought_goes_on_from_the_token_before(model: RavenForCausalLM) -> None:
    ids = tokens()
    with torch.no_grad():
        prompt = model(ids[:, :6], use_cache=True, num_steps=4, continuous_thought=True)
        found = model(ids[:, 6:7], past_key_values=prompt.past_key_values, num_steps=4, continuous_thought=True)
        again = model(ids[:, :6], use_cache=True, num_steps=4)
        given = prompt.latent_states[:, -1:]
        expected = model(ids[:, 6:7], past_key_values=again.past_key_values, num_steps=4, input_states=given)
        other = model(ids[:, :6], use_cache=True, num_steps=4)
        without = model(ids[:, 6:7], past_key_values=other.past_key_values, num_steps=4)
        with pytest.raises(ValueError, match="cache"):
            model(ids, continuous_thought=True)
    assert torch.equal(found.logits, expected.logits) and not torch.equal(found.logits, without.logits)
    assert model.generate(ids, max_new_tokens=4, continuous_thought=True, **GREEDY).shape == (2, 16)


def test_drafts_write_what_all_steps_write(model: RavenForCausalLM) -> None:
    ids, mask = tokens(3), torch.ones_like(tokens(3))
    ids[0, :4], mask[0, :4] = 0, 0
    options = {"attention_mask": mask, "max_new_tokens": 17, "num_steps": 12}
    plain = model.generate(ids, **GREEDY, **options)
    passes: list[int] = []
    hook = model.register_forward_hook(lambda module, inputs, output: passes.append(output.logits.shape[1]))
    for draft_steps, draft_tokens in ((1, 3), (4, 5), (11, 4)):
        drafted = model.generate(ids, draft_steps=draft_steps, draft_tokens=draft_tokens, **options)
        assert torch.equal(drafted, plain), draft_steps
    hook.remove()
    assert max(passes) == 6  # five drafted and the one before them, checked in one pass
    # Nearly all steps draft nearly always right: some checks kept all they were given.
    assert passes.count(5) < 17


@pytest.mark.parametrize("options", [{"num_steps": 12}, {"num_steps": 30, "exit_criterion": "latent-diff"}], ids=str)
def test_tokens_looked_up_in_the_prompt_write_what_greedy_decoding_does(
    model: RavenForCausalLM, options: dict[str, Any]
) -> None:
    ids, passes = tokens(1), []
    hook = model.register_forward_hook(lambda module, inputs, output: passes.append(output.logits.shape[1]))
    text = ids
    for _ in range(2):  # the second prompt holds what is to be written, so that much of it is found there
        plain = model.generate(text, max_new_tokens=17, **GREEDY, **options)
        passes.clear()
        found = model.generate(text, max_new_tokens=17, prompt_lookup_num_tokens=3, **GREEDY, **options)
        assert torch.equal(found, plain)
        text = torch.cat([plain, ids], 1)
    hook.remove()
    assert max(passes) > 1


@pytest.mark.parametrize("lookup", ["skip", "randomized", "full", "available-m2"])
def test_drafts_write_the_greedy_text_with_other_lookups(model: RavenForCausalLM, lookup: str) -> None:
    options = {"max_new_tokens": 12, "num_steps": 8, "cache_lookup": lookup, **GREEDY}
    plain = model.generate(tokens(), **options)
    assert torch.equal(model.generate(tokens(), draft_steps=3, draft_tokens=3, **options), plain)


@pytest.mark.parametrize("lookup", ["always-last", "latest-m2-compress-s4", "compress-r4", "compress-anchor"])
def test_lookups_that_checks_cannot_have_are_refused(model: RavenForCausalLM, lookup: str) -> None:
    cached = RavenCache(model.config, lookup)
    for drafts in ({"draft_steps": 2}, {"prompt_lookup_num_tokens": 3}):
        with pytest.raises(ValueError, match=f"cache_lookup '{lookup}'"):
            model.generate(tokens(1), max_new_tokens=4, num_steps=6, cache_lookup=lookup, **GREEDY, **drafts)
    with pytest.raises(ValueError, match=f"cache_lookup '{lookup}'"):
        model.generate(
            tokens(1), max_new_tokens=4, past_key_values=cached, prompt_lookup_num_tokens=3, num_steps=6, **GREEDY
        )


@pytest.mark.parametrize(
    "options",
    [
        {"continuous_thought": True},
        {"exit_criterion": "kl"},
        {"exit_criterion": "argmax-stability"},
        {"exit_criterion": "cosine", "exit_in_prefill": False},
    ],
    ids=str,
)
def test_what_tokens_do_one_by_one_only_is_refused_with_lookup_in_the_prompt(
    model: RavenForCausalLM, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        model.generate(tokens(1), max_new_tokens=4, prompt_lookup_num_tokens=3, **GREEDY, **options)


def test_drafts_heed_the_generation_config(model: RavenForCausalLM) -> None:
    model, options = copy.deepcopy(model), {"num_steps": 6, "draft_steps": 2}
    plain = model.generate(tokens(), max_new_tokens=20, num_steps=6, **GREEDY)
    end = int(plain[0, 15])
    assert torch.equal(model.generate(inputs=tokens(), eos_token_id=None, pad_token_id=0, **options), plain)
    given = GenerationConfig(max_length=24, eos_token_id=end, pad_token_id=7)
    expected = model.generate(tokens(), generation_config=given, num_steps=6)
    assert (expected[0, 16:] == 7).all()
    for arguments in ({"generation_config": given}, {"max_length": 24, "eos_token_id": end, "pad_token_id": 7}):
        assert torch.equal(model.generate(tokens(), **arguments, **options), expected)
    given.repetition_penalty = 1.0
    assert torch.equal(model.generate(tokens(), given, **options), expected)
    model.generation_config = given
    assert torch.equal(model.generate(input_ids=tokens(), **options), expected)
    given.repetition_penalty = 1.5
    with pytest.raises(ValueError, match=r"repetition_penalty = 1\.5: not together with draft_steps"):
        model.generate(tokens(), **options)


def test_drafts_end_where_rows_end(model: RavenForCausalLM) -> None:
    options = {"max_new_tokens": 24, "num_steps": 6, "pad_token_id": 0}
    plain = model.generate(tokens(), do_sample=False, eos_token_id=None, **options)
    end = int(plain[0, 15])
    expected = model.generate(tokens(), do_sample=False, eos_token_id=end, **options)
    assert torch.equal(model.generate(tokens(), draft_steps=2, eos_token_id=end, **options), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"draft_steps": 6},
            {"num_steps": 0},
            {"draft_tokens": 0},
            {"accept": 0.0},
            {"do_sample": True},
            {"use_cache": False},
        ),
        *({"num_beams": 2}, {"min_new_tokens": 1}, {"streamer": print}, {"exit_criterion": "kl"}),
    ],
)
def test_drafts_that_make_no_sense_are_refused(model: RavenForCausalLM, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        model.generate(tokens(), **{"draft_steps": 2, "max_new_tokens": 4, "num_steps": 6, **wrong})


def test_an_exported_folder_needs_no_flame(model: RavenForCausalLM, process_group: Any, tmp_path: Path) -> None:
    folder = export(model, tmp_path)
    ids, mask = tokens(), torch.ones_like(tokens())
    ids[0, :3], mask[0, :3] = 0, 0
    options = {"max_new_tokens": 8, "num_steps": 20, "exit_criterion": "kl", **GREEDY}
    logits, written = without_flame(folder, ids, mask, **options)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids, attention_mask=mask).logits)
    assert torch.equal(written, model.generate(ids, attention_mask=mask, **options))
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
