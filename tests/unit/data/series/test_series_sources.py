"""What all sources of series have in common: files and splits, keys, workers, changed files."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from series_stand_ins import TS, faults, good, labels_of, opened, series_of, written

from flame.config import Source
from flame.data.series.open import open_series
from flame.errors import DataError


@pytest.fixture
def archive(tmp_path):
    """A folder as the archives have them: one data set in several formats, and what came out of it."""
    folder = tmp_path / "Two"
    for split, label in (("TRAIN", "a"), ("TEST", "b")):
        written(folder / f"Two_{split}.ts", f"@classLabel true a b\n@data\n1,2:{label}\n")
        written(folder / f"Two_eq_{split}.ts", f"@classLabel true a b\n@data\n9,9:{label}\n")
        written(folder / f"Two_{split}.arff", f"@attribute t numeric\n@attribute y {{a,b}}\n@data\n7,{label}\n")
        written(folder / f"Two_{split}.txt", "1 5 6\n")
    written(folder / "Two.txt", "A description.\n")
    return folder


def test_a_folder_gives_the_split_of_its_own_data_set(archive):
    assert labels_of(opened(archive)) == ["a"] and series_of(opened(archive, split="test")) == [[[1], [2]]]
    assert series_of(opened(archive, format="arff")) == [[[7]]]
    assert series_of(opened(archive, format="csv")) == [[[5], [6]]]


def test_a_split_that_is_not_there_is_refused(archive):
    with pytest.raises(DataError, match="has no split 'validation': it has test, train"):
        opened(archive, split="validation")
    with pytest.raises(DataError, match="split = 'test' has no effect on files that are named"):
        opened(archive / "Two_TEST.ts", split="test")


def test_several_data_sets_in_a_folder_are_refused(archive):
    with pytest.raises(DataError, match=r"holds several data sets \(Two, Two_eq\)"):
        opened(archive.rename(archive.with_name("all")), format="ts")


def test_files_are_found_by_patterns_and_lists(tmp_path):
    for number in range(3):
        written(tmp_path / "in" / f"{number}.csv", f"a,b,label\n{number},0,x\n")
    first = [values[0][0] for values in series_of(opened(tmp_path / "in"))]
    assert first == [0, 1, 2]
    assert len(opened(tmp_path / "in" / "[01].csv")) == 2
    assert len(opened(tmp_path, data_dir="in", data_files=["2.csv", "0.csv"])) == 2
    assert len(opened(f"file://{tmp_path}/in")) == 3
    with pytest.raises(DataError, match="no file or folder"):
        opened(tmp_path / "out.csv")
    with pytest.raises(DataError, match="no split 'test'"):
        opened(tmp_path / "in", split="test")


def test_generic_names_of_splits_are_understood(tmp_path):
    written(tmp_path / "train.csv", "a,y\n1,0\n")
    written(tmp_path / "valid.csv", "a,y\n2,0\n")
    assert series_of(opened(tmp_path)) == [[[1]]] and series_of(opened(tmp_path, split="valid")) == [[[2]]]


def test_files_of_other_formats_or_channels_are_refused(tmp_path):
    written(tmp_path / "a.ts", TS)
    written(tmp_path / "b.csv", "a,y\n1,0\n")
    with pytest.raises(DataError, match=r"files of several formats \(csv, ts\)"):
        opened(tmp_path / "*")
    written(tmp_path / "c.ts", "@classLabel true a b\n@data\n1:a\n")
    with pytest.raises(DataError, match=r"a.ts has 2 channels and .*c.ts 1"):
        opened(tmp_path / "*.ts")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"label_column": "y"}, "label_column = 'y' has no effect on .ts files; set only data_dir, data_files, format"),
        ({"text_column": "t"}, "text_column = 't' has no effect"),
        ({"name": "rows"}, "name = 'rows' has no effect"),
        ({"format": "tsv"}, "no format 'tsv' of series: it is one of ts, arff.*Did you mean 'ts'"),
        ({"streaming": True}, "set streaming = false"),
    ],
)
def test_keys_without_effect_are_refused(tmp_path, keys, message):
    with pytest.raises(DataError, match=message):
        opened(written(tmp_path / "a.ts", TS), **keys)


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "has no path"), ("builtin:iris", "no series 'builtin:iris'"), ("s3://b/a.csv", "download it")],
)
def test_paths_that_are_no_series_are_refused(path, message):
    with pytest.raises(DataError, match=message):
        opened(path)


@pytest.mark.parametrize("kind", ["ts", "csv", "npz", "digits"])
def test_workers_get_paths_and_read_the_same(tmp_path, kind):
    path: object = tmp_path / f"a.{kind}"
    rows = np.random.default_rng(0).normal(size=(500, 40)).round(3)
    if kind == "ts":
        text = "".join(f"{','.join(map(str, row))}:{number % 3}\n" for number, row in enumerate(rows))
        written(tmp_path / "a.ts", "@classLabel true 0 1 2\n@data\n" + text)
    elif kind == "csv":
        header = ",".join(f"t{step}" for step in range(40))
        written(tmp_path / "a.csv", header + ",y\n" + "".join(f"{','.join(map(str, row))},{row[0]}\n" for row in rows))
    elif kind == "npz":
        np.savez(tmp_path / "a.npz", X=rows, y=np.arange(500) % 3)
    else:
        path = "builtin:sklearn-digits"
    source = opened(path)  # pyright: ignore[reportArgumentType]
    before = good(source)
    sent = pickle.dumps(source)
    assert len(sent) < 5_000
    for mine, theirs in zip(before, pickle.loads(sent).read(range(len(source))), strict=True):
        assert np.array_equal(mine["values"], theirs["values"]) and mine["label"] == theirs["label"]


def test_text_is_converted_once_per_version_of_a_file(tmp_path, monkeypatch):
    path = written(tmp_path / "a.ts", TS)
    assert len(opened(path)) == 2
    with monkeypatch.context() as patched:
        patched.setattr("flame.data.series.ts_files.lines_of", None)
        assert len(opened(path)) == 2
    written(path, TS + "1,2:3,4:a\n")
    assert len(opened(path)) == 3


def test_a_cache_that_is_gone_is_named_and_made_anew(tmp_path):
    for text in (TS, TS + "1:a\n"):
        path = written(tmp_path / "a.ts", text)
        source = opened(path)
        shutil.rmtree(Path(os.environ["FLAME_CACHE"]) / "series")
        with pytest.raises(DataError, match="cannot be read .*: start again"):
            source.read([0])
        assert len(opened(path)) == len(source)


def test_splits_of_a_folder_are_not_taken_for_changes(archive, caplog):
    opened(archive)
    opened(archive, split="test")
    opened(archive, format="arff")
    assert not caplog.text
    written(archive / "Two_TRAIN.ts", "@classLabel true a b\n@data\n1,2,3:b\n")
    assert labels_of(opened(archive)) == ["b"] and "Two_TRAIN.ts changed since" in caplog.text


def test_a_file_that_changed_or_is_gone_since_it_was_opened_is_an_error(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.zeros((2, 3)), y=[0, 1])
    for path in (written(tmp_path / "a.ts", TS), tmp_path / "a.npz"):
        source = opened(path)
        source.read([0])
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(DataError, match=r"changed while it was read"):
            source.read([1])
        path.unlink()
        with pytest.raises(DataError, match=r"is gone"):
            source.read([1])


def test_order_and_repetition_of_indices_are_kept(tmp_path):
    for number in range(2):
        written(tmp_path / f"{number}.csv", f"a,label\n{number}0,x\n{number}1,y\n")
    records = good(opened(tmp_path), [3, 0, 3, 1])
    assert [record["values"][0, 0] for record in records] == [11, 0, 11, 1]
    assert opened(tmp_path).read([]) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.ts", "@classLabel true a b\n@data\n1,2:?\n1,2:b\n"),
        ("a.ts", "@targetLabel true\n@data\n1,2:?\n1,2:0.5\n"),
        ("a.arff", "@attribute t numeric\n@attribute y {a,b}\n@data\n7,?\n8,b\n"),
        ("a.csv", "t,y\n1,\n2,b\n"),
        ("X_TEST.tsv", "NaN\t2\n3\t2\n"),
    ],
)
def test_series_without_a_label_are_bad_rows_unless_none_is_needed(tmp_path, name, text):
    path = written(tmp_path / name, text)
    assert len(faults(opened(path))) == 1 and faults(opened(path))[0].endswith(": no label")
    records = good(open_series(Source(str(path)), needs_labels=False))
    assert records[0]["label"] is None and records[1]["label"] in ("b", "3", 0.5)


def test_a_source_without_any_label_is_refused_where_they_are_needed(tmp_path):
    path = written(tmp_path / "a.csv", "t,y\n1,\n2,\n")
    with pytest.raises(DataError, match="not one of the 2 series .* has a label"):
        opened(path)
    assert [record["label"] for record in good(open_series(Source(str(path)), needs_labels=False))] == [None, None]


def saved(path, features=None, **columns):
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(path)
    return path


def test_a_dataset_of_images_gives_pixels_and_names_of_classes(tmp_path):
    grey = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    colour = Image.fromarray(np.full((1, 2, 3), 255, np.uint8))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["wolf", "dog"]))
    source = opened(saved(tmp_path / "a", features, image=[grey, grey, colour, None], label=[1, 0, 1, 0]))
    assert source.classes == ["dog", "wolf"] and source.channels == 1
    first, second = good(source, [0, 1])
    odd, absent = source.read([2, 3])
    assert (first["label"], second["label"]) == ("dog", "wolf")
    assert np.allclose(first["values"], np.arange(6)[:, None] / 255)
    assert "other number of channels (3, not 1)" in str(odd) and "unreadable image" in str(absent)
    assert source.lengths(np.arange(4)).tolist() == [6, 6, 2, 0]
    assert good(pickle.loads(pickle.dumps(source)), [1])[0]["label"] == "wolf"


def test_a_dataset_of_lists_gives_series(tmp_path):
    source = opened(saved(tmp_path / "a", x=[[1.0, 2.0], [3.0]], target=[0.5, 1.0]), label_column="target")
    assert series_of(source) == [[[1], [2]], [[3]]] and labels_of(source) == [0.5, 1.0]
    fixed = datasets.Features(x=datasets.Array2D((2, 3), "float32"), y=datasets.Value("string"))
    source = opened(saved(tmp_path / "b", fixed, x=np.zeros((1, 2, 3)).tolist(), y=["u"]))
    assert source.channels == 3 and labels_of(source) == ["u"] and source.lengths(np.arange(1)).tolist() == [2]


def test_a_dataset_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"dataset 'someone/series' is neither a local path nor"):
        opened("someone/series")


def test_rows_of_a_dataset_that_lack_a_label_are_bad(tmp_path):
    source = opened(saved(tmp_path / "a", x=[[1.0], [2.0]], label=["u", None]))
    assert [re.sub(".*, row", "row", fault) for fault in faults(source)] == ["row 2: no label"]


def test_a_worker_that_reads_files_loads_neither_torch_nor_datasets(tmp_path):
    source = opened(written(tmp_path / "a.ts", TS))
    code = (
        "import pickle, sys\n"
        "source = pickle.load(sys.stdin.buffer)\n"
        "assert source.read([1])[0]['label'] == 'b'\n"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True)
    assert ran.stdout.strip() == b"[]", ran.stderr
