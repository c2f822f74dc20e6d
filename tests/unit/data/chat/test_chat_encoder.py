"""Rows to ids: bad ones by reason, long ones split, cut or left out, and counted."""

from typing import Any, Literal

import numpy as np
import pytest
from chat_templates import CHATML, talk
from transformers import PreTrainedTokenizerFast

from flame.data.chat.builtin import PLAIN_TEMPLATE
from flame.data.chat.encoder import ChatEncoder
from flame.data.sources.records import LAYOUT, BadRow


def made(
    tokenizer: PreTrainedTokenizerFast, length: int, too_long: Literal["split", "cut", "skip"] = "split"
) -> ChatEncoder:
    return ChatEncoder(tokenizer, PLAIN_TEMPLATE, max_tokens=length, too_long=too_long)


def text(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray, scored: bool = False) -> str:
    kept = [int(token) if token >= 0 else ~int(token) for token in ids if token >= 0 or not scored]
    return str(tokenizer.decode(kept))


def reasons(encoder: ChatEncoder) -> list[str]:
    return [reason for reason, _ in encoder.drain()]


LONG = talk("a" * 20, "b" * 20, "c" * 20, "d" * 20, "e" * 20, "f" * 20, system="Be.")


def test_good_and_bad_rows_come_back_in_their_places(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    records: list[dict[str, Any]] = [
        {"messages": []},
        {"prompt": "a", "completion": "b"},
        {"text": "plain"},
        {"url": 1},
        {LAYOUT: "text", "text": "a", "messages": talk("x", "y")},
        {"messages": talk("c", "d")},
    ]
    first, pair, plain, unknown, named, last = made(chat_tokenizer, 100).encode(records)
    assert isinstance(first, BadRow) and first.reason == "empty conversation" and first.where == ""
    assert isinstance(unknown, BadRow) and unknown.reason == "no known layout"
    assert isinstance(pair, np.ndarray) and text(chat_tokenizer, pair, scored=True) == " b</s>"
    assert isinstance(last, np.ndarray) and text(chat_tokenizer, last) == "<s>User: c\n\nAssistant: d</s>"
    for ids, expected in ((plain, "plain</s>"), (named, "a</s>")):
        assert isinstance(ids, np.ndarray) and ids.dtype == np.int32
        assert (ids >= 0).all() and text(chat_tokenizer, ids) == expected


@pytest.mark.parametrize(
    ("reason", "record"),
    [
        ("missing column", {LAYOUT: "text", "body": "a"}),
        ("not a string", {LAYOUT: "text", "text": None}),
        ("not a string", {"text": None}),
        ("empty text", {"text": " \n"}),
        ("invalid UTF-8", {"text": "a\ud800b"}),
    ],
)
def test_plain_text_that_is_none_is_a_bad_row(
    chat_tokenizer: PreTrainedTokenizerFast, reason: str, record: dict[str, Any]
) -> None:
    row, neighbour = made(chat_tokenizer, 100).encode([record, {"text": "a"}])
    assert isinstance(row, BadRow) and row.reason == reason
    assert isinstance(neighbour, np.ndarray) and text(chat_tokenizer, neighbour) == "a</s>"


def test_very_long_plain_text_comes_in_pieces(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = ChatEncoder(chat_tokenizer, PLAIN_TEMPLATE, max_tokens=30, max_characters=50)
    pieces = encoder.encode([{"text": "word " * 25}])[0]
    assert isinstance(pieces, list) and [text(chat_tokenizer, piece) for piece in pieces] == [
        *["word " * 10 + "</s>"] * 2,
        "word " * 5 + "</s>",
    ]
    assert reasons(encoder) == ["too long, cut into pieces"]


def test_long_conversations_are_split_at_turns_with_the_system_message(
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = made(chat_tokenizer, 10_000)
    whole = encoder.encode([{"messages": LONG}])[0]
    assert isinstance(whole, np.ndarray) and not reasons(encoder)
    encoder = made(chat_tokenizer, len(whole) - 1)
    pieces = encoder.encode([{"messages": LONG}])[0]
    assert isinstance(pieces, list) and len(pieces) == 2 and reasons(encoder) == ["conversations too long, split"]
    assert all(len(piece) < len(whole) for piece in pieces)
    assert all(text(chat_tokenizer, piece).startswith("<s>Be.\n\nUser: ") for piece in pieces)
    said = "".join(text(chat_tokenizer, piece, scored=True) for piece in pieces)
    assert said == text(chat_tokenizer, whole, scored=True)  # nothing of the answers is lost


def test_an_exchange_that_is_too_long_is_cut(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = made(chat_tokenizer, 60)
    pieces = encoder.encode([{"messages": [*talk("a", "b"), *talk("c", "d" * 100), *talk("e" * 100, "f")]}])[0]
    assert isinstance(pieces, list) and all(len(piece) <= 60 for piece in pieces)
    assert [text(chat_tokenizer, piece, scored=True)[:5] for piece in pieces] == [" b</s", " dddd"]
    assert reasons(encoder) == [
        "conversations too long, split",
        "conversations too long, cut",
        "conversations whose question alone is too long",
    ]


def test_cut_keeps_the_beginning_and_skip_nothing(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = made(chat_tokenizer, 70, "cut")
    whole = made(chat_tokenizer, 10_000).encode([{"messages": LONG}])[0]
    assert isinstance(whole, np.ndarray)
    pieces = encoder.encode([{"messages": LONG}])[0]
    assert isinstance(pieces, list) and np.array_equal(pieces[0], whole[:70]) and len(pieces) == 1
    assert reasons(encoder) == ["conversations too long, cut"]
    encoder = made(chat_tokenizer, 70, "skip")
    assert encoder.encode([{"messages": LONG}, {"prompt": "a", "completion": "b"}])[0] == []
    assert reasons(encoder) == ["conversations too long, left out"]


def test_a_row_without_a_scored_token_is_never_given(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = made(chat_tokenizer, 30, "cut")
    assert encoder.encode([{"prompt": "a" * 100, "completion": "b"}])[0] == []
    assert reasons(encoder) == ["conversations whose question alone is too long"]
    silent = ChatEncoder(chat_tokenizer, "{{ messages[0].content }}", max_tokens=30)
    row = silent.encode([{"prompt": "a", "completion": "b"}])[0]
    assert isinstance(row, BadRow) and row.reason == "nothing to score"


def test_huge_conversations_are_bad_rows(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = ChatEncoder(chat_tokenizer, CHATML, max_tokens=30, max_characters=20_000)
    rows = encoder.encode([{"prompt": "a" * 20_001, "completion": "b"}, {"messages": talk(*["x"] * 1002)}])
    assert [row.reason for row in rows if isinstance(row, BadRow)] == [
        "conversation too large",
        "conversation of too many turns",
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_do_not_depend_on_their_neighbours(chat_tokenizer: PreTrainedTokenizerFast, batch: int) -> None:
    records: list[dict[str, Any]] = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(6)]
    encoder = made(chat_tokenizer, 100)
    together = encoder.encode(records)
    apart = [ids for start in range(0, 6, batch) for ids in encoder.encode(records[start : start + batch])]
    assert all(np.array_equal(a, b) for a, b in zip(together, apart, strict=True))  # type: ignore[arg-type]


def test_the_end_of_an_answer_is_the_templates(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    ending = chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ChatEncoder(chat_tokenizer, CHATML, max_tokens=5).ending() == ending
    assert made(chat_tokenizer, 5).ending() == chat_tokenizer.eos_token_id
    bare = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert ChatEncoder(chat_tokenizer, bare, max_tokens=5).ending() is None
