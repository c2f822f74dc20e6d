"""Texts up to a budget: shared by weight, the same every time, and nothing lost without a word."""

import json
from itertools import islice

import pytest

from flame.config import Source
from flame.data.texts import BudgetedTexts
from flame.errors import DataError


def jsonl(path, texts) -> Source:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(str(path))


@pytest.fixture
def pair(tmp_path):
    """Two sources of 1,000 documents of 10 characters."""
    return [jsonl(tmp_path / f"{letter}.jsonl", [f"{letter}{i:09}" for i in range(1000)]) for letter in "ab"]


def test_without_a_budget_everything_comes_once_in_its_order(pair):
    texts = list(BudgetedTexts(pair))
    assert sorted(texts) == sorted(f"{letter}{i:09}" for letter in "ab" for i in range(1000))
    assert [text for text in texts if text[0] == "a"] == [f"a{i:09}" for i in range(1000)]


def test_a_budget_is_met_exactly_by_documents_from_everywhere(pair):
    budgeted = BudgetedTexts(pair[:1], max_characters=1005)
    texts = list(budgeted)
    assert sum(map(len, texts)) == budgeted.characters == 1005
    numbers = [int(text[1:]) for text in texts[:-1]]
    assert len(set(numbers)) == 100 and min(numbers) < 200 and max(numbers) > 800
    assert texts == list(BudgetedTexts(pair[:1], max_characters=1005))
    assert texts != list(BudgetedTexts(pair[:1], max_characters=1005, seed=1))


def test_characters_are_shared_by_weight_at_every_moment(pair):
    pair[1].weight = 3
    for count in (40, 100, 400):
        texts = list(islice(iter(BudgetedTexts(pair)), count))
        assert abs(sum(text[0] == "b" for text in texts) - 0.75 * count) <= 1


def test_a_source_that_ends_leaves_its_share_to_the_others(pair, tmp_path):
    small = jsonl(tmp_path / "c.jsonl", ["c" * 10] * 5)
    budgeted = BudgetedTexts([small, pair[0]], max_characters=1000)
    assert [text[0] for text in budgeted].count("c") == 5
    assert [read.characters for read in budgeted.read] == [50, 950]


def test_long_documents_are_cut_and_counted(tmp_path):
    budgeted = BudgetedTexts([jsonl(tmp_path / "a.jsonl", ["x" * 100, "y" * 5])], max_document_characters=10)
    assert sorted(budgeted) == ["x" * 10, "y" * 5]
    assert budgeted.read[0].shortened == 1


def test_bad_records_are_counted_or_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nnot json\n{"text": ""}\n')
    budgeted = BudgetedTexts([Source(str(path))])
    assert list(budgeted) == ["good"]
    assert budgeted.bad_rows.counts == {"not JSON": 1, "empty text": 1}
    with pytest.raises(DataError, match="a.jsonl, row 2: not JSON"):
        list(BudgetedTexts([Source(str(path))], on_bad_row="error"))


def test_no_text_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no text in .*a.jsonl .*row 1: empty text"):
        list(BudgetedTexts([jsonl(tmp_path / "a.jsonl", ["", " "])]))


def test_token_ids_are_no_text(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(200))
    with pytest.raises(DataError, match="holds token ids, and text is needed"):
        BudgetedTexts([Source(str(tmp_path / "a.bin"), format="bin", token_dtype="uint16")])
