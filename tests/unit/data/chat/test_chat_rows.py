"""Conversations through the loader: what is scored, resumed and shared out, long ones and bad rows among them."""

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chat_templates import talk
from data_stand_ins import Data, Source
from transformers import PreTrainedTokenizerFast

from flame.data.chat.builtin import PLAIN_TEMPLATE
from flame.data.chat.encoder import ChatEncoder
from flame.errors import DataError

LENGTH = 48


@pytest.fixture
def chats(tmp_path: Path) -> Source:
    """40 conversations of one to four exchanges, of which one fits a row; two rows are none."""
    rows: list[Any] = [talk(*(f"{kind} {i}" for _ in range(1 + i % 4) for kind in "qa")) for i in range(40)]
    rows[7], rows[23] = rows[7][1:], []
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return Source(str(path))


@pytest.fixture
def chat_encoder(byte_tokenizer: PreTrainedTokenizerFast) -> ChatEncoder:
    return ChatEncoder(byte_tokenizer, PLAIN_TEMPLATE, max_tokens=LENGTH)


def batches(loader: Any, count: int) -> list[torch.Tensor]:
    """Ids, labels and positions of some batches, [3, B, T] each."""
    found = islice(loader, count)
    return [torch.stack([inputs["input_ids"], labels, inputs["position_ids"]]) for inputs, labels in found]


@pytest.mark.parametrize("packing", ["stream", "best_fit", "rows"])
def test_only_answers_are_labels(make_loader, chats, chat_encoder, byte_tokenizer, packing) -> None:
    loader = make_loader(
        chats, encoder=chat_encoder, data=Data(packing=packing), seq_len=LENGTH, varlen=True, repeat=False
    )
    said = ""
    for inputs, labels in loader:
        scored = labels != -100
        following = torch.cat([inputs["input_ids"][:, 1:], torch.zeros(len(labels), 1, dtype=torch.long)], dim=1)
        inside = scored & (torch.arange(LENGTH) < LENGTH - 1)
        assert torch.equal(labels[inside], following[inside])
        assert (inputs["input_ids"] >= 0).all()
        said += byte_tokenizer.decode(labels[scored].tolist())
    expected = [f" a {i}</s>" for i in range(40) for _ in range(1 + i % 4) if i not in (7, 23)]
    assert Counter(said) == Counter("".join(expected))
    if packing != "stream":  # no conversation is cut
        assert Counter(said.split("</s>")[:-1]) == Counter(text.removesuffix("</s>") for text in expected)
    assert loader.skipped["wrong role order"] == loader.skipped["empty conversation"] == 1
    assert loader.skipped["conversations too long, split"] == 28


@pytest.mark.parametrize("packing", ["stream", "best_fit", "rows"])
def test_split_conversations_are_resumed_and_shared_out_exactly(make_loader, chats, chat_encoder, packing) -> None:
    data = Data(packing=packing, lanes_per_row=1)
    options = dict(encoder=chat_encoder, data=data, seq_len=LENGTH, varlen=True, global_batch_size=4)
    whole = batches(make_loader(chats, **options), 12)
    for stop in (1, 5):  # within the pieces of some lane's conversation
        begun = make_loader(chats, **options)
        before = batches(begun, stop)
        resumed = make_loader(chats, **options)
        resumed.load_state_dict(begun.state_dict())
        after = batches(resumed, 12 - stop)
        assert all(torch.equal(a, b) for a, b in zip([*before, *after], whole, strict=True))
    # 2 micro-batches of 2 rows are a step
    shares = [batches(make_loader(chats, world=2, rank=rank, **options), 6) for rank in (0, 1)]
    for step in range(6):
        mine = torch.cat([share[step] for share in shares], dim=1)
        assert torch.equal(mine, torch.cat(whole[2 * step : 2 * step + 2], dim=1))


MIXED: list[dict[str, Any]] = [
    {"messages": talk("q", "1")},
    {"text": "text 2"},
    {"messages": talk("q", "3"), "text": ""},
    {"prompt": "q", "completion": "4", "content": "c"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_of_text_and_conversations_stand_side_by_side(
    make_loader, chat_encoder, byte_tokenizer, tmp_path, kind
) -> None:
    path = tmp_path / f"mixed.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in MIXED))
    else:
        columns = dict.fromkeys(column for row in MIXED for column in row)
        pq.write_table(pa.Table.from_pylist([{**columns, **row} for row in MIXED]), path)
    loader = make_loader(Source(str(path)), encoder=chat_encoder, data=Data(), repeat=False)
    said = byte_tokenizer.decode([label for _, labels in loader for label in labels[labels != -100].tolist()])
    assert sorted(answer[-1] for answer in said.split("</s>")[:-1]) == ["1", "2", "3", "4"]
    assert not loader.skipped


def test_a_long_side_column_does_not_repeat_a_conversation(make_loader, byte_tokenizer, tmp_path) -> None:
    path = tmp_path / "alpaca.jsonl"
    rows = [{"instruction": "q", "output": str(i), "text": "long " * 100} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + json.dumps({"text": "word " * 30}) + "\n")
    encoder = ChatEncoder(byte_tokenizer, PLAIN_TEMPLATE, max_tokens=LENGTH, max_characters=100)
    data = Data(max_document_bytes=100)
    loader = make_loader(Source(str(path)), encoder=encoder, data=data, repeat=False)
    said = byte_tokenizer.decode([label for _, labels in loader for label in labels[labels != -100].tolist()])
    assert sorted(re.findall(r"\d", said)) == ["0", "1", "2"]
    assert loader.skipped == {"too long, cut into pieces": 1} and said.count("ord") == 30


def test_a_bad_conversation_is_named_if_it_is_an_error(make_loader, chats, chat_encoder) -> None:
    data = Data(on_bad_row="error", shuffle=False)
    with pytest.raises(DataError, match=r"chats.jsonl, row (8|24): (wrong role order|empty conversation)"):
        batches(make_loader(chats, encoder=chat_encoder, data=data, varlen=True), 24)
