"""LLaDA as a family: attention in both directions, the hub's configs and weights, generation and likelihood."""

import copy
import importlib
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from flame.checkpoint.hf_import import import_hf
from flame.checkpoint.loading import load_hf
from flame.convert import inverted, renamer
from flame.models.build import count_parameters, model_class, plain_model
from flame.models.trial import stir
from flame.plugin import load_plugin
from tests.parallel.decoding import denoising_error
from tests.plugins.exported import export, without_flame
from tests.runs import load_states

PLUGIN = load_plugin("llada")
modeling = importlib.import_module("custom_models.llada.modeling_llada")
sampling = importlib.import_module("custom_models.llada.modeling_llada_sampling")
likelihood = importlib.import_module("custom_models.llada.modeling_llada_likelihood")
MASK, EOS, PAD = 39, 2, 0
HUB_8B = {
    "activation_type": "silu",
    "alibi": False,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "layer_norm_type": "rms",
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}


def tiny(attention: str = "sdpa", **changes: Any) -> Any:
    """A stirred model of 40 tokens, the last of which is the mask."""
    assert PLUGIN.tiny is not None
    values = {**PLUGIN.tiny().to_dict(), "vocab_size": 40, "mask_token_id": MASK, **changes}
    values.pop("model_type")
    config = AutoConfig.for_model("llada", **values)
    config._attn_implementation = attention
    return stir(plain_model(model_class(PLUGIN, config, "causal_lm"), config, seed=0)).eval()


