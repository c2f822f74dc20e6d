import json
from pathlib import Path

import pytest
from transformers import GPT2Config, LlamaConfig, MixtralConfig, PreTrainedTokenizerFast

from flame.errors import ConfigError
from flame.models.config import fit_tokenizer, load_config, shrink
from tests.runs import FAMILIES, LLAMA


def write(folder: Path, text: str) -> str:
    (folder / "config.json").write_text(text)
    return str(folder / "config.json")


def test_a_config_is_found_as_file_folder_and_shipped_name(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(LLAMA))
    for name in (path, str(tmp_path)):
        config, plugin = load_config(name)
        assert isinstance(config, LlamaConfig) and plugin.origin == "transformers"
        assert (config.hidden_size, config.vocab_size) == (64, 320)
    assert load_config("llama_10M")[0].hidden_size == 384


def test_a_family_outside_is_found_by_its_path(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"model_type": "deaf_lm", "hidden_size": 64}))
    assert load_config(path, str(FAMILIES))[1].model_type == "deaf_lm"


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object"),
        ("{}", "names no model_type"),
        ('{"model_type": 3}', "names no model_type"),
        ('{"model_type": "lama"}', "Did you mean 'llama'"),
        ('{"model_type": "ema_lm", "hidden_size": 0}', "hidden_size 0"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, text), str(FAMILIES))


def test_values_that_the_family_refuses_are_one_error(tmp_path: Path) -> None:
    """transformers checks them in a way of its own."""
    path = write(tmp_path, json.dumps({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 3}))
    with pytest.raises(ConfigError, match="(?s)refused by family 'llama'.*hidden size"):
        load_config(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok = 9 is no number of 4 experts"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok = 0"),
        ({"n_group": 3}, "4 experts cannot be parted into n_group = 3"),
        ({"topk_group": 5}, "topk_group = 5 is no number of n_group = 2"),
        ({"kv_lora_rank": 0}, "kv_lora_rank = 0 leaves nothing"),
    ],
)
def test_experts_and_latents_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, int], said: str) -> None:
    fitting = {
        "model_type": "deepseek_v3",
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
    }
    load_config(write(tmp_path, json.dumps(fitting)))
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, json.dumps({**fitting, **changes})))


def test_a_name_that_leads_nowhere_says_so(tmp_path: Path) -> None:
    for name in ("./absent.json", str(tmp_path)):
        with pytest.raises(ConfigError):
            load_config(name)


def test_the_tokenizer_gives_ids_and_at_least_its_vocabulary(materials) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    large, small = LlamaConfig(vocab_size=5000), LlamaConfig(vocab_size=10)
    assert (fit_tokenizer(large, tokenizer), large.vocab_size) == (False, 5000)
    assert (fit_tokenizer(small, tokenizer), small.vocab_size) == (True, len(tokenizer))
    assert (small.bos_token_id, small.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_scaling_down_keeps_every_flag() -> None:
    big = LlamaConfig(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, attention_bias=True)
    small = shrink(big)
    assert (small.hidden_size, small.num_attention_heads, small.num_key_value_heads) == (64, 4, 2)
    assert small.attention_bias and big.hidden_size == 4096
    assert shrink(LlamaConfig(hidden_size=4096, num_attention_heads=32)).num_key_value_heads == 4, "was one per head"
    assert shrink(MixtralConfig(num_local_experts=8)).num_local_experts == 4


@pytest.mark.parametrize("heads, groups", [(1, 1), (2, 1), (3, 3), (3, 1), (6, 3), (9, 3), (12, 2), (14, 2), (40, 10)])
def test_scaled_down_heads_still_divide(heads: int, groups: int) -> None:
    config = LlamaConfig(hidden_size=heads * 16, num_attention_heads=heads, num_key_value_heads=groups)
    small = shrink(config)
    assert small.hidden_size % small.num_attention_heads == 0
    assert small.num_attention_heads % small.num_key_value_heads == 0


def test_scaled_down_heads_of_another_spelling_still_divide() -> None:
    small = shrink(GPT2Config(n_embd=60, n_head=6))
    assert small.n_embd % small.n_head == 0


def test_a_misspelt_key_of_a_model_config_names_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hiden_size": 64}))
    with pytest.raises(ConfigError, match="unknown key 'hiden_size'. Did you mean 'hidden_size'?"):
        load_config(str(tmp_path))


def test_a_key_of_another_tool_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantized_by": "someone"}))
    assert load_config(str(tmp_path))[0].model_type == "llama"
