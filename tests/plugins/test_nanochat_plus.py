"""nanochat's architecture of 2026: its equations, its windows and smear in a cache, its start."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedModel

from flame.models.build import count_parameters, model_class, plain_model
from flame.models.documents import documents_are_isolated
from flame.models.head import head_is_last
from flame.models.trial import stir, trial_model
from flame.plugin import load_plugin
from tests.plugins.exported import export, without_flame

PLUGIN = load_plugin("nanochat_plus")
NanoChatPlusConfig = importlib.import_module("custom_models.nanochat_plus").NanoChatPlusConfig


def tiny(**changes: Any) -> Any:
    sizes = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    window = {"max_position_embeddings": 64, "window_pattern": "SL", "sliding_window": 5}
    return NanoChatPlusConfig(**{**sizes, **window, "num_key_value_heads": 2, **changes})


def fresh(config: Any) -> PreTrainedModel:
    return plain_model(model_class(PLUGIN, config, "causal_lm"), config, seed=0).eval()


def model(**changes: Any) -> Any:
    """A small model in which everything shows: nothing is zero, gates are open."""
    tried: Any = stir(fresh(tiny(**changes)))
    with torch.no_grad():
        for name, weight in tried.named_parameters():
            if "gate" in name or "smear_lambda" in name:
                weight.normal_(generator=torch.Generator().manual_seed(2))
        tried.lm_head.weight.mul_(20)
    return tried


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(1))


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])  # of no gain, with the machine's epsilon


def rotated(x: Tensor, base: float = 100_000.0) -> Tensor:
    """[B, T, H, D]: pairs (x[i], x[i + D / 2]) turned by MINUS position x frequency."""
    length, half = x.shape[1], x.shape[-1] // 2
    angles = torch.outer(torch.arange(length).double(), base ** -(torch.arange(half) / half).double())
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    first, second = x.split(half, -1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], -1)


def attention(own: dict[str, Tensor], h: Tensor, text: Tensor, back: int, config: Any) -> Tensor:
    """One layer's attention over normalised states; a token sees itself and ``back`` tokens before it."""
    heads, groups, length = config.num_attention_heads, config.num_key_value_heads, text.shape[1]
    q, k, v = (h @ own[f"self_attn.{name}_proj.weight"].mT for name in "qkv")
    q, k, v = (x.unflatten(-1, (count, -1)) for x, count in ((q, heads), (k, groups), (v, groups)))
    if "self_attn.value_gate.weight" in own:
        gate = 3 * torch.sigmoid(h[..., :12] @ own["self_attn.value_gate.weight"].mT)
        v = v + gate[..., None] * own["self_attn.value_embed.weight"][text].unflatten(-1, (groups, -1))
    q, k = 1.2 * norm(rotated(q)), 1.2 * norm(rotated(k))
    k, v = (x.repeat_interleave(heads // groups, 2) for x in (k, v))
    distance = torch.arange(length)[:, None] - torch.arange(length)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill((distance < 0) | (distance > back), -math.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2) @ own["self_attn.o_proj.weight"].mT


def reference(weights: dict[str, Tensor], config: Any, text: Tensor) -> Tensor:
    """Logits [B, T, V] from the equations."""
    layers = config.num_hidden_layers
    x = norm(weights["model.embed_tokens.weight"][text])
    gate = weights["model.smear_lambda"] * torch.sigmoid(x[:, 1:, :24] @ weights["model.smear_gate.weight"].mT)
    x = x0 = torch.cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]], 1)
    middle = x
    for layer in range(layers):
        own = {name.split(f"layers.{layer}.")[1]: w for name, w in weights.items() if f"layers.{layer}." in name}
        assert ("self_attn.value_gate.weight" in own) == (layer % 2 == (layers - 1) % 2)
        letter = config.window_pattern[layer % len(config.window_pattern)] if layer < layers - 1 else "L"
        x = weights["model.residual_lambdas"][layer] * x + weights["model.embedding_lambdas"][layer] * x0
        back = config.sliding_window - 1 if letter == "S" else text.shape[1]
        x = x + attention(own, norm(x), text, back, config)
        x = x + F.relu(norm(x) @ own["mlp.fc1.weight"].mT).square() @ own["mlp.fc2.weight"].mT
        middle = x if layer == layers // 2 else middle
    x = norm(x - weights["model.backout_lambda"] * middle)
    return 15 * torch.tanh((x @ weights["lm_head.weight"].mT)[..., : config.vocab_size] / 15)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 3, "window_pattern": "SSSL"},
        {"num_hidden_layers": 5, "window_pattern": "L", "num_key_value_heads": 4},
        {"vocab_size": 250, "window_pattern": "SSL"},
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_are_those_of_the_equations(changes) -> None:
    tried, text = model(**changes), ids(2, 24)
    expected = reference(dict(tried.state_dict()), tried.config, text)
    assert expected.abs().max() > 3  # into the bend of the cap
    torch.testing.assert_close(tried(input_ids=text).logits, expected, rtol=0, atol=3e-5)