def sure(factor: float = 30.0) -> Any:
    """A model whose predictions are sharp."""
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight *= factor
    return model


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left, and their attention mask."""
    longest = max(map(len, prompts))
    ids = torch.stack([torch.cat([torch.full((longest - len(p),), PAD), p]) for p in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts]).long()
    return ids, mask


# Attention


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_every_token_sees_every_other(attention: str, training: bool) -> None:
    model = tiny(attention).train(training)
    ids = tokens(1, 9)
    plain = model(ids).logits
    for changed in range(9):
        other = ids.clone()
        other[0, changed] = 3 if other[0, changed] != 3 else 4
        assert ((model(other).logits - plain).abs().amax(-1) > 1e-5).all(), changed


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_alone_sees_both_sides(attention: str) -> None:
    model = tiny(attention)
    hidden = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    rotation = model.model.rotary_emb(hidden, torch.arange(6)[None])
    for layer in model.model.layers:
        plain = layer(hidden, position_embeddings=rotation)
        other = layer(torch.cat([hidden[:, :-1], -hidden[:, -1:]], 1), position_embeddings=rotation)
        assert (plain - other)[:, 0].abs().max() > 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
@torch.no_grad()
def test_padding_and_other_documents_are_not_seen(attention: str) -> None:
    model = tiny(attention)
    first, second = tokens(1, 7), tokens(1, 9, seed=1)
    alone, other = model(first).logits, model(second).logits
    ids, mask = padded([first[0], second[0]])
    shifted = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(shifted[0, 2:], alone[0])
    torch.testing.assert_close(shifted[1], other[0])
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    packed = model(torch.cat([first, second], 1), position_ids=positions).logits
    torch.testing.assert_close(packed[:, :7], alone)
    torch.testing.assert_close(packed[:, 7:], other)


def test_the_token_that_pads_learns() -> None:
    """LLaDA pads with the end of text, whose row an embedding with a padding index would leave at zero."""
    model = tiny(pad_token_id=EOS)
    assert model.get_input_embeddings().weight[EOS].abs().sum() > 0
    model(torch.tensor([[5, EOS, 6]])).logits.square().sum().backward()
    assert model.get_input_embeddings().weight.grad[EOS].abs().sum() > 0


# Configs and weights of the hub


def test_the_hubs_config_is_the_default_one() -> None:
    config = AutoConfig.for_model("llada", **HUB_8B, bos_token_id=126080)
    assert config.to_dict() == AutoConfig.for_model("llada").to_dict()
    assert count_parameters(model_class(PLUGIN, config, "causal_lm"), config) == 8_015_581_184
    assert config.d_model == config.hidden_size == 4096


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"alibi": True}, "alibi = True"),
        ({"block_type": "sequential"}, "block_type = 'sequential'"),
        ({"include_qkv_bias": True}, "include_qkv_bias"),
        ({"residual_dropout": 0.1}, "residual_dropout = 0.1"),
        ({"is_causal": True}, "is_causal = True"),
    ],
)
def test_what_the_architecture_does_not_have_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoConfig.for_model("llada", **{**HUB_8B, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": 30}, "hidden_size = 30 is no multiple of num_attention_heads = 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 is no multiple of num_key_value_heads = 3"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 must be a whole number from 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0 must"),
        ({"num_hidden_layers": -2}, "num_hidden_layers = -2 must"),
        ({"d_model": 0}, "hidden_size = 0 must"),
        ({"vocab_size": 0}, "vocab_size = 0 must"),
        ({"intermediate_size": 0}, "intermediate_size = 0 must"),
        ({"max_position_embeddings": 0}, "max_position_embeddings = 0 must"),
        ({"head_dim": 7}, "head_dim = 7 must be even"),
        ({"mask_token_id": "x"}, "mask_token_id = 'x' must be a whole number"),
    ],
)
def test_sizes_that_make_no_model_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_folder(tmp_path: Path) -> tuple[Any, Path]:
    """A model, and its weights in a folder under the hub's names, with a config in the hub's words."""
    model = tiny()
    names = renamer(inverted(model.checkpoint_names))
    folder = tmp_path / "hub"
    model.config.save_pretrained(folder)
    weights = {names(name): tensor.clone() for name, tensor in model.state_dict().items()}
    assert all(name.startswith("model.transformer.") for name in weights)
    assert "model.transformer.blocks.1.ff_out.weight" in weights and "model.transformer.ff_out.weight" in weights
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return model, folder


def test_weights_of_the_hub_load_and_are_saved_under_our_names(hub_folder, tmp_path: Path) -> None:
    model, folder = hub_folder
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    again, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again(tokens(1, 5)).logits, model(tokens(1, 5)).logits)
    again.save_pretrained(tmp_path / "plain")
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not plain[1]["missing_keys"]
    assert load_names(tmp_path / "plain") == set(model.state_dict())


def load_names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_weights_of_the_hub_start_a_run(hub_folder, tmp_path: Path, process_group) -> None:
    model, folder = hub_folder
    step = import_hf(folder, tmp_path / "step-0", progress=False)
    states = load_states(step)
    assert states.keys() == model.state_dict().keys()
    assert all(torch.equal(states[name], tensor) for name, tensor in model.state_dict().items())
    fresh = plain_model(model_class(PLUGIN, model.config, "causal_lm"), model.config, seed=5)
    load_hf(fresh.state_dict(), [fresh], folder, {})
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


# Generation


@torch.no_grad()
def naive(model: Any, prompt: Tensor, length: int, steps: int, block: int, cfg: float = 0.0) -> Tensor:
    """The sampler of LLaDA for one prompt [P], at temperature 0 by confidence, as plainly as can be."""
    ids = torch.cat([prompt, torch.full((length,), MASK)])
    hidden = torch.cat([torch.zeros(len(prompt)), torch.ones(length)]).bool()
    per_block = steps // (length // block)
    for start in range(len(prompt), len(ids), block):
        for step in range(per_block):
            logits = model(ids[None]).logits[0]
            if cfg:
                empty = ids.clone()
                empty[: len(prompt)] = MASK
                without = model(empty[None]).logits[0]
                logits = without + (cfg + 1) * (logits - without)
            logits[:, MASK] = -math.inf
            chances, found = logits.softmax(-1).max(-1)
            candidates = [index for index in range(start, start + block) if hidden[index]]
            candidates.sort(key=lambda index: -chances[index])
            count = block // per_block + (step < block % per_block)
            for index in candidates[:count]:
                ids[index], hidden[index] = found[index], False
    return ids


@pytest.mark.parametrize("steps, block", [(12, 12), (12, 4), (6, 6), (8, 6), (2, 6)])
def test_blocks_are_filled_in_by_confidence(steps: int, block: int) -> None:
    model, prompt = tiny(), tokens(1, 5)
    found = model.generate(prompt, max_new_tokens=12, steps=steps, block_length=block, stop_at_eos=False)
    assert torch.equal(found[0], naive(model, prompt[0], 12, steps, block))


def test_guidance_leads_away_from_what_the_model_says_without_the_prompt() -> None:
    model, prompt = tiny(), tokens(1, 5)
    options = {"max_new_tokens": 8, "block_length": 4, "stop_at_eos": False}
    guided = model.generate(prompt, cfg_scale=1.5, **options)
    assert torch.equal(guided[0], naive(model, prompt[0], 8, 8, 4, cfg=1.5))
    assert not torch.equal(guided, model.generate(prompt, **options))


@pytest.mark.parametrize("cache", [None, "prefix", "dual"])
@pytest.mark.parametrize("rule", [{"remasking": "low_confidence"}, {"remasking": "random"}, {"threshold": 0.5}])
def test_prompts_stay_and_no_mask_is_left(cache: Any, rule: dict[str, Any]) -> None:
    prompt = tokens(2, 6)
    prompt[0, 2] = MASK
    options: dict[str, Any] = {"max_new_tokens": 8, "block_length": 4, "temperature": 1.0, "cache": cache}
    found = tiny().generate(prompt, **options, **rule)
    assert torch.equal(found[:, :6], prompt)
    assert found.shape == (2, 14) and not (found[:, 6:] == MASK).any()


@pytest.mark.parametrize("cfg", [0.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"cache": "prefix"}, {"cache": "dual"}])
def test_a_prompt_is_continued_alike_in_a_batch_with_longer_ones(options: dict[str, Any], cfg: float) -> None:
    model, prompts = sure(), [tokens(1, length, seed=length)[0] for length in (3, 7, 5)]
    ids, mask = padded(prompts)
    options = {"max_new_tokens": 8, "block_length": 4, "cfg_scale": cfg, **options}
    together = model.generate(ids, mask, **options)
    assert torch.equal(together[:, :7], ids)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row, 7:], model.generate(prompt[None], **options)[0, len(prompt) :])


def test_random_remasking_keeps_as_many_tokens_wherever_they_are() -> None:
    model, prompt = tiny(), tokens(1, 4)
    held: list[Tensor] = []
    model.register_forward_pre_hook(
        lambda _, __, given: held.append(given["input_ids"][0, 4:] == MASK), with_kwargs=True
    )
    first = []
    for seed in range(60):
        held.clear()
        model.generate(
            prompt, max_new_tokens=6, steps=4, remasking="random", stop_at_eos=False,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        assert [int(masks.sum()) for masks in held] == [6, 4, 2, 1]
        first.append(~held[1])
    chosen = torch.stack(first).float().mean(0)
    assert (chosen - 1 / 3).abs().max() < 0.25


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("cfg", [0.0, 0.7])
def test_a_cache_renewed_each_step_changes_nothing(cache: str, cfg: float) -> None:
    model, (ids, mask) = tiny(), padded([tokens(1, 4)[0], tokens(1, 6)[0]])
    options = {"max_new_tokens": 12, "block_length": 6, "steps": 8, "cfg_scale": cfg}
    assert torch.equal(
        model.generate(ids, mask, cache=cache, refresh=1, **options), model.generate(ids, mask, **options)
    )


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@torch.no_grad()
def test_a_cached_pass_over_unchanged_tokens_computes_the_same(cache: str) -> None:
    model, (ids, mask) = tiny(), padded([tokens(1, 4)[0], tokens(1, 6)[0]])
    plan = sampling.make_plan(
        model.config, 12, None, 4, None, temperature=0.0, cfg_scale=0.5, remasking="random", cache=cache, refresh=0,
        suppress_eos=False, stop_at_eos=False, end_ids=[EOS], pad_id=PAD,
    )  # fmt: skip
    canvas, whole = sampling._canvas(ids, mask, 12, MASK)
    passes = sampling._Passes(model, plan, canvas, whole, 6)
    block = slice(10, 14)
    torch.testing.assert_close(passes.logits(block, fresh=True), passes.logits(block, fresh=False))


def test_a_folder_that_fills_masks_in_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check that runs of all layouts end with."""
    model = tiny()
    assert denoising_error(model) == ""
    draw, logits = sampling._draw, sampling._Passes.logits
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "_draw", lambda *given: (draw(*given)[0], -draw(*given)[1]))  # the least likely stay
        assert "plain passes" in denoising_error(model)
    with monkeypatch.context() as patch:
        patch.setattr(sampling._Passes, "logits", lambda self, block, fresh: logits(self, block, fresh).roll(1, 1))
        assert "plain passes" in denoising_error(model)
    with monkeypatch.context() as patch:
        patch.setattr(
            sampling._Passes, "logits", lambda self, block, fresh: logits(self, block, fresh and self.cache is None)
        )
        assert "a cache that is renewed" in denoising_error(model)


