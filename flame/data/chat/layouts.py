"""The layouts in which rows hold conversations, found by their columns or named by the source's ``layout``."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from flame.data.chat.conversation import Conversation, Unfit, conversation
from flame.data.sources.records import LAYOUT, TEXT

PLAIN = "text"
"""The layout of rows that are text without turns."""

Record = dict[str, Any]

_MESSAGES = ("messages", "conversation", "conversations")
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
)
_SYSTEM = ("system", "system_prompt")
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response"), "tool"),
    "system": "system",
}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CALCULATION = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
_FINAL_ANSWER = "####"


def layout_of(record: Record) -> str:
    """The layout that a record's columns speak for.

    Raises:
        Unfit: none.
    """
    if record.get(LAYOUT):
        return record[LAYOUT]
    for column in _MESSAGES:
        if isinstance(turns := record.get(column), list):
            return "sharegpt" if turns and isinstance(turns[0], dict) and "from" in turns[0] else "messages"
    if "question" in record and record.get("choices") is not None:
        return "multiple_choice"
    if record.get("instruction") is not None and record.get("output") is not None:
        return "alpaca"
    if isinstance(answer := record.get("answer"), str) and "question" in record and _FINAL_ANSWER in answer:
        return "gsm8k"
    if _pair_of(record):
        return "prompt_completion"
    if TEXT in record:
        return PLAIN
    columns = ", ".join(map(str, record)) or "none"
    raise Unfit("no known layout", f"columns {columns}: name the source's layout, or the text_column of plain text")


def _pair_of(record: Record) -> tuple[str, str] | None:
    """The columns of prompt and answer; one may be null, if no other pair is whole: parquet has every row's columns."""
    holding = [[column for column in pair if record.get(column) is not None] for pair in _PAIRS]
    for least in (2, 1):
        for pair, held in zip(_PAIRS, holding, strict=True):
            if len(held) >= least and all(column in record for column in pair):
                return pair
    return None


def read_record(record: Record, layout: str, with_code: bool) -> Conversation:
    """The conversation of a record that has turns.

    Args:
        record: a row of a source.
        layout: any but ``text``.
        with_code: whether the template can write parts of Python code and their output.

    Raises:
        Unfit: it holds none.
    """
    return _READERS[layout](record, with_code)


def _messages(record: Record, with_code: bool) -> Conversation:
    turns = next((record[column] for column in _MESSAGES if record.get(column) is not None), None)
    found = conversation(_with_system(record, turns), record.get("tools"))
    if not with_code and any(isinstance(message["content"], list) for message in found.messages):
        raise Unfit("parts of Python code", "the chat template has no place for them; nanochat's has")
    return found


def _sharegpt(record: Record, with_code: bool) -> Conversation:
    turns = next((record[column] for column in _MESSAGES if record.get(column) is not None), None)
    if not isinstance(turns, list):
        raise Unfit("empty conversation", "no column 'conversations' with turns")
    messages: list[Record] = []
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            raise Unfit("unknown role", f"from {speaker!r}; it is one of {', '.join(_SHAREGPT_ROLES)}")
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    return conversation(_with_system(record, messages), record.get("tools"))


def _prompt_completion(record: Record, with_code: bool) -> Conversation:
    """Texts, or lists of messages for both, as trl has it."""
    pair = _pair_of(record)
    if pair is None:
        raise Unfit("no prompt and completion", f"columns {', '.join(map(str, record))}")
    prompt, answer = record[pair[0]], record[pair[1]]
    if isinstance(prompt, list) and isinstance(answer, list):
        return conversation(_with_system(record, [*prompt, *answer]), record.get("tools"))
    return _dialogue(record, prompt, answer)


def _alpaca(record: Record, with_code: bool) -> Conversation:
    instruction, given = record.get("instruction"), record.get("input")
    if isinstance(instruction, str) and isinstance(given, str) and given.strip():
        instruction = f"{instruction}\n\n{given}"
    return _dialogue(record, instruction, record.get("output"))


def _gsm8k(record: Record, with_code: bool) -> Conversation:
    """Calculations ``<<48/2=24>>`` become calls of Python with their output, or are left out where the template knows
    none: their result stands in the text anyway."""
    question, answer = record.get("question"), record.get("answer")
    if not isinstance(answer, str):
        raise Unfit("content is no text", f"answer: {type(answer).__name__}")
    if not with_code:
        return _dialogue(record, question, _CALCULATION.sub("", answer))
    parts, end = [], 0
    for match in _CALCULATION.finditer(answer):
        parts.append({"type": "text", "text": answer[end : match.start()]})
        parts += [{"type": "python", "text": match[1]}, {"type": "python_output", "text": match[2]}]
        end = match.end()
    parts.append({"type": "text", "text": answer[end:]})
    return _dialogue(record, question, [part for part in parts if part["text"]])


def _multiple_choice(record: Record, with_code: bool) -> Conversation:
    """The choices one a line, each followed by its letter without a space, so that the letter is the same token as in
    the answer (nanochat)."""
    choices, letters = record.get("choices"), list(_LETTERS)
    if isinstance(choices, dict):  # ARC
        choices, letters = choices.get("text"), choices.get("label")
    if not isinstance(choices, list) or not isinstance(letters, list) or not 0 < len(choices) <= len(letters):
        raise Unfit("no choices", f"'choices' is {type(record.get('choices')).__name__}")
    answer = record.get("answer", record.get("answerKey"))
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        answer = letters[answer]
    if answer not in letters[: len(choices)]:
        raise Unfit("answer is none of the choices", f"{answer!r} of {len(choices)}")
    lines = [f"- {choice}={letter}" for choice, letter in zip(choices, letters, strict=False)]
    question = "\n".join([f"Multiple choice: {record.get('question')}", *lines, "", "Answer with the letter only."])
    return _dialogue(record, question, answer)


def _dialogue(record: Record, question: Any, answer: Any) -> Conversation:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return conversation([*_system(record), *turns], record.get("tools"))


def _with_system(record: Record, turns: Any) -> Any:
    """Turns after what the row says to the system, unless they say something to it themselves."""
    if not isinstance(turns, list) or not turns:
        return turns
    has_own = isinstance(turns[0], dict) and turns[0].get("role") == "system"
    return turns if has_own else [*_system(record), *turns]


def _system(record: Record) -> Iterable[Record]:
    text = next((record[column] for column in _SYSTEM if record.get(column)), None)
    return [{"role": "system", "content": text}] if text else []


_READERS: dict[str, Callable[[Record, bool], Conversation]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "gsm8k": _gsm8k,
    "multiple_choice": _multiple_choice,
}
LAYOUTS = (*_READERS, PLAIN)
"""What a source's ``layout`` may be."""
