import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from flame.errors import ConfigError
from flame.inference.absorbed import NAME
from flame.inference.decoders.autoregressive import AutoregressiveDecoder, AutoregressiveOptions
from flame.inference.engine import family_of, load_engine
from flame.models.build import model_class, plain_model
from flame.models.config import fit_tokenizer, tiny_config
from flame.plugin import load_plugin


@pytest.fixture(scope="module")
def exported(materials, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a folder with a small model of a family."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)

    def make(family: str) -> str:
        folder = tmp_path_factory.mktemp(family)
        plugin = load_plugin(family)
        config = tiny_config(plugin)
        fit_tokenizer(config, tokenizer)
        model: Any = plain_model(model_class(plugin, config, "causal_lm"), config, seed=5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter * 4 if parameter.ndim > 1 else parameter)
        model.config.use_cache = plugin.decodes_with_cache
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def test_latent_attention_decodes_absorbed_and_to_the_same_tokens(exported) -> None:
    folder = exported("deepseek_v3")
    engine = load_engine(folder, "cpu")
    assert engine.model.config._attn_implementation == NAME
    plain: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert plain.config._attn_implementation != NAME
    decoder = AutoregressiveDecoder(engine, AutoregressiveOptions(temperature=0.0, max_new_tokens=12))
    prompts = [decoder.encoder.encode({"prompt": text}) for text in ("the cat", "a", "one old tree sees some birds")]
    assert decoder.pads()
    for prompt, completion in zip(prompts, decoder.run(prompts), strict=True):
        own = plain.generate(torch.tensor([prompt.ids]), max_new_tokens=12, do_sample=False)
        assert completion.text == engine.tokenizer.decode(own[0, len(prompt.ids) :], skip_special_tokens=True)


def test_a_family_whose_cache_is_not_exact_decodes_without(exported) -> None:
    engine = load_engine(exported("stickbreaking_attn"), "cpu")
    assert not engine.plugin.decodes_with_cache
    assert not engine.model.config.use_cache and not engine.model.generation_config.use_cache


def test_a_family_that_knows_the_cache_by_its_old_name_is_handed_it(
    exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those written for transformers 5.23 do; a plugin's, or code in a folder."""
    folder = exported("sba")
    plain: Any = AutoModelForCausalLM.from_pretrained(folder).eval()

    class Older(type(plain)):
        def forward(self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=None, **kwargs):  # type: ignore[override]
            given = {name: value for name, value in kwargs.items() if name != "cache"}
            return super().forward(
                input_ids, attention_mask, past_key_values=past_key_values, use_cache=use_cache, **given
            )

    monkeypatch.setattr("flame.inference.engine.load_folder", lambda *_: (Older.from_pretrained(folder), None))
    ids, options = torch.arange(5, 12).unsqueeze(0), {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    written = load_engine(folder, "cpu").model.generate(ids, use_cache=True, **options)  # type: ignore[operator]
    assert torch.equal(written, plain.generate(ids, use_cache=False, **options))


def test_the_tokens_that_end_a_text_are_the_models_own(exported) -> None:
    folder = exported("llama")
    assert load_engine(folder, "cpu").ends == (1,)
    path = Path(folder) / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [1, 7]}))
    assert load_engine(folder, "cpu").ends == (1, 7)
    path.write_text("{}")
    engine = load_engine(folder, "cpu")
    assert engine.ends == (1,)  # the tokenizer's
    assert engine.begin == engine.tokenizer.bos_token_id


def test_code_in_the_folder_is_asked_for_only_when_it_may_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(ConfigError, match="unheard_of"):
        family_of(str(tmp_path))
    assert family_of(str(tmp_path), trust_remote_code=True).origin == "remote"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="without model_type"):
        family_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        family_of(str(tmp_path))


def test_what_a_backbone_needs_its_family_needs(tmp_path: Path) -> None:
    values = {"model_type": "hgrn_timeseries", "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert not family_of(str(tmp_path)).needs_triton
    backbone = {"model_type": "mamba3", "hidden_size": 64, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps({**values, "backbone": backbone}))
    assert family_of(str(tmp_path)).needs_triton