@pytest.mark.parametrize("length, passes", [(96, 3), (97, 4), (37, 2), (5, 1)])
def test_a_length_of_any_kind_is_written_in_blocks_of_32(length: int, passes: int) -> None:
    model, seen = tiny(), []
    model.model.register_forward_hook(lambda *_: seen.append(0))
    found = model.generate(tokens(1, 4), max_new_tokens=length, threshold=1e-9, stop_at_eos=False)
    assert found.shape == (1, 4 + length) and not (found == MASK).any() and len(seen) == passes
    found = model.generate(tokens(1, 4), max_new_tokens=length, steps=2 * passes, stop_at_eos=False)
    assert found.shape == (1, 4 + length) and not (found == MASK).any()


@pytest.mark.parametrize("cache, positions", [(None, 4 * 20), ("prefix", 20 + 10 + 20 + 5), ("dual", 20 + 5 + 20 + 5)])
def test_a_cache_saves_work(cache: Any, positions: int) -> None:
    """Two blocks of five after ten tokens, in two steps each."""
    model, seen = tiny(), []
    model.model.register_forward_hook(lambda _, __, outputs: seen.append(outputs.last_hidden_state.shape[1]))
    model.generate(tokens(1, 10), max_new_tokens=10, block_length=5, steps=4, cache=cache, stop_at_eos=False)
    assert sum(seen) == positions


