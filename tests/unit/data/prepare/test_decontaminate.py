"""Documents that contain evaluation texts are dropped, with the item named; others are not."""

import json
import tracemalloc
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_texts import KEEP_ALL, kept, make_builder, notes, random_texts

from flame.data.prepare.dedup import contamination
from flame.data.prepare.dedup.contamination import ContaminationIndex, EvaluationText, words_of
from flame.data.prepare.job import Input
from flame.data.prepare.options import Decontaminate
from flame.errors import ConfigError, DataError

QUESTION = random_texts(1, (30, 30), seed=5)[0]
SHORT = "Nine words only are what this question consists of"


def write_set(folder):
    rows = [
        {"id": 1, "question": QUESTION.title() + "?", "answer": "yes", "choices": ["no", {"text": SHORT}]},
        {"id": 2, "question": "Why?", "answer": "because", "choices": []},
    ]
    path = folder / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def planted():
    texts = random_texts(20)
    words = QUESTION.split()
    texts[3] += " " + ", ".join(words[5:18]).upper() + "!"  # 13 words of the question
    texts[4] += " " + " ".join(words[5:17])  # 12
    texts[7] = f"{texts[7]} {QUESTION} {texts[8]}"
    texts[11] += f" {SHORT.lower()}."
    texts[12] += " " + " ".join(SHORT.split()[:8])  # not the whole of it
    return texts


@pytest.mark.parametrize("tasks", [1, 3])
def test_documents_with_evaluation_texts_are_dropped_and_the_items_named(tmp_path, tasks):
    options = Decontaminate([write_set(tmp_path)])
    builder = make_builder(tmp_path / "work", planted(), tasks, dedup=KEEP_ALL, decontaminate=options)
    assert kept(builder) == [row for row in range(20) if row not in (3, 7, 11)]
    items = [item for note in notes(builder, "contamination") for item in note["items"].items()]
    found = {name[:40]: sum(count for item, count in items if item[:40] == name[:40]) for name, _ in items}
    question, short = f"quiz.jsonl, item 1: {QUESTION.title()}"[:40], f"quiz.jsonl, item 1: {SHORT}"[:40]
    assert found == {question: 2, short: 1}
    examples = [e for note in notes(builder, "decontaminate") for group in note["examples"].values() for e in group]
    detail = next(example["detail"] for example in examples if example["id"] == "texts/3")
    assert detail == f"quiz.jsonl, item 1: '{' '.join(QUESTION.split()[5:18])}'"


def test_only_the_named_columns_are_looked_for(tmp_path):
    options = Decontaminate([write_set(tmp_path)], columns=["choices"])
    builder = make_builder(tmp_path / "work", planted(), dedup=KEEP_ALL, decontaminate=options)
    assert kept(builder) == [row for row in range(20) if row != 11]


def test_n_grams_and_the_shortest_text_are_options(tmp_path):
    options = Decontaminate([write_set(tmp_path)], n_grams=12, shortest=12)
    builder = make_builder(tmp_path / "work", planted(), dedup=KEEP_ALL, decontaminate=options)
    assert kept(builder) == [row for row in range(20) if row not in (3, 4, 7)]


def test_parquet_and_text_files_are_evaluation_sets_too(tmp_path):
    pq.write_table(pa.table({"q": [QUESTION]}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text(SHORT)
    options = Decontaminate([str(tmp_path / "a.parquet"), str(tmp_path / "b.txt")])
    builder = make_builder(tmp_path / "work", planted(), dedup=KEEP_ALL, decontaminate=options)
    assert kept(builder) == [row for row in range(20) if row not in (3, 7, 11)]


def test_spared_inputs_are_left_alone(tmp_path):
    inputs = [Input("a", name="a"), Input("b", name="book", skip=["decontaminate"])]
    sources = ["book" if row == 7 else "a" for row in range(20)]
    options = Decontaminate([write_set(tmp_path)])
    work = tmp_path / "work"
    builder = make_builder(work, planted(), sources=sources, inputs=inputs, dedup=KEEP_ALL, decontaminate=options)
    assert kept(builder) == [row for row in range(20) if row not in (3, 11)]


def test_a_set_that_is_absent_or_lacks_a_column_is_an_error_before_anything_runs(tmp_path):
    with pytest.raises(DataError, match="absent.jsonl") as absent:
        make_builder(tmp_path / "a", ["x"], decontaminate=Decontaminate([str(tmp_path / "absent.jsonl")]))
    options = Decontaminate([write_set(tmp_path)], columns=["qestion"])
    with pytest.raises(DataError, match="no column 'qestion'.*Did you mean 'question'") as told:
        make_builder(tmp_path / "b", ["x"], decontaminate=options)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="empty.jsonl") as empty:
        make_builder(tmp_path / "c", ["x"], decontaminate=Decontaminate([str(tmp_path / "empty.jsonl")]))
    for error in (absent, told, empty):
        assert "decontaminate.sources" in str(error.value)
        assert "data.sources" not in str(error.value) and "text_column" not in str(error.value)


def test_a_set_without_a_text_that_is_long_enough_is_an_error(tmp_path):
    options = Decontaminate([write_set(tmp_path)], columns=["answer"])
    builder = make_builder(tmp_path / "work", ["x"], decontaminate=options)
    with pytest.raises(DataError, match="quiz.jsonl' has no text of at least 8 words"):
        kept(builder)


def test_lengths_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="decontaminate.shortest = 14"):
        Decontaminate(shortest=14)


@pytest.mark.parametrize(
    "text, words",
    [
        ("Don't STOP, 3.5%!", ["don't", "stop", "3", "5"]),
        ("Don’t stop – é", ["don't", "stop", "é"]),
        ("数学の問題", list("数学の問題")),
        ("Cafe\u0301 re\u0301sume\u0301 x\u0301y", ["café", "résumé", "xy"]),
        ("ﬁne Ｆｕｌｌ ℌ \u0130", ["fine", "full", "h", "i"]),
        ("", []),
    ],
)
def test_words_are_lower_case_and_without_punctuation(text, words):
    assert words_of(text) == words


def test_an_item_is_found_whatever_its_unicode_form(tmp_path):
    question = "Où l'élève français a-t-il étudié la première règle de géométrie à Besançon l'été passé"
    (tmp_path / "nfd.txt").write_text(unicodedata.normalize("NFD", question))
    texts = [*random_texts(2), f"On demande : {question} ?"]
    options = Decontaminate([str(tmp_path / "nfd.txt")])
    assert kept(make_builder(tmp_path / "work", texts, dedup=KEEP_ALL, decontaminate=options)) == [0, 1]


def test_memory_does_not_grow_with_the_lengths_that_texts_have():
    texts = [EvaluationText("s", words, " ".join(f"w{words}x{i}" for i in range(words))) for words in range(8, 14)]
    tracemalloc.start()
    index = ContaminationIndex(texts, 13, 8)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert index.looked_for == 6 and held < 18 << 20
    assert all(index.find(f"so {text.text} it is") for text in texts)


def test_equal_hashes_are_compared_word_by_word(monkeypatch):
    monkeypatch.setattr(contamination, "_word_hashes", lambda words: np.zeros(len(words), np.uint64))
    index = ContaminationIndex([EvaluationText("s", 1, "a b c d"), EvaluationText("s", 2, "e f g h")], 3, 1)
    assert index.find("x y z a b") is None
    match = index.find("x f g h y")
    assert match is not None and match.text.item == 2 and match.words == "f g h"
