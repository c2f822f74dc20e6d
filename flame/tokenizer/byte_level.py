"""Byte-level BPE as data: merges of byte strings, and the two forms that ``tokenizers`` and ``tiktoken`` keep them in.

Ids 0 to 255 are the bytes, the merges follow in the order in which they were learned, special tokens come last. So an
id is the rank of its merge, which is what ``tiktoken`` asks for.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

from flame.tokenizer.patterns import splitter

Merge = tuple[bytes, bytes]
Ranks = dict[bytes, int]
"""Token -> id."""

BYTES = 256
_PRINTABLE = {*range(33, 127), *range(161, 173), *range(174, 256)}


def _characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it can be printed."""
    others = iter(range(BYTES, 2 * BYTES))
    return [chr(byte if byte in _PRINTABLE else next(others)) for byte in range(BYTES)]


CHARACTERS = _characters()
_BYTE_OF = {character: byte for byte, character in enumerate(CHARACTERS)}


def spelled(token: bytes) -> str:
    """Writes bytes as a byte-level vocabulary does."""
    return "".join(CHARACTERS[byte] for byte in token)


def unspelled(token: str) -> bytes | None:
    """The bytes of a token of a byte-level vocabulary; None if it is not spelled so."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return None


def ranks_of(merges: Iterable[Merge]) -> Ranks:
    """Numbers the bytes and then what the merges make."""
    ranks = {bytes([byte]): byte for byte in range(BYTES)}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    return ranks


def merges_of(ranks: Mapping[bytes, int]) -> list[Merge] | None:
    """Finds the merge that makes each token: the last one in encoding it with the tokens of lower rank.

    Returns:
        The merges by rank; None if some token is not made of two others, so that no merges say the same as the ranks.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _encoded(token, ranks, rank)
            if len(parts) != 2:
                return None
            merges.append((parts[0], parts[1]))
    return merges


def _encoded(token: bytes, ranks: Mapping[bytes, int], limit: int) -> list[bytes]:
    """Encodes with the tokens whose rank is below ``limit``, lowest rank first, from the left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    pairs = [ranks.get(token[i : i + 2], limit) for i in range(len(token) - 1)]
    while pairs and (best := min(pairs)) < limit:
        place = pairs.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        del pairs[place]
        if place < len(pairs):
            pairs[place] = ranks.get(parts[place] + parts[place + 1], limit)
        if place:
            pairs[place - 1] = ranks.get(parts[place - 1] + parts[place], limit)
    return parts


def byte_level_tokenizer(merges: Sequence[Merge], pattern: str, special: Sequence[str] = ()) -> Tokenizer:
    """Builds the tokenizer of merges.

    Args:
        merges: In the order in which they were learned.
        pattern: Regular expression that splits text.
        special: Special tokens, which get the last ids.
    """
    model = models.BPE(
        vocab={spelled(token): rank for token, rank in ranks_of(merges).items()},
        merges=[(spelled(left), spelled(right)) for left, right in merges],
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def model_merges(layout: dict[str, Any]) -> list[Merge] | None:
    """The merges of a BPE model (``json.loads(tokenizer.to_str())``) as bytes; None if they are not byte-level."""
    merges = []
    for merge in layout["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pair = unspelled(left), unspelled(right)
        if pair[0] is None or pair[1] is None:
            return None
        merges.append(pair)
    return merges


def ranks_and_pattern(tokenizer: Tokenizer) -> tuple[Ranks, str] | None:
    """What ``tiktoken`` needs to give the ids of ``tokenizer`` for text without special tokens.

    Returns:
        Token -> id, and the split pattern; None if the tokenizer does anything that ``tiktoken`` cannot do: normalise,
        split more than once, know added tokens that are not special, or merge otherwise than by rank.
    """
    layout = json.loads(tokenizer.to_str())
    model, pattern = layout["model"], _only_pattern(layout["pre_tokenizer"])
    plain = not any(model.get(key) for key in ("dropout", "unk_token", "byte_fallback", "end_of_word_suffix"))
    if model["type"] != "BPE" or layout["normalizer"] or pattern is None or not plain:
        return None
    if any(not token["special"] for token in layout["added_tokens"]):
        return None
    added = {token["content"] for token in layout["added_tokens"]}
    spellings = {unspelled(token): index for token, index in model["vocab"].items() if token not in added}
    ranks = {token: index for token, index in spellings.items() if token is not None}
    if len(ranks) < len(spellings) or any(bytes([byte]) not in ranks for byte in range(BYTES)):
        return None
    return (ranks, pattern) if model_merges(layout) == merges_of(ranks) else None


def _only_pattern(layout: dict[str, Any] | None) -> str | None:
    """The regular expression of a pre-tokenizer that splits by it and then spells bytes, and does nothing else."""
    steps = (layout or {}).get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, spell = steps
    plain = not spell["add_prefix_space"] and not spell["use_regex"] and not split["invert"]
    return split["pattern"].get("Regex") if plain and split["behavior"] == "Isolated" else None