def test_a_sure_model_fills_in_several_tokens_a_step() -> None:
    model, calls = sure(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    options = {"max_new_tokens": 16, "block_length": 8, "stop_at_eos": False}
    model.generate(tokens(1, 5), threshold=0.5, **options)
    quick = len(calls)
    assert 2 <= quick < 16
    calls.clear()
    # No probability exceeds 1, so one token a step is left, the likeliest: what 16 steps give.
    slow = model.generate(tokens(1, 5), threshold=1.0, **options)
    assert len(calls) == 16
    assert torch.equal(slow, model.generate(tokens(1, 5), **options))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax_at_the_temperature(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 5.0])
    plan = sampling.make_plan(
        tiny().config, 1, None, 1, None, temperature=temperature, cfg_scale=0.0, remasking="random", cache=None,
        refresh=0, suppress_eos=False, stop_at_eos=False, end_ids=[EOS], pad_id=PAD,
    )  # fmt: skip
    plan.mask_id = 4  # the likeliest token is forbidden
    draws = 20_000
    drawn, _ = sampling._draw(logits.expand(1, draws, 5).clone(), plan, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.flatten(), minlength=5) / draws
    expected = (logits[:4] / temperature).softmax(0)
    assert shares[4] == 0
    assert (shares[:4] - expected).abs().max() < 4 * 0.5 / math.sqrt(draws)


