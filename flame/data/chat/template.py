"""Chat templates, rendered as transformers renders them, with the places of what the assistant says.

The environment is HuggingFace's: sandboxed, blocks trimmed, ``tojson``, ``raise_exception``, ``{% generation %}``. One
thing differs: ``strftime_now`` gives the same day always, since what is trained on is a function of the job alone.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NamedTuple

import jinja2
from jinja2 import ext, nodes, parser, runtime, sandbox

from flame.data.chat.conversation import MARKS, Conversation, Message, Unfit
from flame.errors import ConfigError, DataError

_BEGIN, _END, _BREAK = MARKS
_DAY = datetime(2024, 7, 26, tzinfo=timezone.utc)  # the day that Llama 3's template falls back to
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What templates raise besides jinja2's own errors when a message is not of the shape they expect.
_SHAPE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError)


class Rendered(NamedTuple):
    """A conversation as text."""

    parts: list[str]
    """The text, cut inside every special token's name that a message held: no part holds such a name but those that
    the template wrote."""
    spans: list[tuple[int, int]]
    """What is scored, as characters of the whole text."""


class ChatTemplate:
    """A chat template; picklable.

    Args:
        source: in Jinja.
        special_tokens: what the template may write by name: ``bos_token``, ``eos_token``, ...
        control: contents of special tokens, which messages are to hold as text only.

    Raises:
        ConfigError: the source is no Jinja.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], control: list[str]):
        self.source = source
        self._special_tokens = special_tokens
        self._control = [name for name in control if name]
        self._characters = [name for name in control if len(name) == 1]
        self.marks_generation = bool(_GENERATION.search(source))
        """Whether the template says itself what is scored."""
        self._compile()

    @property
    def knows_code(self) -> bool:
        """Whether it writes parts of Python code and their output."""
        return "python_output" in self.source

    def render(self, conversation: Conversation) -> Rendered:
        """Writes a conversation.

        Raises:
            Unfit: the template refuses the conversation.
            DataError: the template has no ``{% generation %}`` and writes earlier turns differently once others follow.
        """
        messages, tools = self._guarded(conversation.messages), self._guarded(conversation.tools)
        if self.marks_generation:
            return _taken_apart(self._render(messages, tools))
        return self._by_prefixes(messages, tools)

    def count_control(self, rendered: Rendered, without: str | None) -> int:
        """How many special tokens, other than one, the template wrote."""
        if self._names is None:
            return 0
        return sum(name != without for part in rendered.parts for name in self._names.findall(part))

    def __getstate__(self) -> dict[str, Any]:
        # Compiled templates do not pickle.
        return {name: value for name, value in self.__dict__.items() if name not in ("_template", "_names")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compile()

    def _compile(self) -> None:
        try:
            self._template = _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the chat template is no Jinja ({error}): name another in task.chat_template") from error
        names = sorted(map(re.escape, self._control), key=len, reverse=True)
        self._names = re.compile("|".join(names)) if names else None
        self._endings = tuple(self._control)

    def _guarded(self, value: Any) -> Any:
        """The value with a mark after the first character of every special token's name in it, however nested."""
        if isinstance(value, str):
            return self._broken(value)
        if isinstance(value, dict):
            return {self._guarded(key): self._guarded(inner) for key, inner in value.items()}
        return [self._guarded(inner) for inner in value] if isinstance(value, list) else value

    def _broken(self, text: str) -> str:
        for character in self._characters:
            if character in text:
                raise Unfit("special tokens in the text", f"{character!r} is one, which nothing can break")
        pieces, start = [], 0
        while self._names is not None and (found := self._names.search(text, start)):
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1
        return _BREAK.join([*pieces, text[start:]]) if pieces else text

    def _render(self, messages: list[Message], tools: Any, prompt: bool = False) -> str:
        given = {**self._special_tokens, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        try:
            return self._template.render(messages=messages, **given)
        except _SHAPE_ERRORS as error:
            raise Unfit("refused by the chat template", f"{type(error).__name__}: {error}") from error

    def _by_prefixes(self, messages: list[Message], tools: Any) -> Rendered:
        """Finds each answer between what the template writes up to its beginning and up to its end."""
        whole = self._render(messages, tools)
        marked, done = "", 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = self._begin(messages[:number], tools, whole)
            last = number == len(messages) - 1
            until = whole if last else self._render(messages[: number + 1], tools)
            if not (done <= start <= len(until) and whole.startswith(until)):
                raise DataError(
                    f"the chat template writes turn {number + 1} differently once others follow, so that what is "
                    "scored cannot be found: mark it with {% generation %} ... {% endgeneration %}, or set "
                    "task.chat_template to another"
                )
            end = self._end(whole, start, len(until))
            marked += whole[done:start] + _BEGIN + whole[start:end] + _END
            done = end
        return _taken_apart(marked + whole[done:])

    def _begin(self, before: list[Message], tools: Any, whole: str) -> int:
        """Where an answer begins: after the prompt for it, if the template writes that into conversations too."""
        for prompt in (True, False):
            start = self._render(before, tools, prompt)
            if whole.startswith(start):
                return len(start)
        return -1

    def _end(self, whole: str, start: int, stop: int) -> int:
        """Where an answer ends: with the special token that stops it, if but white space comes after that."""
        text = whole[start:stop].rstrip()
        return start + len(text) if text.endswith(self._endings) else stop


def _taken_apart(marked: str) -> Rendered:
    """Splits a text at its marks into what ``Rendered`` has."""
    parts, spans, begins = [""], [], []
    length = 0
    for piece in re.split(f"([{MARKS}])", marked):
        if piece == _BREAK:
            parts.append("")
        elif piece == _BEGIN:
            begins.append(length)
        elif piece == _END:
            start = begins.pop()
            if not begins and length > start:
                spans.append((start, length))
        else:
            parts[-1] += piece
            length += len(piece)
    return Rendered(parts, spans)


class _Generation(ext.Extension):
    """The tag ``{% generation %} ... {% endgeneration %}``: its text comes out between two marks."""

    tags = {"generation"}

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

    def marked(self, caller: runtime.Macro) -> str:
        return f"{_BEGIN}{caller()}{_END}"


def _environment() -> sandbox.ImmutableSandboxedEnvironment:
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _refuse,
        "strftime_now": _DAY.strftime,
    }
    environment.globals.update(functions)
    environment.filters["tojson"] = _to_json
    return environment


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
