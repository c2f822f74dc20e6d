"""Saving a tokenizer as a HuggingFace folder: complete or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flame.errors import ConfigError, DataError
from flame.files import beside, remove, replace_folder, sync
from flame.tokenizer.special_tokens import SpecialTokens

RECORD = "training.json"
"""What the tokenizer was trained on, and how."""
_MODEL = "sentencepiece.model"
_PARTS = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", RECORD, _MODEL}
"""All that a saved tokenizer may consist of."""
_PROBE = "Hello world \u00e9\n\t12345 <|bos|>"


def check_target(folder: Path, overwrite: bool) -> None:
    """Says whether a tokenizer may be saved as ``folder``, before hours are spent on it.

    Raises:
        ConfigError: Something is there already: a tokenizer without ``overwrite``, or anything else at all, such as
            the model that the tokenizer belongs to.
        DataError: Nothing can be written there.
    """
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f"nothing can be written below '{parent}': name another folder than '{folder}'")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"'{folder}' exists and is no tokenizer folder: name another")
    if not overwrite:
        raise ConfigError(f"'{folder}' holds a tokenizer already: name another folder, or give --overwrite")
    others = sorted(path.name for path in folder.iterdir() if path.name not in _PARTS)
    if others:
        raise ConfigError(
            f"'{folder}' holds more than a tokenizer ({', '.join(others[:3])}), which --overwrite would remove: "
            "name another folder"
        )


def check_template(template: str) -> None:
    """Raises ConfigError if a chat template is not Jinja as transformers knows it; an empty one is none."""
    if not template:
        return
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], chat_template=template, tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template does not compile (line {error.lineno}: {error.message}): mend it"
        ) from error
    except jinja2.TemplateError:
        pass  # it may ask for a conversation of another kind


def save_tokenizer(
    folder: Path,
    backend: Tokenizer,
    special: SpecialTokens,
    record: dict[str, Any],
    *,
    unknown: str = "",
    model: bytes = b"",
    overwrite: bool = False,
) -> PreTrainedTokenizerFast:
    """Saves a tokenizer and loads it again as ``AutoTokenizer`` does.

    The folder is written beside its place, read back, and renamed, so that it is never half there.

    Args:
        folder: Where to.
        backend: The tokenizer, special tokens included.
        special: The parts that special tokens play, and the chat template.
        record: Is kept as ``training.json``.
        unknown: The token of what the vocabulary cannot say; empty for none.
        model: A SentencePiece model, kept as ``sentencepiece.model``; empty for none.
        overwrite: Whether to replace a tokenizer that is there.

    Returns:
        The loaded tokenizer.

    Raises:
        ConfigError: Something is in the way.
        DataError: The folder cannot be written.
    """
    check_target(folder, overwrite)
    roles = special.roles() | ({"unk_token": unknown} if unknown else {})
    others = [token for token in special.tokens if token not in (*roles.values(), *dict(special.named).values())]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **roles,
        **dict(special.named),
        **({"extra_special_tokens": others} if others else {}),
    )
    if special.chat_template:
        tokenizer.chat_template = special.chat_template
    draft = beside(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(draft)
        (draft / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if model:
            (draft / _MODEL).write_bytes(model)
        loaded = _loaded_again(draft, tokenizer)
        for path in draft.iterdir():
            sync(path)
        replace_folder(draft, folder, beside(folder))
    except OSError as error:
        raise DataError(
            f"cannot save the tokenizer as '{folder}' ({error}): name a folder that can be written"
        ) from error
    finally:
        remove(draft)
    return loaded


def _loaded_again(draft: Path, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(draft, local_files_only=True)
    same = loaded(_PROBE).input_ids == tokenizer(_PROBE).input_ids and len(loaded) == len(tokenizer)
    if not same or loaded.chat_template != tokenizer.chat_template:
        raise RuntimeError(f"the tokenizer saved in {draft} does not load as it was saved")
    return loaded