def test_a_generator_decides_the_draws() -> None:
    model, prompt = tiny(), tokens(2, 4)

    def drawn(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(prompt, max_new_tokens=8, temperature=1.0, remasking="random", generator=generator)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_text_ends_at_the_end_of_text() -> None:
    model = tiny()
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + 1.5 * (torch.arange(40) == EOS))
    options = {"max_new_tokens": 16, "block_length": 4, "temperature": 1.0}
    drawn = {"generator": torch.Generator().manual_seed(3)}
    found = model.generate(tokens(4, 4), **options, **drawn)[:, 4:]
    ends = [row.tolist().index(EOS) for row in found if EOS in row]
    assert ends and min(ends) < 12
    for row in found:
        after = row[row.tolist().index(EOS) + 1 :] if EOS in row else row[:0]
        assert (after == PAD).all()
    assert EOS not in model.generate(tokens(4, 4), suppress_eos=True, **options)[:, 4:]


def test_blocks_are_streamed_when_they_are_complete() -> None:
    class Heard(list):
        put, ended = list.append, False

        def end(self) -> None:
            self.ended = True

    heard = Heard()
    found = tiny().generate(tokens(1, 3), max_new_tokens=8, block_length=4, streamer=heard, stop_at_eos=False)
    assert heard.ended and [part.shape[1] for part in heard] == [3, 4, 4]
    assert torch.equal(torch.cat(list(heard), 1), found)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 10, "block_length": 4}, "block_length = 4 does not divide max_new_tokens = 10"),
        ({"max_new_tokens": 8, "block_length": 4, "steps": 5}, "steps = 5 .* choose a multiple of 2 up to 8"),
        ({"max_new_tokens": 8, "steps": 16}, "steps = 16"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"remasking": "high"}, "remasking = 'high'; choose one of low_confidence, random"),
        ({"cache": "static"}, "cache = 'static'"),
        ({"threshold": 0.9, "steps": 4}, "give one"),
        ({"threshold": 0.9, "remasking": "random"}, "give one"),
        ({"threshold": 1.5}, "threshold = 1.5"),
        ({"refresh": 2}, "refresh = 2 needs a cache"),
        ({"temperature": -1.0}, "cannot be negative"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "pad them on the left"),
        ({"attention_mask": torch.tensor([[1, 1]])}, "attention_mask has shape"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().generate(tokens(1, 3), **options)


def test_the_words_of_transformers_are_understood() -> None:
    model, prompt = tiny(), tokens(2, 5)
    plain = model.generate(prompt, max_new_tokens=8)

    def written(**arguments: Any) -> Tensor:
        return model.generate(**{"inputs": prompt, "max_new_tokens": 8, **arguments})

    for same in (
        {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "logits_processor": []},
        {"do_sample": False, "temperature": 0.0},
        {"max_new_tokens": None, "max_length": 13},
        {"eos_token_id": EOS, "pad_token_id": PAD},
        {"max_new_tokens": None, "generation_config": GenerationConfig(max_new_tokens=8, do_sample=False)},
        {"max_new_tokens": None, "generation_config": GenerationConfig(max_length=13, num_beams=1)},
        {"generation_config": GenerationConfig(max_new_tokens=4)},
        {"generation_config": model.generation_config},
    ):
        assert torch.equal(written(**same), plain), same

    def drawn(**arguments: Any) -> Tensor:
        return written(generator=torch.Generator().manual_seed(0), **arguments)

    sampled = drawn(temperature=1.0)
    assert not torch.equal(sampled, plain)
    for same in ({"do_sample": True}, {"generation_config": GenerationConfig(do_sample=True)}):
        assert torch.equal(drawn(**same), sampled), same
    assert torch.equal(drawn(do_sample=True, temperature=0.5), drawn(temperature=0.5))
    assert model.generate(prompt[:, :1]).shape == (2, 129)
    assert model.generate(prompt, max_length=51, stop_at_eos=False).shape == (2, 51)  # 46 tokens in blocks of 23


def test_other_ends_and_padding_can_be_asked_for() -> None:
    model, prompt = tiny(), tokens(1, 4)
    plain = model.generate(prompt, max_new_tokens=8, block_length=4, stop_at_eos=False)[0, 4:]
    end = int(plain[2])
    first = plain.tolist().index(end)
    for ends in (end, [1, end]):
        asked = {"eos_token_id": ends, "pad_token_id": 5}
        for arguments in (asked, {"generation_config": GenerationConfig(**asked)}):
            found = model.generate(prompt, max_new_tokens=8, block_length=4, **arguments)[0, 4:]
            assert torch.equal(found[: first + 1], plain[: first + 1]) and (found[first + 1 :] == 5).all()
    assert end not in model.generate(prompt, max_new_tokens=8, eos_token_id=end, suppress_eos=True)[0, 4:]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_beams": 2}, "generate.. has no num_beams for masked diffusion; it has input_ids, .*, cache, .*, inputs"),
        ({"streamers": print, "top_k": 5}, "no streamers, top_k for"),
        ({"generation_config": GenerationConfig(repetition_penalty=1.2)}, "no repetition_penalty for"),
        ({"max_length": 10, "max_new_tokens": 4}, "max_new_tokens and max_length both"),
        ({"max_length": 3}, "max_length = 3 is no longer than the prompt of 3"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample = True contradicts temperature = 0.0"),
        ({"do_sample": False, "temperature": 0.7}, "do_sample = False contradicts temperature = 0.7"),
        ({"inputs": torch.ones(1, 3, dtype=torch.long)}, "give the prompts as input_ids or as inputs"),
    ],
)
def test_words_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().generate(tokens(1, 3), **options)
    with pytest.raises(ValueError, match="give the prompts"):
        tiny().generate(max_new_tokens=4)


