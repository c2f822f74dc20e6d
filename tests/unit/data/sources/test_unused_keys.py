"""What a job says of a source that it does not use is refused, naming the key and what may be set."""

from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_stand_ins import Data, ListEncoder, Source
from remote_files import Faulty, put

from flame.data.plan import make_plan
from flame.data.sources.open import open_source
from flame.errors import DataError


@pytest.fixture
def path_of(tmp_path):
    """The path of a source of some kind."""

    def write(kind):
        path = tmp_path / f"a.{kind}"
        if kind == "txt":
            path.write_text("some text\n")
        elif kind == "jsonl":
            path.write_text('{"text": "some text"}\n')
        elif kind == "parquet":
            pq.write_table(pa.table({"text": ["some text"]}), path)
        elif kind == "saved":
            datasets.Dataset.from_dict({"text": ["some text"]}).save_to_disk(path)
        elif kind == "remote":
            Faulty.reset()
            put("faulty://unused/a.jsonl", b'{"text": "some text"}\n')
            return "faulty://unused/a.jsonl"
        else:
            return kind
        return str(path)

    return write


@pytest.mark.parametrize(
    ("kind", "fields", "remedy"),
    [
        ("builtin:python-stdlib", {"text_column": "text"}, "take it out"),
        ("builtin:python-stdlib", {"name": "all"}, "take it out"),
        ("builtin:python-stdlib", {"data_dir": "a"}, "take it out"),
        ("builtin:python-stdlib", {"data_files": ["a*"]}, "take it out"),
        ("builtin:python-stdlib", {"layout": "messages"}, "take it out"),
        ("txt", {"text_column": "text"}, "set only data_dir, data_files, format"),
        ("txt", {"layout": "messages"}, "set only data_dir, data_files, format"),
        ("jsonl", {"name": "all"}, "set only data_dir, data_files, format, layout, text_column"),
        ("parquet", {"name": "all"}, "set only data_dir, data_files, format, layout, text_column"),
        ("parquet", {"token_dtype": "uint16"}, "set only data_dir, data_files, format, layout, text_column"),
        ("remote", {"name": "all"}, "set only data_dir, data_files, format, layout, text_column"),
        ("saved", {"data_dir": "a"}, "set only format, layout, text_column"),
        ("saved", {"data_files": ["a"]}, "set only format, layout, text_column"),
        ("saved", {"format": "parquet"}, "set packed, or take it out"),
        ("some/dataset", {"token_dtype": "uint32"}, "set only data_dir, data_files, format, layout, name, text_column"),
        (
            "some/dataset",
            {"format": "packed", "layout": "messages"},
            "set only data_dir, data_files, format, name, text",
        ),
    ],
    ids=str,
)
def test_a_key_without_effect_is_refused(path_of, kind, fields, remedy):
    key = list(fields)[-1]
    with pytest.raises(DataError, match=f"{key} = .* has no effect on .*; {remedy}") as caught:
        open_source(Source(path_of(kind), **fields), ("text",), 1 << 20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("builtin:python-stdlib", {"format": "builtin", "split": "validation"}),
        ("jsonl", {"format": "jsonl", "text_column": "text", "weight": 2.0, "epochs": 3.0}),
        ("parquet", {"text_column": "text"}),
        ("saved", {"text_column": "text"}),
        ("remote", {"text_column": "text"}),
    ],
    ids=str,
)
def test_a_key_with_effect_is_taken(path_of, kind, fields):
    assert len(open_source(Source(path_of(kind), **fields), ("text",), 1 << 20))


@pytest.mark.parametrize("repeat", [True, False])
def test_text_and_token_ids_are_one_collection_in_training_only(path_of, tmp_path, repeat):
    (tmp_path / "a.bin").write_bytes(bytes(20))
    sources = [Source(path_of("jsonl")), Source(str(tmp_path / "a.bin"), token_dtype="uint16")]
    options: Any = dict(seq_len=8, context_len=0, varlen=False, global_batch_size=1, seed=0, repeat=repeat)
    data = Data(mix="documents")
    if repeat:
        with pytest.raises(DataError, match='set data.mix = "tokens"'):
            make_plan(sources=sources, data=data, encoder=ListEncoder(), **options)
    else:
        assert len(make_plan(sources=sources, data=data, encoder=ListEncoder(), **options).sources) == 2
