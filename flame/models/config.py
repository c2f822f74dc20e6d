"""Loads model configs and scales them down."""

import copy
import difflib
import inspect
import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from flame.config import locate
from flame.config.files import looks_like_path
from flame.errors import ConfigError
from flame.plugin import ModelPlugin, load_plugin

# What a size becomes in a scaled-down config. A name a config does not have is left out; flags are never touched, so
# the small model takes the same code path as the large one.
_SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "dim": 64,
    "intermediate_size": 128,
    "ffn_hidden_size": 128,
    "ffn_dim": 128,
    "n_inner": 128,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_layers": 2,
    "n_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "sliding_window": 32,
}
# A count and the size it must divide, in this order.
_DIVIDES = (
    ("num_attention_heads", "hidden_size"),
    ("n_head", "n_embd"),
    ("num_heads", "d_model"),
    ("n_heads", "dim"),
    ("num_key_value_heads", "num_attention_heads"),
)
_TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def load_config(name: str, plugin_path: str = "") -> tuple[PreTrainedConfig, ModelPlugin]:
    """Loads a model config and finds its family.

    Args:
        name: a ``config.json`` or the folder it is in, the name of a shipped config (``llama_10M``), or a hub id.
        plugin_path: see ``load_plugin``.

    Raises:
        ConfigError: nothing there, not JSON, no ``model_type``, an unknown family, or values the family refuses.
    """
    values = _read(name)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(f"model.config '{name}' names no model_type; add the family's name to it")
    plugin = load_plugin(model_type, plugin_path)
    values = {
        key: value for key, value in values.items() if key not in ("model_type", "auto_map", "transformers_version")
    }
    try:
        _check_spelling(name, values, AutoConfig.for_model(model_type))
        return AutoConfig.for_model(model_type, **values), plugin
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"model.config '{name}' is refused by family '{model_type}': {error}") from error


def _read(name: str) -> dict[str, Any]:
    folder = Path(name).expanduser()
    try:
        return _read_file(folder / "config.json" if folder.is_dir() else locate(name))
    except ConfigError:
        if looks_like_path(name) or folder.is_dir():
            raise
    hf_logging.set_verbosity_error()
    try:
        return PreTrainedConfig.get_config_dict(name)[0]
    except OSError as error:
        remedy = "give a config.json, the name of a shipped config, or a hub id within reach"
        raise ConfigError(f"model.config '{name}' cannot be found; {remedy}") from error


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"model.config: there is no '{path}'; give a folder with a config.json")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"model.config '{path}' is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"model.config '{path}' holds no JSON object; give a HuggingFace config.json")
    return values


def _check_spelling(name: str, values: dict[str, Any], default: PreTrainedConfig) -> None:
    """HuggingFace configs keep any key they are given, so a misspelt size would silently be the default one. Keys that
    resemble none are let through: configs of the hub carry many of other tools."""
    known = {*default.to_dict(), *default.attribute_map, *inspect.signature(type(default).__init__).parameters}
    for key in values.keys() - known:
        similar = difflib.get_close_matches(key, known - values.keys(), n=1, cutoff=0.85)
        if similar:
            raise ConfigError(f"model.config '{name}': unknown key '{key}'. Did you mean '{similar[0]}'?")


def fit_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Gives the config the tokenizer's special ids, and a larger vocabulary where the tokenizer needs one.

    Returns:
        True if the vocabulary had to grow.
    """
    for name in _TOKEN_IDS:
        setattr(config, name, getattr(tokenizer, name))
    grows = len(tokenizer) > config.vocab_size
    if grows:
        config.vocab_size = len(tokenizer)
    return grows


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of the config with every known size scaled down and every flag kept."""
    values = copy.deepcopy(config).to_dict()
    for name in ("auto_map", "transformers_version", "model_type", "dtype", "layer_types", *_TOKEN_IDS):
        values.pop(name, None)
    for name, small in _SMALL.items():
        if isinstance(values.get(name), int) and not isinstance(values[name], bool):
            values[name] = min(values[name], small)
    for count, whole in _DIVIDES:
        if isinstance(values.get(whole), int) and isinstance(values.get(count), int) and values[count] > 0:
            while values[whole] % values[count]:
                values[count] -= 1
    if "qk_rope_head_dim" in values:  # latent attention: the rotary part is its "head"
        values.pop("qk_head_dim", None)
        values["head_dim"] = values["qk_rope_head_dim"]
    heads, groups = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if heads and groups and config.num_key_value_heads == config.num_attention_heads:
        values["num_key_value_heads"] = heads
    return type(config)(**{**values, **_TOKEN_IDS})


def tiny_config(plugin: ModelPlugin) -> PreTrainedConfig:
    """The family's own tiny config, or its default config scaled down."""
    if plugin.tiny is not None:
        return plugin.tiny()
    return shrink(AutoConfig.for_model(plugin.model_type))
