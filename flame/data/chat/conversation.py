"""Conversations as chat templates take them, and what makes a row none.

A message is ``{"role": ..., "content": ...}``, with ``tool_calls`` as OpenAI writes them. Content is text, or a list of
parts ``{"type": "text" | "python" | "python_output", "text": ...}`` (nanochat's; only the assistant has the last two).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

# Who may speak after whom; nobody stands for the beginning.
_FOLLOWS: dict[str, tuple[str, ...]] = {
    "nobody": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
ROLES = tuple(role for role in _FOLLOWS if role != "nobody")
_CODE_PARTS = ("python", "python_output")
_MEDIA = ("image", "audio", "video")
_DEEPEST = 100  # levels of lists and objects inside each other
MARKS = "\ufdd0\ufdd1\ufdd2"
"""Noncharacters, which no text holds: where a scored span begins and ends, and what breaks a special token's name."""


class Unfit(Exception):
    """A row that cannot be trained on.

    Args:
        reason: short and the same for every row with this fault.
        detail: what this row has.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Conversation:
    """Validated messages, the last of them the assistant's."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    """Descriptions of the tools (JSON schemas) that the template may show the model."""

    @property
    def exchanges(self) -> list[list[Message]]:
        """The messages without a system message, cut before every user message."""
        found: list[list[Message]] = []
        for message in self.messages:
            if message["role"] == "user":
                found.append([])
            if found:
                found[-1].append(message)
        return found

    def part(self, exchanges: list[list[Message]]) -> "Conversation":
        """A conversation of some of the exchanges, after the same system message."""
        head = self.messages[:1] if self.messages[0]["role"] == "system" else []
        return Conversation([*head, *(message for exchange in exchanges for message in exchange)], self.tools)


def conversation(messages: Any, tools: Any = None) -> Conversation:
    """Validates messages; turns after the last one of the assistant are left out.

    Raises:
        Unfit: they are no conversation, or nothing in them is the assistant's.
    """
    if not isinstance(messages, list) or not messages:
        raise Unfit("empty conversation", "" if isinstance(messages, list) else f"messages is {_kind(messages)}")
    checked, before = [], "nobody"
    for number, message in enumerate(messages, 1):
        checked.append(_message(message, f"message {number}"))
        role = checked[-1]["role"]
        if role not in _FOLLOWS[before]:
            raise Unfit("wrong role order", f"message {number} is the {role}'s, after {before}")
        before = role
    answers = [number for number, message in enumerate(checked, 1) if message["role"] == "assistant"]
    if not answers:
        raise Unfit("no assistant turn")
    return Conversation(checked[: answers[-1]], _tools(tools))


def strings(value: Any) -> Iterator[str]:
    """All strings inside a value of lists and dicts, keys included.

    Raises:
        Unfit: it is nested so deeply that code which reads it level by level would break.
    """
    waiting = [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEEPEST:
            raise Unfit("nested too deeply", f"over {_DEEPEST} levels")
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise Unfit("message is no object", f"{where} is {_kind(message)}")
    role = message.get("role")
    if role not in ROLES:
        raise Unfit("unknown role", f"{where}: {role!r}; roles are {', '.join(ROLES)}")
    kept = {key: value for key, value in message.items() if value is not None}  # parquet fills absent keys with null
    calls = kept.pop("tool_calls", [])
    if not isinstance(calls, list) or calls and role != "assistant":
        raise Unfit("tool calls that are none", f"{where} of the {role}: {_kind(calls)}")
    if calls:
        kept["tool_calls"] = [_tool_call(call, where) for call in calls]
    kept["content"] = _content(kept.get("content", "" if calls else None), role, where)
    if not calls and role in ("user", "assistant") and not any(text.strip() for text in strings(kept["content"])):
        raise Unfit("empty content", f"{where} of the {role}")
    for text in strings(kept):
        _check_characters(text, where)
    return kept


def _content(content: Any, role: str, where: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unfit("content is no text", f"{where}: {_kind(content)}")
    parts = [_part(part, role, where) for part in content]
    if any(part["type"] in _CODE_PARTS for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def _part(part: Any, role: str, where: str) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else _kind(part)
    if isinstance(kind, str) and any(medium in kind for medium in _MEDIA):
        raise Unfit("images, audio and video are not trained on", f"{where} has a part of type {kind!r}")
    if kind != "text" and not (kind in _CODE_PARTS and role == "assistant"):
        raise Unfit("unknown part type", f"{where} of the {role}: {kind!r}")
    text = part.get("text")
    if not isinstance(text, str):
        raise Unfit("part without text", f"{where}: 'text' is {_kind(text)}")
    return {"type": kind, "text": text}


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """The call as templates expect it, with arguments as an object where they are the JSON of one."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Unfit("tool calls that are none", f"{where}: a call has no function name")
    arguments = _without_nulls(function.get("arguments"), where) or {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "null")
        except (ValueError, RecursionError) as error:
            raise Unfit("tools that are none", f"no JSON: {error}") from error
    else:
        tools = _without_nulls(tools, "tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unfit("tools that are none", f"{_kind(tools)} instead of a list of JSON schemas")
    for text in strings(tools):
        _check_characters(text, "tools")
    return tools


def _without_nulls(value: Any, where: str, depth: int = 0) -> Any:
    """The value without the absent keys that parquet fills with null, since all its rows have the same ones."""
    if depth > _DEEPEST:
        raise Unfit("nested too deeply", f"{where}: over {_DEEPEST} levels")
    if isinstance(value, dict):
        return {key: _without_nulls(inner, where, depth + 1) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner, where, depth + 1) for inner in value] if isinstance(value, list) else value


def _check_characters(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unfit("invalid UTF-8", f"{where}: {error}") from error
    if any(mark in text for mark in MARKS):
        raise Unfit("Unicode noncharacters", f"{where} holds one of U+FDD0 to U+FDD2")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__}"
