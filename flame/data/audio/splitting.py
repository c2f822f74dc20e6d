"""Which recordings are held out, and which are joined: functions of their names and the seed."""

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from flame.data.audio.collect import Utterance
from flame.data.audio.recording import join
from flame.errors import DataError

_MILLISECONDS = 3  # digits of a silence


def hold_out(
    utterances: Sequence[Utterance], share: float, seed: int, group: re.Pattern[str] | None
) -> tuple[list[Utterance], list[Utterance]]:
    """Divides utterances by a hash of their names, so that what is added later moves none of them.

    Args:
        utterances: All of them.
        share: Of the groups that are held out, about; more than 0 holds out one at least.
        seed: Draws another division.
        group: What it finds in a name is held out together; None for each by itself.

    Returns:
        Those to train on, and those held out, in the order they were in.

    Raises:
        DataError: A name has no such group, or there are too few to divide.
    """
    places = {name: _place(name, seed) for name in {_group(utterance.name, group) for utterance in utterances}}
    held = {name for name, place in places.items() if place < share}
    if share and not held:
        held = {min(places, key=lambda name: (places[name], name))}
    if held and len(held) == len(places):
        held.discard(max(places, key=lambda name: (places[name], name)))
    if share and not held:
        raise DataError(
            f"all recordings are of the group '{next(iter(places))}': set --validation 0, or another --group"
        )
    parts: tuple[list[Utterance], list[Utterance]] = ([], [])
    for utterance in utterances:
        parts[_group(utterance.name, group) in held].append(utterance)
    return parts


def joined(
    utterances: Sequence[Utterance],
    count: int,
    parts: tuple[int, int],
    silence: tuple[float, float],
    seed: Sequence[int],
) -> Iterator[Utterance]:
    """Joins utterances at random, each about as often as any other.

    Args:
        utterances: What is joined; their order matters.
        count: How many to make.
        parts: Fewest and most utterances in one.
        silence: Least and most seconds between each two.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    stream = _endless(len(utterances), rng)
    for _ in range(count):
        chosen = [utterances[next(stream)] for _ in range(int(rng.integers(parts[0], parts[1] + 1)))]
        silences = [round(float(rng.uniform(*silence)), _MILLISECONDS) for _ in chosen[1:]]
        yield Utterance(
            join([utterance.recording for utterance in chosen], silences),
            sum(utterance.seconds for utterance in chosen) + sum(silences),
            " ".join(utterance.text for utterance in chosen),
            " ".join(utterance.name for utterance in chosen),
        )


def _endless(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Numbers below ``count``, all of them before one comes again."""
    while True:
        yield from rng.permutation(count).tolist()


def _group(name: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is None:
        return name
    found = pattern.search(name)
    if found is None:
        raise DataError(f"--group '{pattern.pattern}' finds nothing in '{name}': mend it")
    return found[pattern.groups] or ""


def _place(name: str, seed: int) -> float:
    """A number from 0 to 1 for a name."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
