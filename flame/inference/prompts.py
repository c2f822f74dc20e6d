"""Prompts: where they are read from, and the tokens that are made of them."""

import io
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from flame.errors import ConfigError, DataError, FlameError
from flame.inference.engine import Engine


@dataclass(frozen=True)
class Prompt:
    """A text to continue."""

    text: str
    ids: list[int]
    """Its tokens, the one that begins a text in front, without the spaces at its end."""
    spaces: str = ""
    """The spaces at its end, which the continuation begins with."""
    values: dict[str, Any] = field(default_factory=dict)
    """What else the line of the file held; goes into the answer."""


def read_prompts(texts: Sequence[str], file: str, reserved: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """The prompts of a command line, each ``{"prompt": text, ...}``.

    Args:
        texts: as given; ``-`` reads standard input as one prompt.
        file: JSON lines, each a string or an object with ``prompt``; ``-`` is standard input.
        reserved: keys that a line may not have, since the answer has them.

    Raises:
        ConfigError: no such file, or both read standard input.
        DataError: a line that is neither or is no text, or no line at all.
    """
    if [*texts, file].count("-") > 1:
        raise ConfigError("standard input can be read once: give '-' to one --prompt or to --prompt_file")
    for number, text in enumerate(texts, 1):
        where = f"--prompt number {number}" if len(texts) > 1 else "--prompt"
        yield {"prompt": check_characters(_standard_input().read() if text == "-" else text, where)}
    if not file:
        return
    path = Path(file)
    if file != "-" and not path.is_file():
        raise ConfigError(f"--prompt_file '{file}' is no file; give JSON lines, or '-' for standard input")
    count = 0
    with _standard_input() if file == "-" else path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                count += 1
                yield _record(line, f"--prompt_file '{file}', line {number}", reserved)
    if not count:
        raise DataError(f"--prompt_file '{file}' holds no prompts; give one JSON string or object a line")


def check_characters(text: str, where: str) -> str:
    """Returns a text if it has characters only: bytes that are no UTF-8 reach Python as halves of them.

    Raises:
        DataError: it has others; ``where`` it stands is named.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start + 1} is no Unicode; write UTF-8, without surrogates"
        ) from error
    return text


def _standard_input() -> TextIO:
    """Standard input, which reads as a file does and is not stopped by bytes that are no UTF-8."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    return sys.stdin


def _record(line: str, where: str, reserved: Collection[str]) -> dict[str, Any]:
    try:
        value = json.loads(check_characters(line, where))
    except FlameError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f'{where} is not JSON: {error}; write "text" or {{"prompt": "text"}}') from error
    record = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise DataError(f'{where} holds no prompt; write "text" or {{"prompt": "text"}}')
    # JSON can spell half a character.
    check_characters(json.dumps(record, ensure_ascii=False), f"{where}, as JSON means it")
    if taken := sorted(record.keys() & set(reserved)):
        raise DataError(f"{where}: --json writes '{taken[0]}' itself; give that key another name")
    return record


class Encoder:
    """Makes ``Prompt``s.

    Spaces at the end of a prompt are given back to the model: most tokenizers put a space in front of a word, so a
    model has never seen one alone, and "def " would be continued with something else than a name.
    """

    def __init__(self, engine: Engine, gives_spaces_back: bool = True) -> None:
        self._engine = engine
        self._gives_spaces_back = gives_spaces_back
        self._texts: list[str] = []  # of every token
        self._refused: dict[str, torch.Tensor] = {}

    def encode(self, record: dict[str, Any]) -> Prompt:
        """Raises ConfigError where there is nothing to begin a text with."""
        text = record["prompt"]
        shown = text.rstrip(" ")
        spaces = text[len(shown) :]
        if not self._gives_spaces_back or spaces and self.refused(spaces).all():
            shown, spaces = text, ""
        tokenizer, begin = self._engine.tokenizer, self._engine.begin
        ids = [] if begin is None else [begin]
        ids += tokenizer(shown, add_special_tokens=False).input_ids
        if not ids:
            raise ConfigError("--prompt is empty and the tokenizer has no token to begin a text with; give a prompt")
        return Prompt(text, ids, spaces, {key: value for key, value in record.items() if key != "prompt"})

    def refused(self, start: str) -> torch.Tensor:
        """The tokens [V] whose text does not begin with ``start``."""
        if start not in self._refused:
            tokenizer = self._engine.tokenizer
            self._texts = self._texts or tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
            self._refused[start] = torch.tensor([not text.startswith(start) for text in self._texts])
        return self._refused[start]
