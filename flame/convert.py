"""Names of weights in other layouts: one table of patterns serves both directions.

A table maps another layout's name to the model's; ``*`` stands for a layer's number. A family declares its own as
``checkpoint_names`` of its PreTrainedModel.
"""

import re
from collections.abc import Callable, Mapping
from functools import reduce

Names = Mapping[str, str]


def renamer(names: Names) -> Callable[[str], str]:
    """What turns another layout's name into the model's; a name the table does not know stays as it is.

    Args:
        names: the table.
    """
    patterns = [(re.compile(re.escape(other).replace(r"\*", r"(\d+)")), own) for other, own in names.items()]

    def rename(name: str) -> str:
        for pattern, own in patterns:
            if match := pattern.fullmatch(name):
                return reduce(lambda filled, number: filled.replace("*", number, 1), match.groups(), own)
        return name

    return rename


def inverted(names: Names) -> dict[str, str]:
    """The table for the way back.

    Raises:
        ValueError: two names have become one, so that there is no way back.
    """
    back = {own: other for other, own in names.items()}
    if len(back) < len(names):
        raise ValueError(f"{len(names)} names become {len(back)}; every name needs one of its own")
    return back
