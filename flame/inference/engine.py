"""Loads a trained model to be used: weights, tokenizer and what flame knows of the family."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flame import compat
from flame.errors import ConfigError
from flame.inference.absorbed import absorb
from flame.inference.folder import load_folder, model_type
from flame.models.config import load_config
from flame.plugin import ModelPlugin, load_plugin


@dataclass(frozen=True)
class Engine:
    """A model that is ready to be used."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plugin: ModelPlugin
    """Of the family; with its defaults if only the folder itself knows it."""

    @property
    def begin(self) -> int | None:
        """The token that a text begins with; None if the tokenizer has none."""
        tokenizer = self.tokenizer
        return _first(tokenizer.bos_token_id, tokenizer.eos_token_id)

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        found: Any = getattr(self.model.generation_config, "eos_token_id", None)
        if found is None:
            found = self.tokenizer.eos_token_id
        return () if found is None else (found,) if isinstance(found, int) else tuple(found)

    @property
    def pad(self) -> int:
        """A token to fill rows with; masked, so that any will do."""
        return _first(self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) or 0


def _first(*ids: Any) -> int | None:
    return next((token for token in ids if token is not None), None)


def family_of(name: str, plugin_path: str = "", trust_remote_code: bool = False) -> ModelPlugin:
    """The family of a model, without loading it; see ``load_engine`` for the arguments and errors."""
    family = model_type(name)
    try:
        plugin = load_plugin(family, plugin_path)
    except ConfigError:
        if not trust_remote_code:
            raise
        return ModelPlugin(family, origin="remote")  # the folder's own code is asked for, and knows more
    # Those that read no text may build upon other families, which the config names.
    return plugin if plugin.features is None else load_config(name, plugin_path)[1]


def load_engine(name: str, device: str = "", plugin_path: str = "", trust_remote_code: bool = False) -> Engine:
    """Loads a model in its stored dtype and its tokenizer. Latent attention (MLA) decodes in absorbed form.

    Args:
        name: a HuggingFace folder or hub id.
        device: where to put it; the accelerator, if there is one, when empty.
        plugin_path: see ``load_plugin``.
        trust_remote_code: whether code in the folder may run; families flame knows need none.

    Raises:
        ConfigError: no model there, one whose family is unknown, or one that is not whole; see ``load_folder``.
    """
    plugin = family_of(name, plugin_path, trust_remote_code)
    place = find_device(device)
    model, tokenizer = load_folder(name, trust_remote_code)
    if not plugin.decodes_with_cache:
        model.config.use_cache = model.generation_config.use_cache = False
    takes = signature(type(model).forward).parameters
    if "past_key_values" in takes and "cache" not in takes:
        compat.hand_over_cache(type(model))
    absorb(model)
    return Engine(model.to(place).eval(), tokenizer, plugin)  # type: ignore[arg-type]


def load(
    name: str, device: str = "", plugin_path: str = "", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer of ``load_engine``."""
    engine = load_engine(name, device, plugin_path, trust_remote_code)
    return engine.model, engine.tokenizer


def find_device(name: str) -> torch.device:
    """The device of a name; the accelerator, if there is one, without a name.

    Raises:
        ConfigError: it is not there.
    """
    if not name:
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device '{name}' is not there: {str(error).splitlines()[0]}") from error
    return device
