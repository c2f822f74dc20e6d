"""The contract of a decoder, and how it is found."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers.generation.streamers import BaseStreamer

from flame.errors import ConfigError, FlameError
from flame.inference import decoders
from flame.inference.engine import Engine
from flame.inference.options import Options as BaseOptions
from flame.inference.prompts import Encoder, Prompt
from flame.inference.text import TextStream


@dataclass
class Completion:
    """What was made of one prompt."""

    text: str
    """What follows the prompt, up to the first string to stop at."""
    tokens: int
    """How many tokens were made, the one that ended the text included."""
    finish: str
    """Why it ended: ``eos``, ``stop`` (a string to stop at) or ``length``."""
    stop: str = ""
    """The string that ended it."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What else a decoder tells of its work, JSON values."""


class Decoder:
    """Continues prompts with a model of one objective.

    A decoder is a class called ``DECODER`` in ``flame/inference/decoders/<objective>.py``. Its ``Options`` are words of
    ``flame generate``.
    """

    Options: ClassVar[type[BaseOptions]] = BaseOptions
    gives_spaces_back: ClassVar[bool] = False
    """Whether spaces at the end of a prompt are made by the model; see ``Encoder``."""
    figures: ClassVar[tuple[str, ...]] = ()
    """The names of what ``Completion.figures`` may hold."""

    def __init__(self, engine: Engine, options: Any, stops: Sequence[str] = ()) -> None:
        self.engine = engine
        self.options = options
        self.stops = tuple(stops)
        self.encoder = Encoder(engine, self.gives_spaces_back)

    def pads(self) -> bool:
        """Whether prompts of different lengths may share a batch."""
        return False

    def run(self, prompts: Sequence[Prompt], show: Callable[[str], None] | None = None) -> list[Completion]:
        """Continues a batch of prompts; torch's global generators are drawn from.

        Args:
            prompts: of one length unless ``pads``.
            show: is given the text of a single prompt as it is made.
        """
        raise NotImplementedError

    def completion(self, prompt: Prompt, tokens: Sequence[int]) -> Completion:
        """Reads the tokens that a row became; what stands behind its end is filling."""
        stream = self.stream(prompt)
        count, finish = 0, "length"
        for token in tokens:
            count += 1
            if token in self.engine.ends:
                finish = "eos"
                break
            stream.push(token)
            if stream.stopped:
                break
        stream.flush()
        return Completion(stream.text, count, "stop" if stream.stopped else finish, stream.stopped)

    def stream(self, prompt: Prompt) -> TextStream:
        """What reads the tokens that follow a prompt. Spaces given back stand in the prompt already."""
        return TextStream(self.engine.tokenizer, prompt.ids, self.stops, len(prompt.spaces))

    def streamer(self, prompt: Prompt, show: Callable[[str], None]) -> BaseStreamer:
        """What ``generate`` of transformers and of its like hands the tokens of a single row to."""
        return _Streamer(self.stream(prompt), self.engine.ends, show)


class _Streamer(BaseStreamer):
    def __init__(self, stream: TextStream, ends: Sequence[int], show: Callable[[str], None]) -> None:
        self._stream = stream
        self._ends = ends
        self._show = show
        self._prompt, self._over = True, False

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then tokens; what follows the end is filling."""
        tokens = [] if self._prompt else value.flatten().tolist()
        self._prompt = False
        for token in tokens:
            self._over = self._over or token in self._ends
            if not self._over:
                self._show(self._stream.push(token))

    def end(self) -> None:
        """No token follows."""
        self._show(self._stream.flush())


@contextmanager
def refusals() -> Iterator[None]:
    """Options that a model's own ``generate`` refuses are the user's to mend."""
    try:
        yield
    except FlameError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_decoder(objective: str) -> type[Decoder]:
    """The decoder for an objective.

    Raises:
        ConfigError: none is known.
    """
    known = objectives()
    if objective not in known:
        raise ConfigError(f"there is no decoder for models of objective '{objective}'; known: {', '.join(known)}")
    return importlib.import_module(f"{decoders.__name__}.{objective}").DECODER


def objectives() -> list[str]:
    """The objectives that there are decoders for."""
    return sorted(found.name for found in pkgutil.iter_modules(decoders.__path__) if found.name != "base")
