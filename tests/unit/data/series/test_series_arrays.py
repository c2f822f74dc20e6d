"""Series in .npz files."""

import numpy as np
import pytest
from series_stand_ins import faults, good, labels_of, opened, series_of

from flame.errors import DataError


def saved(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_equally_long_series_are_read(tmp_path, compressed, order):
    values = np.arange(12.0).reshape(2, 3, 2)
    values[0, 1, 1] = np.nan
    path = saved(tmp_path / "a.npz", compressed, X=np.asarray(values, order=order), y=np.array(["b", "a"]))
    source = opened(path)
    assert source.channels == 2 and source.classes == ["a", "b"] and labels_of(source) == ["b", "a"]
    assert series_of(source) == [[[0, 1], [2, None], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert source.lengths(np.array([0, 1])).tolist() == [3, 3]


@pytest.mark.parametrize("dtype", ["i2", ">f8", "f2", "u1", "?"])
def test_any_numbers_become_float32(tmp_path, dtype):
    source = opened(saved(tmp_path / "a.npz", X=np.array([[0, 1], [1, 0]], dtype), y=np.array([3, 20], ">i4")))
    assert series_of(source) == [[[0], [1]], [[1], [0]]] and source.classes == ["3", "20"]


def test_series_of_unequal_lengths_are_one_array_and_their_lengths(tmp_path):
    path = saved(tmp_path / "a.npz", values=np.arange(5), lengths=np.array([2, 0, 3], np.uint8), y=[0.5, 1, 2])
    source = opened(path)
    assert source.lengths(np.array([2, 1, 0])).tolist() == [3, 0, 2] and source.targets is not None
    last, first = good(source, [2, 0])
    assert last["values"].tolist() == [[2], [3], [4]] and first["label"] == 0.5
    assert faults(source) == ["a.npz, series 2: empty series"]


def test_arrays_of_splits_and_of_other_names(tmp_path):
    path = saved(tmp_path / "a.npz", X_train=[[1.0]], y_train=[1], X_test=[[2.0]], y_test=[0], Z=[[3.0]], w=[7])
    assert series_of(opened(path)) == [[[1]]] and series_of(opened(path, split="test")) == [[[2]]]
    named = opened(path, value_columns=["Z"], label_column="w")
    assert series_of(named) == [[[3]]] and labels_of(named) == ["7"]
    with pytest.raises(DataError, match="has no array X_validation for split = 'validation'"):
        opened(path, split="validation")


@pytest.mark.parametrize(
    ("arrays", "keys", "message"),
    [
        ({"X": np.zeros((2, 3)), "y": [1]}, {}, r"array 'y' has the shape \[1\], for 2 series: it should be \[2\]"),
        ({"X": np.zeros(3), "y": [1]}, {}, r"array 'X' has the shape \[3\]: it should be \[series, steps\]"),
        ({"X": np.zeros((2, 0)), "y": [1, 2]}, {}, r"its series have no steps"),
        ({"X": np.zeros((0, 3)), "y": []}, {}, r"holds no series"),
        ({"X": np.array([["a"]]), "y": [1]}, {}, r"array 'X' holds <U1, not numbers"),
        ({"X": np.array([[1j]]), "y": [1]}, {}, r"array 'X' holds complex128"),
        ({"Q": np.zeros((2, 3))}, {}, r"has no array X or values, only Q: set value_columns"),
        ({"X": np.zeros((2, 3))}, {"label_column": "y"}, r"has no array 'y', only X: set label_column"),
        ({"values": np.zeros(5), "lengths": [2, 2]}, {}, r"lengths add up to 4, but 'values' has 5 steps"),
        ({"values": np.zeros(5), "lengths": [6, -1]}, {}, r"'lengths' should be of whole numbers"),
        ({"X": np.array([np.zeros(2), np.zeros(3)], object)}, {}, r"holds Python objects.*'lengths'"),
    ],
)
def test_arrays_that_are_no_series_are_refused(tmp_path, arrays, keys, message):
    with pytest.raises(DataError, match=message):
        opened(saved(tmp_path / "a.npz", **arrays), **keys)


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_named(tmp_path, compressed):
    noise = np.random.default_rng(0).normal(size=(20, 50))
    path = saved(tmp_path / "a.npz", compressed, X=noise, y=np.arange(20))
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(DataError, match="a.npz is not a complete .npz file"):
        opened(path)
    path.write_bytes(data[:3000] + b"\0\0\0\0" + data[3004:])
    with pytest.raises(DataError, match=r"a.npz"):
        opened(path)


def test_an_infinite_value_is_a_bad_row(tmp_path):
    source = opened(saved(tmp_path / "a.npz", X=[[1, np.inf], [1e300, 0], [1, 2]], y=[0, 1, 2]))
    assert [str(record).rpartition(": ")[2] for record in source.read([0, 1])] == [
        "infinite value (step 2, channel 1)",
        "infinite value (step 1, channel 1)",
    ]
