"""How fast texts are encoded, in several ways side by side."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LEAST_BYTES = 1 << 20
_TEXTS_PER_CALL = 64
_RUNS = 3


def encoding_speeds(ways: Mapping[str, Callable[[list[str]], Any]], texts: Sequence[str]) -> dict[str, float]:
    """Times ways of encoding over the same texts, taking turns so that a busy machine is unfair to none.

    Args:
        ways: Name -> a function that encodes a list of texts.
        texts: Repeated until they make 1 MB.

    Returns:
        Name -> MB of UTF-8 per second, the median of three runs.
    """
    size = sum(len(text.encode()) for text in texts)
    repeated = list(texts) * max(1, -(-LEAST_BYTES // max(1, size)))
    batches = [repeated[start : start + _TEXTS_PER_CALL] for start in range(0, len(repeated), _TEXTS_PER_CALL)]
    megabytes = size * (len(repeated) // len(texts)) / 1e6
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_RUNS):
        for name, encode in ways.items():
            start = time.perf_counter()
            for batch in batches:
                encode(batch)
            seconds[name].append(time.perf_counter() - start)
    return {name: round(megabytes / statistics.median(times), 2) for name, times in seconds.items()}
