"""Tables of a user's own: csv and parquet, wide and long."""

import datetime
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from series_stand_ins import faults, labels_of, opened, series_of, written

from flame.errors import DataError

WIDE = "t0,t1,t2,label\n1,2,3,b\n4,,6,a\n7,8,,a\n"
LONG = "id,when,x,y,label\nq,2,3,30,up\nq,1,2,20,up\np,1,5,50,down\nq,3,,40,up\n"


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_a_row_of_a_wide_table_is_a_series_that_ends_with_its_last_value(tmp_path):
    source = opened(written(tmp_path / "a.csv", WIDE))
    assert source.channels == 1 and source.classes == ["a", "b"] and labels_of(source) == ["b", "a", "a"]
    assert series_of(source) == [[[1], [2], [3]], [[4], [None], [6]], [[7], [8]]]
    assert source.where(2).endswith("a.csv, row 3")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_is_told_by_the_header(tmp_path, separator):
    source = opened(written(tmp_path / "a.csv", WIDE.replace(",", separator)))
    assert series_of(source)[0] == [[1], [2], [3]]


def test_csv_may_be_compressed_and_have_a_byte_order_mark_and_windows_lines(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + WIDE.replace("\n", "\r\n").encode()))
    assert labels_of(opened(path)) == ["b", "a", "a"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"cannot be decompressed"):
        opened(path)


def test_columns_are_those_that_are_named(tmp_path):
    path = written(tmp_path / "a.csv", "kind,a,b,c\n1,1,2,3\n0,4,5,6\n")
    source = opened(path, label_column="kind", value_columns=["c", "a"])
    assert series_of(source) == [[[3], [1]], [[6], [4]]] and source.classes == ["0", "1"]


def test_columns_of_text_and_without_a_name_are_left_out_and_said(tmp_path, caplog):
    source = opened(written(tmp_path / "a.csv", ",who,a,b,y\n0,ann,1,2,1\n1,bob,3,4,0\n"))
    assert series_of(source) == [[[1], [2]], [[3], [4]]]
    assert "who hold no numbers" in caplog.text


@pytest.mark.parametrize(
    ("cells", "classes", "labels"),
    [
        ("1,0,10", ["0", "1", "10"], ["1", "0", "10"]),
        ("1.0,0.0,2.0", ["0", "1", "2"], ["1", "0", "2"]),
        ("1.5,0,2", None, [1.5, 0.0, 2.0]),
        ("b2,b10,b2", ["b2", "b10"], ["b2", "b10", "b2"]),
        ("12345678901234567890,1,2", ["1", "2", "12345678901234567890"], ["12345678901234567890", "1", "2"]),
    ],
)
def test_labels_are_classes_unless_they_are_real_numbers(tmp_path, cells, classes, labels):
    rows = "".join(f"1,2,{label}\n" for label in cells.split(","))
    source = opened(written(tmp_path / "a.csv", f"a,b,y\n{rows}"))
    assert source.classes == classes and labels_of(source) == labels


def test_a_table_without_a_label_is_read_without(tmp_path):
    source = opened(written(tmp_path / "a.csv", "a,b\n1,2\n"))
    assert not source.labelled and labels_of(source) == [None]


def test_faulty_rows_of_csv_are_bad_rows(tmp_path):
    source = opened(written(tmp_path / "a.csv", WIDE + "1,x,3,a\n1,2\n1,2,3,\n,,,a\n1,2,3,4,a\n1,2,1e39,a\n"))
    assert faults(source) == [
        "a.csv, row 4: not a number ('t1' is 'x')",
        "a.csv, row 5: other number of columns (2 cells, not 4)",
        "a.csv, row 6: no label",
        "a.csv, row 7: empty series",
        "a.csv, row 8: other number of columns (5 cells, not 4)",
        "a.csv, row 9: infinite value (step 3, channel 1)",
    ]
    assert source.lengths(np.arange(len(source))).tolist() == [3, 3, 2, 0, 0, 3, 0, 0, 3]


def test_bytes_of_csv_that_are_no_text_are_faults_of_their_rows(tmp_path):
    path = written(tmp_path / "a.csv", WIDE)
    path.write_bytes(path.read_bytes() + b"1,\xff,3,a\n1,2,3,\xe2\x82\n\xff\n1,2,3,a\n")
    assert faults(opened(path)) == [
        "a.csv, row 4: not a number ('t1' is '\ufffd')",
        "a.csv, row 5: no label",
        "a.csv, row 6: other number of columns (1 cells, not 4)",
    ]


def test_rows_of_a_long_table_are_steps_in_the_order_of_time(tmp_path):
    source = opened(written(tmp_path / "a.csv", LONG), series_column="id", time_column="when")
    assert source.channels == 2 and labels_of(source) == ["up", "down"]
    assert series_of(source) == [[[2, 20], [3, 30], [None, 40]], [[5, 50]]]


def test_without_a_time_column_steps_come_in_the_order_of_the_file(tmp_path):
    source = opened(written(tmp_path / "a.csv", LONG), series_column="id", value_columns=["x"])
    assert series_of(source) == [[[3], [2], [None]], [[5]]]


def test_dates_order_steps_too(tmp_path):
    text = LONG.replace("q,2,", "q,2024-02-01,").replace("q,1,", "q,2024-01-31,").replace("q,3,", "q,2024-03-01,")
    source = opened(
        written(tmp_path / "a.csv", text.replace("p,1", "p,2020-01-01")), series_column="id", time_column="when"
    )
    assert series_of(source)[0] == [[2, 20], [3, 30], [None, 40]]


