import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from flame import cli
from flame.errors import ConfigError
from flame.inference.folder import load_folder, model_type
from flame.models.build import model_class, plain_model
from flame.models.config import fit_tokenizer, tiny_config
from flame.plugin import load_plugin

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def exported(materials, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder with a small model of a family, once."""
    made: dict[str, Path] = {}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)

    def make(family: str) -> Path:
        if family not in made:
            plugin = load_plugin(family)
            config = tiny_config(plugin)
            fit_tokenizer(config, tokenizer)
            made[family] = tmp_path_factory.mktemp(family)
            plain_model(model_class(plugin, config, "causal_lm"), config, seed=5).save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return made[family]

    return make


@pytest.fixture
def changed(exported, tmp_path: Path) -> Callable[[str, Change], str]:
    def change(family: str, how: Change) -> str:
        folder = tmp_path / "changed"
        shutil.copytree(exported(family), folder)
        how(folder)
        return str(folder)

    return change


def config_with(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def file_of(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def weights_with(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, {"format": "pt"})

    return rewrite


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gla", "deepseek_v3", "nanochat", "nanochat_plus", "sba", "huginn_raven", "llada"]
)
def test_what_was_exported_is_whole(exported, family: str) -> None:
    model, tokenizer = load_folder(str(exported(family)))
    assert model.config.model_type == family and len(tokenizer) == 300


@pytest.mark.parametrize(
    "change, message",
    [
        (config_with(num_hidden_layers=4), r"they lack model.layers.2.input_layernorm.weight, .* and 15 more"),
        (config_with(num_hidden_layers=1), r"they hold besides model.layers.1.input_layernorm.weight, .* and 6 more"),
        (config_with(intermediate_size=80), r"they have model.layers.0.mlp.down_proj.weight \[64, .*\] instead of"),
        (weights_with(lambda weights: weights.pop("model.norm.weight")), r"they lack model.norm.weight; give"),
    ],
)
def test_weights_that_are_not_the_configs_are_refused_by_name(changed, change: Change, message: str) -> None:
    folder = changed("llama", change)
    with pytest.raises(ConfigError, match=message):
        load_folder(folder)


def test_a_head_tied_to_the_table_need_not_be_stored(changed) -> None:
    folder = changed("llama", config_with(tie_word_embeddings=True))
    weights_with(lambda weights: weights.pop("lm_head.weight"))(Path(folder))
    model, _ = load_folder(folder)
    assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)  # type: ignore[union-attr]


def test_layers_for_further_tokens_may_be_left_over(changed, exported) -> None:
    last = json.loads((exported("deepseek_v3") / "config.json").read_text())["num_hidden_layers"]

    def append(weights: dict[str, torch.Tensor]) -> None:
        weights[f"model.layers.{last}.enorm.weight"] = torch.ones(4)

    folder = changed("deepseek_v3", weights_with(append))
    config_with(num_nextn_predict_layers=1)(Path(folder))
    load_folder(folder)
    config_with(num_nextn_predict_layers=0)(Path(folder))
    with pytest.raises(ConfigError, match=rf"they hold besides model.layers.{last}.enorm.weight"):
        load_folder(folder)


@pytest.mark.parametrize(
    "family, change",
    [
        ("llama", file_of("config.json", b"[]")),
        ("llama", file_of("config.json", b'{"model_type": ')),
        ("llama", file_of("config.json", b"\xe9")),
        ("llama", config_with(model_type=["llama"])),
        ("llama", file_of("model.safetensors", b"")),
        ("llama", lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 500)),
        ("llama", config_with(hidden_size=32)),
        ("llama", config_with(num_attention_heads=0)),
        ("llama", config_with(num_attention_heads="4")),
        ("llama", config_with(hidden_act="foo")),
        ("sba", config_with(hidden_act="foo")),
        ("llama", config_with(rope_parameters={"rope_type": "foo"})),
        ("llama", file_of("generation_config.json", b"[]")),
        ("llama", file_of("tokenizer.json", b"{}")),
        ("llama", file_of("tokenizer_config.json", b"[]")),
    ],
)
def test_a_damaged_folder_is_one_line(changed, family: str, change: Change, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(family, change)
    assert cli.main(["generate", "--model", folder, "--prompt", "a", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    line = error[error.index("flame: error: ") :]
    assert f"--model '{folder}'" in line and line.count("\n") == 1 and len(line) < 1000


def test_a_truncated_file_of_weights_is_one_error(changed) -> None:
    folder = changed("llama", lambda folder: None)
    path = Path(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match="cannot be loaded: SafetensorError"):
        load_folder(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(changed) -> None:
    def shorten(weights: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = weights[name][:200].clone()

    folder = changed("llama", weights_with(shorten))
    config_with(vocab_size=200)(Path(folder))
    with pytest.raises(ConfigError, match="the tokenizer has 300 tokens and the model 200"):
        load_folder(folder)


def test_the_family_is_read_from_the_config(exported) -> None:
    assert model_type(str(exported("sba"))) == "sba"
