"""Reads folders that others may have made: what is in them is checked, and what goes wrong is told in one line."""

import pickle
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from flame.config.files import looks_like_path
from flame.errors import ConfigError, FlameError
from flame.models.mtp import further_layers

FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    OSError,  # files that are absent, or are no JSON
    ValueError,  # values that a family checks
    StrictDataclassError,  # values of the wrong type in a config that transformers checks
    TypeError,  # the same where nobody checks: "4" heads, a list for an object
    AttributeError,  # likewise, and entries that the family's code takes for granted
    LookupError,  # names that are in no table of the library, such as an activation function
    ArithmeticError,  # 0 heads to divide a width by
    AssertionError,  # how some families check
    ImportError,  # code in the folder that needs a package
    SyntaxError,  # code in the folder that is none
    RuntimeError,  # torch: shapes that do not fit, operations that a device lacks, no memory
    SafetensorError,  # weights that are cut off or empty
    EOFError,  # the same of pickled weights
    pickle.UnpicklingError,  # likewise
)
"""What a family's code raises where config, weights or tokenizer are not as it expects. The code may be anybody's, so
that nothing narrower can be said; errors of flame's own code are not to be caught with these."""

_SHOWN = 3  # names in a message
_LONGEST = 300  # characters of another's message


def model_type(name: str) -> str:
    """The family that a folder or hub id belongs to.

    Raises:
        ConfigError: nothing there, or no config that says so.
    """
    remedy = "give an exported folder such as exp/RUN/hf/latest"
    local = looks_like_path(name) or Path(name).exists() or name.count("/") > 1
    if local and not (Path(name).expanduser() / "config.json").is_file():
        raise ConfigError(f"--model '{name}' holds no config.json; {remedy}")
    try:
        values: Any = PreTrainedConfig.get_config_dict(name)[0]
    except FOREIGN_ERRORS as error:
        raise ConfigError(f"--model '{name}' cannot be loaded: {_reason(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--model '{name}' has a config.json that is no JSON object; {remedy}")
    found = values.get("model_type")
    if not found or not isinstance(found, str):
        raise ConfigError(f"--model '{name}' has a config.json without model_type; {remedy}")
    return found


def load_folder(name: str, trust_remote_code: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model in its stored dtype, and its tokenizer.

    Args:
        name: a HuggingFace folder or hub id.
        trust_remote_code: whether code in the folder may run.

    Raises:
        ConfigError: something cannot be read, the weights are not those of the model that the config describes, or the
            tokenizer has more tokens than the model.
    """
    tokenizer: Any = load_part(AutoTokenizer, name, trust_remote_code)
    model = load_weights(AutoModelForCausalLM, name, trust_remote_code)
    _check_vocabulary(name, model, tokenizer)
    return model, tokenizer


def load_part(auto_class: Any, name: str, trust_remote_code: bool = False) -> Any:
    """Loads what is beside the weights: a tokenizer or a feature extractor, by its auto class.

    Raises:
        ConfigError: it cannot be read.
    """
    with _told(name):
        return auto_class.from_pretrained(name, trust_remote_code=trust_remote_code)


def load_weights(auto_class: Any, name: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Loads a model in its stored dtype by its auto class.

    Raises:
        ConfigError: it cannot be read, or the weights are not those of the model that the config describes.
    """
    with _told(name):
        model, info = auto_class.from_pretrained(
            name,
            dtype="auto",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told with their shapes below
        )
    _check_weights(name, model, info)
    return model


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Makes one line of what another's code raises."""
    try:
        yield
    except FlameError:
        raise
    except FOREIGN_ERRORS as error:
        raise ConfigError(f"--model '{name}' cannot be loaded: {_reason(error)}") from error


def _check_weights(name: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuses what transformers fills with random numbers or passes over. Names that the class lets go, and weights
    that are tied to others, are not in ``info`` any more."""
    wrong = [f"{key} {list(stored)} instead of {list(own)}" for key, stored, own in info["mismatched_keys"]]
    unknown = [key for key in info["unexpected_keys"] if not _further(key, model.config)]
    problems = [
        _few("lack", info["missing_keys"]),
        _few("have", wrong),
        _few("hold besides", unknown),
    ]
    if found := ", and ".join(problem for problem in problems if problem):
        raise ConfigError(f"--model '{name}': the weights are not the config's, they {found}; give the folder whole")


def _few(verb: str, names: Collection[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{verb} {', '.join(sorted(names)[:_SHOWN])}{more}" if names else ""


def _further(key: str, config: PreTrainedConfig) -> bool:
    """Whether a weight belongs to layers that predict tokens further ahead, which decoding has no use for."""
    layer = re.search(r"\blayers\.(\d+)\.", key)
    first = getattr(config.get_text_config(), "num_hidden_layers", 0)
    return bool(layer) and first <= int(layer[1]) < first + further_layers(config)


def _check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer whose tokens have no row in the model's table."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None) or model.config.get_text_config().vocab_size
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if needed > rows:
        raise ConfigError(
            f"--model '{name}': the tokenizer has {needed} tokens and the model {rows}; "
            "give the folder the tokenizer it was trained with"
        )


def _reason(error: Exception) -> str:
    """Another's message, with its type where it does not say much without."""
    text = " ".join(str(error).split())[:_LONGEST]
    return text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"