def test_a_model_without_a_mask_token_cannot_generate() -> None:
    with pytest.raises(ValueError, match="mask_token_id = None is no row"):
        tiny(mask_token_id=None).generate(tokens(1, 3))


# Likelihood


def exact_by_subsets(model: Any, prompt: Tensor, answer: Tensor) -> float:
    """The expectation of the count estimator: over l = 1..L and all sets of l tokens."""
    length, total = len(answer), 0.0
    for count in range(1, length + 1):
        sets = list(itertools.combinations(range(length), count))
        masked = torch.zeros(len(sets), length, dtype=torch.bool)
        for row, chosen in enumerate(sets):
            masked[row, list(chosen)] = True
        total += (length / count) * likelihood.masked_loss(model, prompt, answer, masked).sum(1).mean().item() / length
    return -total


@torch.no_grad()
def exact_by_orders(model: Any, prompt: Tensor, answer: Tensor) -> float:
    """The mean over all orders of the log-likelihood of the answer told token by token in that order."""
    totals = []
    for order in itertools.permutations(range(len(answer))):
        told, total = torch.full_like(answer, MASK), 0.0
        for index in order:
            logits = model(torch.cat([prompt, told])[None]).logits[0, len(prompt) + index]
            total += logits.log_softmax(-1)[answer[index]].item()
            told[index] = answer[index]
        totals.append(total)
    return sum(totals) / len(totals)


