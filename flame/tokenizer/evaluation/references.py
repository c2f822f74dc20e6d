"""Tokenizers to compare with: GPT-2's and GPT-4's (cl100k) where this machine has them, and any others by name."""

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer

from flame.errors import ConfigError, DataError
from flame.tokenizer.byte_level import Ranks, byte_level_tokenizer, merges_of, ranks_of, unspelled
from flame.tokenizer.load import load_tokenizer
from flame.tokenizer.patterns import PATTERNS

_OPENAI = "https://openaipublic.blob.core.windows.net"
_GPT2_MERGES = f"{_OPENAI}/gpt-2/encodings/main/vocab.bpe"
_CL100K_RANKS = f"{_OPENAI}/encodings/cl100k_base.tiktoken"
_HUB_IDS = {"gpt2": ("openai-community/gpt2", "gpt2"), "cl100k": ("Xenova/gpt-4",)}
USUAL = tuple(_HUB_IDS)


def find_references(names: Sequence[str]) -> tuple[dict[str, Tokenizer], list[str]]:
    """Loads the tokenizers to compare with.

    Args:
        names: ``gpt2`` and ``cl100k`` are looked for in the caches of tiktoken and HuggingFace and never downloaded.
            Everything else is a folder, a ``.tiktoken`` file, a hub id, or a built-in tokenizer.

    Returns:
        Name -> tokenizer, and those of ``gpt2`` and ``cl100k`` that this machine does not have.

    Raises:
        ConfigError: There is no tokenizer of such a name.
        DataError: One of them cannot be read.
    """
    found, missing = {}, []
    for name in names:
        tokenizer = _usual(name) if name in USUAL else _named(name)
        if tokenizer is None:
            missing.append(name)
        else:
            found[name] = tokenizer
    return found, missing


def _named(name: str) -> Tokenizer:
    if name.endswith(".tiktoken"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"no file '{name}': name a folder, a hub id, a .tiktoken file, or {' or '.join(USUAL)}")
        return _from_ranks(path, "o200k" if path.name.startswith("o200k") else "gpt4")
    return Tokenizer.from_str(load_tokenizer(name).backend_tokenizer.to_str())


def _usual(name: str) -> Tokenizer | None:
    cached = _tiktoken_cached(_GPT2_MERGES if name == "gpt2" else _CL100K_RANKS)
    if cached:
        return _from_merges(cached) if name == "gpt2" else _from_ranks(cached, "gpt4")
    for hub_id in _HUB_IDS[name]:
        path = try_to_load_from_cache(hub_id, "tokenizer.json")
        if isinstance(path, str):
            return Tokenizer.from_file(path)
    return None


def _tiktoken_cached(url: str) -> Path | None:
    """Where tiktoken would keep the file of a URL, if it is there."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    path = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache") / hashlib.sha1(url.encode()).hexdigest()
    return path if path.is_file() else None


def _from_ranks(path: Path, pattern: str) -> Tokenizer:
    """Reads a ``.tiktoken`` file: a token in base 64 and its rank on every line."""
    ranks: Ranks = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise DataError(
                f"{path}, line {number} is no token with its rank ({error}): fetch the file again"
            ) from error
    merges = merges_of(ranks)
    if merges is None or len(ranks) != len(ranks_of(merges)):
        raise DataError(f"{path} holds tokens that are not made of others: fetch the file again")
    return byte_level_tokenizer(merges, PATTERNS[pattern])


def _from_merges(path: Path) -> Tokenizer:
    """Reads GPT-2's ``vocab.bpe``: a comment, then two tokens, spelled byte by byte, on every line."""
    merges = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[1:], start=2):
        pair = [unspelled(token) for token in line.split(" ")]
        if len(pair) != 2 or pair[0] is None or pair[1] is None:
            raise DataError(f"{path}, line {number} is no merge of two tokens: fetch the file again")
        merges.append((pair[0], pair[1]))
    return byte_level_tokenizer(merges, PATTERNS["gpt2"])
