from dataclasses import dataclass, fields
from typing import get_type_hints

import pytest

from flame.errors import ConfigError
from flame.inference.decoders.base import load_decoder, objectives
from flame.inference.options import Options, add_arguments, choose, option
from flame.utils.arguments import Arguments


@dataclass
class Warm(Options):
    heat: float | None = option(None, "how warm", low=0, high=2)
    order: str = option("left", "where to begin", choices=("left", "right"))
    loud: bool = option(False, "says so")


KINDS = {"warm": Warm, "plain": Options}


def chosen(objective: str, *words: str) -> Options:
    parser = Arguments("flame generate", "")
    add_arguments(parser, KINDS)
    return choose(vars(parser.parse_args(list(words))), KINDS, objective, "llama")


def test_what_is_not_given_keeps_its_default() -> None:
    assert chosen("warm") == Warm()
    assert chosen("warm", "--heat", "1.5", "--loud") == Warm(heat=1.5, loud=True)


def test_an_option_of_another_decoder_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--heat: family 'llama' \(plain\) has no use for it; it is for warm"):
        chosen("plain", "--heat", "1")


@pytest.mark.parametrize(
    "words",
    [
        ("--heat", "2.5"),
        ("--heat", "-0.1"),
        ("--heat", "nan"),
        ("--heat", "inf"),
        ("--max_new_tokens", str(10**30)),
        ("--heat", "hot"),
        ("--order", "up"),
        ("--max_new_tokens", "0"),
    ],
)
def test_values_out_of_range_are_refused_by_name(words: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=words[0]):
        chosen("warm", *words)


def test_an_option_means_the_same_type_for_every_decoder() -> None:
    kinds = [load_decoder(objective).Options for objective in objectives()]
    hints: dict[str, type] = {}
    for kind in kinds:
        for item in fields(kind):
            assert hints.setdefault(item.name, get_type_hints(kind)[item.name]) == get_type_hints(kind)[item.name]
            assert item.metadata["help"]


def test_there_is_no_decoder_for_an_unknown_objective() -> None:
    with pytest.raises(ConfigError, match="'telepathy'; known: autoregressive"):
        load_decoder("telepathy")