def test_faulty_series_of_a_long_table_are_bad_rows(tmp_path):
    rows = ["a,1,1,u", "b,1,1,u", "b,1,2,u", "c,1,1,u", "c,2,2,v", "d,,1,u", "e,1,x,u", "f,1,1,"]
    path = written(tmp_path / "a.csv", "id,when,x,label\n" + "\n".join(rows) + "\n")
    source = opened(path, series_column="id", time_column="when")
    assert faults(source) == [
        "a.csv, row 2: two steps of one time (rows 2 and 3)",
        "a.csv, row 4: several labels (u, v: a series has one)",
        "a.csv, row 6: no time (row 6 has no 'when')",
        "a.csv, row 7: not a number (row 7: 'x' is 'x')",
        "a.csv, row 8: no label",
    ]


def test_parquet_is_read_wide_and_long(tmp_path):
    wide = parquet(tmp_path / "a.parquet", a=[1, 2], b=[1.5, None], label=pa.array(["u", "v"]).dictionary_encode())
    assert series_of(opened(wide)) == [[[1], [1.5]], [[2]]] and labels_of(opened(wide)) == ["u", "v"]
    days = [datetime.datetime(2024, 1, day) for day in (2, 1)]
    long = parquet(tmp_path / "b.parquet", id=[7, 7], at=days, x=[1.0, 2.0], y=[True, True])
    source = opened(long, series_column="id", time_column="at")
    assert series_of(source) == [[[2], [1]]] and source.classes == ["true"]


def test_a_parquet_column_of_lists_is_a_series(tmp_path):
    path = parquet(tmp_path / "a.parquet", x=[[1.0, None], [3.0], [], None], y=[0.5, 1.5, 2.5, 3.5])
    source = opened(path)
    assert series_of_first(source, 2) == [[[1], [None]], [[3]]] and source.classes is None
    assert faults(source) == ["a.parquet, row 3: empty series", "a.parquet, row 4: not a series (it is null)"]


def test_nested_lists_are_steps_of_channels_and_several_columns_channels(tmp_path):
    nested = parquet(tmp_path / "a.parquet", x=[[[1, 2], [3, 4], [5, 6]], [[1], [2, 3]]], label=[1, 2])
    assert series_of_first(opened(nested), 1) == [[[1, 2], [3, 4], [5, 6]]]
    assert faults(opened(nested)) == ["a.parquet, row 2: not a series (steps with different numbers of channels)"]
    columns = parquet(tmp_path / "b.parquet", x=[[1, 2], [1]], y=[[3, 4], [1, 2]], label=[1, 2])
    source = opened(columns, value_columns=["y", "x"])
    assert series_of_first(source, 1) == [[[3, 1], [4, 2]]]
    assert faults(source) == ["b.parquet, row 2: not a series (channels of 1 and of 2 steps)"]


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        (WIDE, {"label_column": "lable"}, r"has no column 'lable'.*set label_column. Did you mean 'label'"),
        (WIDE, {"value_columns": ["t0", "t9"]}, r"has no column 't9'.*set value_columns"),
        (WIDE, {"value_columns": ["t0", "t0"]}, r"column 't0' is named twice"),
        (WIDE, {"time_column": "t0"}, r"set series_column too"),
        ("a,who,y\n1,ann,1\n", {"value_columns": ["who"]}, r"column 'who' holds text, not numbers"),
        ("who,y\nann,1\n", {}, r"has no column of numbers besides the label"),
        ("a,a,y\n1,2,3\n", {}, r"two columns 'a'"),
        ("1.5,2.5,3\n1,2,3\n", {}, r"begins with numbers \(1.5, 2.5, ...\): add a line of column names"),
        ("", {}, r"begins with an empty line"),
        ("a,b,y\n", {}, r"holds no series"),
        ("id,x,y\n1,2,3\n,3,3\n", {"series_column": "id"}, r"row 2: no 'id'"),
        ("id,x,y\n1,2,3\n4,3\n", {"series_column": "id"}, r"row 2 has 2 cells, not 3"),
    ],
)
def test_tables_that_are_wrong_as_a_whole_are_refused(tmp_path, text, keys, message):
    with pytest.raises(DataError, match=message):
        opened(written(tmp_path / "a.csv", text), **keys)


def test_damaged_parquet_is_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", x=np.arange(5000.0), y=np.arange(5000))
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(DataError, match=r"a.parquet is not a complete parquet file"):
        opened(path)
    path.write_bytes(data[:4] + b"\xff" * 2000 + data[2004:])
    with pytest.raises(DataError, match=r"a.parquet, row group 1: cannot be loaded"):
        opened(path)


def test_files_must_agree_in_their_labels(tmp_path):
    written(tmp_path / "a.csv", "a,b,y\n1,2,1.5\n")
    written(tmp_path / "b.csv", "a,b,y\n1,2,3\n")
    assert opened(tmp_path).classes is None and labels_of(opened(tmp_path)) == [1.5, 3.0]
    written(tmp_path / "b.csv", "a,b,y\n1,2,up\n")
    with pytest.raises(DataError, match=r"labels of .*b.csv are names and those of .*a.csv real numbers"):
        opened(tmp_path)
    written(tmp_path / "b.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match=r"b.csv has no labels, while other files"):
        opened(tmp_path)


def series_of_first(source, count):
    return [
        [[None if np.isnan(x) else x for x in step] for step in record["values"]]
        for record in source.read(range(count))
    ]