def test_a_window_is_a_quarter_of_the_context_in_128s() -> None:
    for length, back in ((2048, 512), (512, 128), (2056, 640), (4096, 1024)):
        assert NanoChatPlusConfig(max_position_embeddings=length).sliding_window == back + 1
    config = NanoChatPlusConfig(num_hidden_layers=6)
    assert "".join(kind[0] for kind in config.layer_types) == "sssfsf"


@pytest.mark.parametrize("cache", ["of the config", "of plain layers"])
@torch.no_grad()
def test_decoding_with_a_cache_equals_one_pass(cache) -> None:
    tried, text = model(), ids(2, 30)
    whole = tried(input_ids=text, use_cache=False).logits
    held: Any = DynamicCache(config=tried.config) if cache == "of the config" else DynamicCache()
    start, parts = 0, []
    for stop in (9, 10, 11, 15, 16, 30):  # a prompt, single tokens, and several at once, windows of 5 full and not
        parts.append(tried(input_ids=text[:, start:stop], past_key_values=held, use_cache=True).logits)
        start = stop
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    if cache == "of the config":
        lengths = [layer.keys.shape[-2] for layer in held.layers]
        assert lengths == [4, 30, 4, 30, 30]  # what windows of 5 need, all of others, and embeddings for the smear


@torch.no_grad()
def test_prompts_of_different_length_generate_what_they_do_alone() -> None:
    tried = model()
    prompts = [ids(1, 12)[:, 5:], ids(1, 12)]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    alone = [tried.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, -8:] for prompt in prompts]
    padded = torch.cat([F.pad(prompts[0], (5, 0)), prompts[1]])
    together = tried.generate(padded, attention_mask=(padded > 0).long(), **options)[:, -8:]
    assert torch.equal(together, torch.cat(alone))