@pytest.mark.parametrize("prompt_length", [0, 3])
def test_both_estimators_find_the_any_order_likelihood(prompt_length: int) -> None:
    model, prompt, answer = sure(10.0), tokens(1, prompt_length)[0], tokens(1, 4, seed=1)[0]
    with torch.no_grad():
        exact = exact_by_subsets(model, prompt, answer)
    assert exact == pytest.approx(exact_by_orders(model, prompt, answer), rel=1e-5)
    for estimator, tolerance in (("count", 0.01), ("ratio", 0.03)):
        found = model.log_likelihood(
            prompt, answer, estimator=estimator, samples=8192, batch_size=1024,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert found == pytest.approx(exact, rel=tolerance), estimator


def test_counting_varies_less() -> None:
    model, prompt, answer = sure(10.0), tokens(1, 3)[0], tokens(1, 8, seed=1)[0]

    def spread(estimator: str) -> float:
        found = [
            model.log_likelihood(
                prompt, answer, estimator=estimator, samples=16, generator=torch.Generator().manual_seed(seed)
            )
            for seed in range(24)
        ]
        return torch.tensor(found).std().item()

    assert spread("count") < 0.6 * spread("ratio")


def test_a_uniform_model_is_scored_exactly() -> None:
    model, answer = tiny(), tokens(1, 6)[0]
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert model.log_likelihood(tokens(1, 3)[0], answer, samples=5) == pytest.approx(-6 * math.log(40), rel=1e-6)
    ratio = model.log_likelihood(
        tokens(1, 3)[0], answer, estimator="ratio", samples=20_000, batch_size=4096,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert ratio == pytest.approx(-6 * math.log(40), rel=0.03)


@torch.no_grad()
def test_one_token_needs_one_sample_and_the_prompt_is_given() -> None:
    model, prompt = sure(10.0), tokens(1, 4)[0]
    for answer in (5, 6):
        logits = model(torch.cat([prompt, torch.tensor([MASK])])[None]).logits[0, -1]
        found = model.log_likelihood(prompt, torch.tensor([answer]), samples=1)
        assert found == pytest.approx(logits.log_softmax(-1)[answer].item(), rel=1e-5)
        empty = torch.full((1, 5), MASK)
        without = model(empty).logits[0, -1]
        guided = (without + 1.5 * (logits - without)).log_softmax(-1)[answer].item()
        assert model.log_likelihood(prompt, torch.tensor([answer]), samples=1, cfg_scale=0.5) == pytest.approx(guided)


def test_samples_are_the_same_in_batches_of_any_size() -> None:
    model, prompt, answer = tiny(), tokens(1, 4)[0], tokens(1, 6)[0]
    found = [
        model.log_likelihood(prompt, answer, samples=10, batch_size=size, generator=torch.Generator().manual_seed(0))
        for size in (1, 3, 16)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [({"estimator": "mean"}, "estimator = 'mean'; choose one of count, ratio"), ({"samples": 0}, "samples = 0")],
)
def test_a_likelihood_that_cannot_be_estimated_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().log_likelihood(tokens(1, 3)[0], tokens(1, 3)[0], **options)


def test_a_model_without_a_mask_token_has_no_likelihood() -> None:
    with pytest.raises(ValueError, match="config.mask_token_id = None"):
        tiny(mask_token_id=None).log_likelihood(tokens(1, 3)[0], tokens(1, 3)[0])


def test_an_empty_answer_has_no_likelihood() -> None:
    with pytest.raises(ValueError, match="L >= 1"):
        tiny().log_likelihood(tokens(1, 3)[0], tokens(1, 0)[0])


# Export


def test_an_exported_folder_needs_no_flame(process_group, tmp_path: Path) -> None:
    model: PreTrainedModel = sure()
    ids, mask = padded([tokens(1, 4)[0], tokens(1, 7)[0]])
    folder = export(copy.deepcopy(model), tmp_path)
    options = {"max_new_tokens": 8, "block_length": 4, "cache": "dual", "threshold": 0.9}
    logits, found = without_flame(folder, ids, mask, **options)
    torch.testing.assert_close(logits, model(ids, attention_mask=mask).logits.detach())
    assert torch.equal(found, model.generate(ids, attention_mask=mask, **options))  # type: ignore[operator]
