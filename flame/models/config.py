"""Loads model configs and scales them down."""

import copy
import difflib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from flame.config import locate
from flame.config.files import looks_like_path
from flame.errors import ConfigError
from flame.models.shrink import TOKEN_IDS, small_values
from flame.plugin import ModelPlugin, custom_families, fla_families, load_plugin

_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")


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
        config = AutoConfig.for_model(model_type, **values)
        _check_heads(config.get_text_config())
        _check_experts(config.get_text_config())
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError, StrictDataclassError) as error:
        raise ConfigError(f"model.config '{name}' is refused by family '{model_type}': {error}") from error
    plugin = _with_inner(plugin, config, plugin_path)
    if not plugin.decodes_with_cache:
        config.use_cache = False
    return config, plugin


def _with_inner(plugin: ModelPlugin, config: PreTrainedConfig, plugin_path: str) -> ModelPlugin:
    """Makes the families known that a config builds upon; what they need, the whole needs."""
    for name in plugin.inner(config):
        if name in {*custom_families(), *fla_families()}:
            needed = load_plugin(name, plugin_path).needs_triton
            plugin = replace(plugin, needs_triton=plugin.needs_triton or needed)
    return plugin


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
        values = json.loads(path.read_text(), object_hook=_infinities)
    except ValueError as error:
        raise ConfigError(f"model.config '{path}' is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"model.config '{path}' holds no JSON object; give a HuggingFace config.json")
    return values


def _infinities(held: dict[str, Any]) -> Any:
    """The number that transformers writes as ``{"__float__": "Infinity"}``, which JSON has no word for."""
    return float(held["__float__"]) if held.keys() == {"__float__"} else held


def _check_spelling(name: str, values: dict[str, Any], default: PreTrainedConfig) -> None:
    """HuggingFace configs keep any key they are given, so a misspelt size would silently be the default one. Keys that
    resemble none are let through: configs of the hub carry many of other tools."""
    own = inspect.signature(type(default).__init__).parameters
    known = {*TOKEN_IDS, *default.to_dict(), *default.attribute_map, *own}
    for key in values.keys() - known:
        similar = difflib.get_close_matches(key, known - values.keys(), n=1, cutoff=0.85)
        if similar:
            raise ConfigError(f"model.config '{name}': unknown key '{key}'. Did you mean '{similar[0]}'?")


def _check_heads(text: PreTrainedConfig) -> None:
    """Few config classes look whether their heads fit each other; models then fail in the middle of a pass."""
    heads, groups = (vars(text).get(name) for name in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups:
        raise ValueError(f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {groups}")


def _check_experts(text: PreTrainedConfig) -> None:
    """The same of how tokens choose experts, one by one or by groups of them, and of latent attention."""
    held = vars(text)
    experts = next((held[name] for name in _EXPERTS if isinstance(held.get(name), int)), 0)
    chosen, groups, kept = (held.get(name) for name in ("num_experts_per_tok", "n_group", "topk_group"))
    if experts and isinstance(chosen, int) and not 1 <= chosen <= experts:
        raise ValueError(
            f"num_experts_per_tok = {chosen} is no number of {experts} experts; choose from 1 to {experts}"
        )
    if experts and isinstance(groups, int) and groups > 0 and experts % groups:
        raise ValueError(f"{experts} experts cannot be parted into n_group = {groups} groups; choose a divisor")
    if isinstance(groups, int) and isinstance(kept, int) and groups > 0 and not 1 <= kept <= groups:
        raise ValueError(f"topk_group = {kept} is no number of n_group = {groups} groups")
    if held.get("qk_nope_head_dim") and held.get("kv_lora_rank") == 0:
        raise ValueError("kv_lora_rank = 0 leaves nothing to make keys and values of; give at least 1")


def fit_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Gives the config the tokenizer's special ids, and a larger vocabulary where the tokenizer needs one.

    Returns:
        True if the vocabulary had to grow.
    """
    for name in TOKEN_IDS:
        setattr(config, name, getattr(tokenizer, name))
    text = config.get_text_config()
    grows = len(tokenizer) > text.vocab_size
    if grows:
        text.vocab_size = len(tokenizer)
    return grows


def shrink(config: PreTrainedConfig, layers: int = 0, divisor: int = 1) -> PreTrainedConfig:
    """A copy of the config with every known size scaled down, every flag and every kind of layer kept.

    Args:
        config: a large config, or one that is small already.
        layers: at least this many hidden layers, in the family's own pattern; 0: as few as have all kinds.
        divisor: widths, vocabulary and experts are multiples of this. So are heads and their groups, where those of
            ``config`` are; where not, those of the copy have the same common divisors with it.
    """
    values = small_values(copy.deepcopy(config), layers, divisor)
    for name in ("auto_map", "transformers_version", "model_type", "dtype", *TOKEN_IDS):
        values.pop(name, None)
    return type(config)(**{**values, **TOKEN_IDS})


def tiny_config(plugin: ModelPlugin) -> PreTrainedConfig:
    """The family's own tiny config, or its default config scaled down."""
    if plugin.tiny is not None:
        return plugin.tiny()
    return shrink(AutoConfig.for_model(plugin.model_type, use_cache=plugin.decodes_with_cache))