@torch.no_grad()
def test_beams_take_their_cache_with_them() -> None:
    """The kept embedding is reordered with the keys."""
    tried, prompt = model(), ids(2, 9)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "num_beams": 4}
    mask = torch.ones_like(prompt)
    cached = tried.generate(prompt, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(cached, tried.generate(prompt, attention_mask=mask, use_cache=False, **options))


@pytest.mark.parametrize("pattern", ["SL", "L"])
@torch.no_grad()
def test_guesses_that_fail_leave_no_trace(pattern) -> None:
    """Drafts that are not confirmed are cropped off the cache, the smear's part of it too."""
    tried, prompt = model(window_pattern=pattern), ids(1, 10).repeat(1, 2)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    guessed = tried.generate(prompt, attention_mask=mask, prompt_lookup_num_tokens=3, **options)
    assert torch.equal(guessed, tried.generate(prompt, attention_mask=mask, **options))


def test_packed_documents_do_not_see_each_other() -> None:
    assert documents_are_isolated(model(), "position_ids")


@torch.no_grad()
def test_the_smear_stops_at_a_document() -> None:
    """Attention apart: of a layerless model the smear alone is left."""
    tried, text = model(), ids(1, 6)
    seen = []
    tried.model.layers[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    tried(input_ids=text, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
    tried(input_ids=text[:, 3:])
    tried(input_ids=text)
    packed, alone, joined = seen
    torch.testing.assert_close(packed[:, 3:], alone)
    torch.testing.assert_close(packed[:, :3], joined[:, :3])
    assert (joined[:, 3] - alone[:, 0]).abs().max() > 1e-2


@torch.no_grad()
def test_weights_start_as_nanochat_s_do() -> None:
    tried: Any = fresh(tiny(vocab_size=2048, hidden_size=256, num_hidden_layers=6))
    bound = math.sqrt(3 / 256)
    for layer in tried.model.layers:
        own = layer.self_attn
        tables = [own.q_proj, own.k_proj, own.v_proj, *([own.value_embed] if own.has_value_embedding else [])]
        for weight, edge in [*((table.weight, bound) for table in tables), (layer.mlp.fc1.weight, 0.4 * bound)]:
            assert 0.98 * edge < weight.abs().max() <= edge
            assert weight.std() == pytest.approx(edge / math.sqrt(3), rel=0.02)
        assert not own.o_proj.weight.any()
        assert not layer.mlp.fc2.weight.any()
        if own.has_value_embedding:
            assert 0 <= own.value_gate.weight.min() < own.value_gate.weight.max() <= 0.02
    assert tried.model.embed_tokens.weight.std() == pytest.approx(0.8, rel=0.01)
    assert tried.lm_head.weight.std() == pytest.approx(0.001, rel=0.01)
    assert 0 <= tried.model.smear_gate.weight.min() < tried.model.smear_gate.weight.max() <= 0.02
    torch.testing.assert_close(tried.model.residual_lambdas, torch.tensor([1.15, 1.13, 1.11, 1.09, 1.07, 1.05]))
    torch.testing.assert_close(tried.model.embedding_lambdas, torch.tensor([0.20, 0.17, 0.14, 0.11, 0.08, 0.05]))
    assert tried.model.smear_lambda.item() == 0
    assert tried.model.backout_lambda.item() == pytest.approx(0.2)


@torch.no_grad()
def test_a_vocabulary_is_padded_to_64s_and_its_logits_are_not() -> None:
    tried, text = model(vocab_size=250), ids(1, 8)
    assert len(tried.lm_head.weight) == len(tried.model.embed_tokens.weight) == 256
    assert tried(input_ids=text).logits.shape == (1, 8, 250)
    before = tried(input_ids=text).logits
    tried.lm_head.weight[250:] = 100
    assert torch.equal(tried(input_ids=text).logits, before)


@pytest.mark.parametrize("vocabulary, taken", [(50257, False), (50304, True)])
def test_rows_without_a_token_keep_the_loss_out_of_the_head(vocabulary, taken) -> None:
    """Decided on a scaled-down model, whose vocabulary is another: the padding must stay."""
    config = NanoChatPlusConfig(vocab_size=vocabulary)
    small = trial_model(model_class(PLUGIN, config, "causal_lm"), config)
    assert small is not None
    assert head_is_last(small) == taken


@pytest.mark.parametrize(
    "depth, heads, millions",
    [(6, 3, 73.5), (12, 6, 286.3), (20, 10, 896.5), (24, 12, 1384.1), (26, 13, 1681.8)],
)
def test_depth_gives_the_published_number_of_parameters(depth, heads, millions) -> None:
    config = NanoChatPlusConfig(hidden_size=128 * heads, num_hidden_layers=depth, num_attention_heads=heads)
    assert round(count_parameters(model_class(PLUGIN, config, "causal_lm"), config) / 1e6, 1) == millions


@pytest.mark.parametrize("length, window", [(32, 64), (32, 9)])
def test_flops_are_those_of_the_pairs_that_see_each_other(length, window) -> None:
    config = tiny(sliding_window=window)
    tried = fresh(config)
    tried.set_attn_implementation("eager")  # which multiplies all pairs
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tried(input_ids=ids(1, length), use_cache=False)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = [int(((distance >= 0) & (distance < back)).sum()) for back in (window, length, window, length)]
    unseen = sum(length**2 - pairs for pairs in seen)
    # The counter takes the rotation's outer product for a product of matrices too.
    expected = counter.get_total_flops() - 4 * config.hidden_size * unseen
    assert PLUGIN.forward_flops is not None
    assert PLUGIN.forward_flops(config, length) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "values, named",
    [
        ({"hidden_size": 66}, "hidden_size 66"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"window_pattern": "SX"}, "window_pattern 'SX'"),
        ({"window_pattern": ""}, "window_pattern ''"),
        ({"layer_types": ["full_attention"]}, "1 layer_types for num_hidden_layers 2"),
        ({"smear_channels": 65}, "smear_channels"),
        ({"tie_word_embeddings": True}, "cannot be tied"),
    ],
)
def test_what_the_model_cannot_be_is_refused(values, named) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(ValueError, match=named):
        NanoChatPlusConfig(**{**sizes, **values})


def test_calls_that_cannot_be_right_are_refused() -> None:
    tried = model()
    with pytest.raises(ValueError, match="looked up by input_ids"):
        tried(inputs_embeds=torch.zeros(1, 3, 64))
    with pytest.raises(ValueError, match="must be \\[batch, tokens\\]"):
        tried(input_ids=ids(1, 3), attention_mask=torch.ones(1, 1, 3, 3))
    with pytest.raises(ValueError, match="a cache that grows"):
        tried.generate(ids(1, 5), max_new_tokens=2, cache_implementation="static", pad_token_id=0)
    with pytest.raises(ValueError, match="another vocab_size"):
        tried.resize_token_embeddings(300)


def test_layouts_that_would_part_the_residual_streams_are_refused() -> None:
    assert set(PLUGIN.refuses) == {"pipeline", "context"}


def test_an_exported_folder_decodes_equally_without_flame(process_group, tmp_path: Path) -> None:
    tried = model(vocab_size=250)
    prompt, mask = ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    logits, tokens = without_flame(export(tried, tmp_path), prompt, mask, **options)
    assert torch.equal(logits, tried(input_ids=prompt, attention_mask=mask).logits)
    assert torch.equal(tokens, tried.generate(prompt, attention_mask=mask, **options))
