"""Loading a tokenizer by its name in a job: a folder, a hub id, or a built-in one (``builtin:...``)."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flame.errors import DataError
from flame.tokenizer.builtin import PREFIX, builtin_tokenizer
from flame.tokenizer.characters import builtin_characters, is_builtin_alphabet
from flame.tokenizer.hub import hub_is_reachable

_REMEDY = "name a folder with tokenizer.json, a hub id, or builtin:python-stdlib-8k"


def load_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """Loads a tokenizer.

    Args:
        path: A HuggingFace tokenizer folder, a hub id, or a built-in tokenizer such as ``builtin:python-stdlib-8k``,
            which is trained on first use and cached, or ``builtin:characters-en`` for CTC.

    Raises:
        DataError: If it cannot be found or read, or is not a fast (Rust) tokenizer.
    """
    if not path:
        raise DataError(f"model.tokenizer_path is empty: {_REMEDY}")
    if is_builtin_alphabet(path):
        return builtin_characters(path)
    if path.startswith(PREFIX):
        return _load(str(builtin_tokenizer(path)), path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _load(str(folder), path)
    if _names_local_path(path):
        raise DataError(f"no tokenizer folder at '{path}': {_REMEDY}")
    return _load(path, path, local_files_only=not hub_is_reachable())


def _load(folder: str, path: str, local_files_only: bool = False) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=local_files_only)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (
            "the hub cannot be reached and it is not in the local cache" if local_files_only else _first_line(error)
        )
        raise DataError(f"tokenizer '{path}' cannot be loaded ({reason}): {_REMEDY}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"tokenizer '{path}' is a slow one ({type(tokenizer).__name__}): save it with a tokenizer.json")
    return tokenizer


def _names_local_path(path: str) -> bool:
    """Whether ``path`` can only be a path of this machine: a hub id is ``name`` or ``owner/name``."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
