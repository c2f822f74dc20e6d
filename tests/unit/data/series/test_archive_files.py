"""Files of the UCR and UEA archives: .ts, .arff and the older text files."""

import gzip

import numpy as np
import pytest
from series_stand_ins import TS, faults, labels_of, opened, series_of, written

from flame.errors import DataError

ARFF = """% a comment
@relation two
@attribute att0 numeric
@attribute 'att 1' REAL
@attribute target {1,2,10}
@data
1.5,2,10
?,-3e1,2
"""
RELATIONAL = """@relation 'motions'
@attribute relationalAtt relational
  @attribute att0 numeric
  @attribute att1 numeric
@end relationalAtt
@attribute activity {Standing,'Sitting down'}
@data
'1,2\\n3,4\\n5,6',Standing
"7,8\\n9,?\\n1,2",'Sitting down'
"""


def test_a_ts_file_gives_channels_missing_values_and_unequal_lengths(tmp_path):
    source = opened(written(tmp_path / "a.ts", TS))
    assert source.channels == 2 and source.classes == ["a", "b"] and source.targets is None
    assert series_of(source) == [[[1, 4], [2, 5], [3, 6]], [[1, None], [None, 4]]]
    assert labels_of(source) == ["a", "b"]
    assert source.lengths(np.array([1, 0])).tolist() == [2, 3]
    assert source.where(1).endswith("a.ts, line 9")


def test_targets_of_a_ts_file_are_floats_even_if_integral(tmp_path):
    source = opened(written(tmp_path / "a.ts", "@univariate true\n@targetlabel true\n@data\n1,2:3\n4,5:6\n"))
    assert source.classes is None and labels_of(source) == [3.0, 6.0]
    assert source.targets is not None and source.targets.tolist() == [3, 6]


def test_a_ts_file_without_labels_is_read_without(tmp_path):
    source = opened(written(tmp_path / "a.ts", "@univariate true\n@classLabel false\n@data\n1,2\n"))
    assert source.classes is None and source.targets is None and not source.labelled
    assert labels_of(source) == [None]


def test_declared_classes_are_kept_though_none_has_them(tmp_path):
    source = opened(written(tmp_path / "a.ts", "@classLabel true 1 2 10\n@data\n1,2:10\n"))
    assert source.classes == ["1", "2", "10"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_read(tmp_path, suffix):
    import zstandard

    packed = gzip.compress(TS.encode()) if suffix == ".gz" else zstandard.compress(TS.encode())
    path = tmp_path / f"a.ts{suffix}"
    path.write_bytes(packed)
    assert labels_of(opened(path)) == ["a", "b"]
    path.write_bytes(packed[:-9])
    with pytest.raises(DataError, match=r"cannot be decompressed after line \d+.*fetch it again"):
        opened(path)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1,2:a", "line 10: other number of channels (1, not 2)"),
        ("1,2:3", "line 10: unknown class ('3' is not among those of @classLabel)"),
        ("1,2:3,4", "line 10: unknown class ('3,4' is not among those of @classLabel)"),
        ("1,2", "line 10: no label (no ':' on the line)"),
        ("1,2:3,4:", "line 10: no label"),
        ("1,2:3,4:?", "line 10: no label"),
        ("1,2:3,x:a", "line 10: not a number (channel 2, value 2 is 'x')"),
        ("1,2:3:a", "line 10: channels of different lengths (channels of 1 and of 2 steps)"),
        (":3:a", "line 10: channels of different lengths (channels of 0 and of 1 steps)"),
        ("::a", "line 10: empty series"),
        ("1,2:3,4:c", "line 10: unknown class ('c' is not among those of @classLabel)"),
        ("1,inf:3,4:a", "line 10: infinite value (step 2, channel 1)"),
        ("1,1e99:3,4:a", "line 10: infinite value (step 2, channel 1)"),
        ("\x00\x00", "line 10: no label (no ':' on the line)"),
    ],
)
def test_a_faulty_line_of_a_ts_file_is_a_bad_row(tmp_path, line, fault):
    source = opened(written(tmp_path / "a.ts", TS + line + "\n"))
    assert len(source) == 3 and faults(source) == [f"a.ts, {fault}"]


def test_text_that_is_no_utf8_is_a_bad_row(tmp_path):
    path = written(tmp_path / "a.ts", TS)
    path.write_bytes(path.read_bytes() + b"1,2:\xff\xfe:a\n")
    assert faults(opened(path)) == ["a.ts, line 10: invalid UTF-8 (byte 4 of the line)"]


def test_a_channel_without_any_value_is_allowed(tmp_path):
    source = opened(written(tmp_path / "a.ts", "@classLabel true a\n@data\n1,2:?,?:a\n"))
    assert series_of(source) == [[[1, None], [2, None]]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TS.replace("timeStamps false", "timeStamps true"), r"a.ts, line 3: series with time stamps are not read"),
        ("@classLabel true a\n", r"a.ts ends before @data"),
        ("1,2,3:a\n", r"a.ts, line 1: '1,2,3:a' before @data: it is no .ts file"),
        ("@frequency 3\n@data\n1:a\n", r"line 1: unknown tag '@frequency'"),
        ("@dimensions many\n@data\n1:a\n", r"line 1: .* should end in the number of channels"),
        ("@classLabel true a\n@data\n", r"holds no series"),
        ("", r"a.ts ends before @data"),
        ("@classLabel true a\n@data\nx:a\ny:a\n", r"none of the 2 series .* line 3: not a number \(value 1 is 'x'\)"),
        ("@\n", r"unknown tag"),
    ],
)
def test_a_ts_file_that_is_wrong_as_a_whole_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        opened(written(tmp_path / "a.ts", text))


def test_an_arff_file_has_a_column_per_step(tmp_path):
    source = opened(written(tmp_path / "a.arff", ARFF))
    assert source.classes == ["1", "2", "10"] and labels_of(source) == ["10", "2"]
    assert series_of(source) == [[[1.5], [2]], [[None], [-30]]]


def test_a_relational_arff_file_has_a_row_per_channel(tmp_path):
    source = opened(written(tmp_path / "a.arff", RELATIONAL))
    assert source.channels == 3 and labels_of(source) == ["Standing", "Sitting down"]
    assert series_of(source) == [[[1, 3, 5], [2, 4, 6]], [[7, 9, 1], [8, None, 2]]]


def test_a_numeric_target_of_an_arff_file_is_a_target_unless_all_are_integral(tmp_path):
    text = ARFF.replace("{1,2,10}", "numeric")
    assert opened(written(tmp_path / "a.arff", text)).classes == ["2", "10"]
    source = opened(written(tmp_path / "b.arff", text.replace("2,10", "2,10.5")))
    assert labels_of(source) == [10.5, 2.0] and source.classes is None


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("1,2", "line 9: other number of columns (2, not 3)"),
        ("1,2,3,1", "line 9: other number of columns (4, not 3)"),
        ("1,'2,1", "line 9: other number of columns (an open quote)"),
        ("1,x,1", "line 9: not a number (value 2 is 'x')"),
        ("1,2,7", "line 9: unknown class ('7' is not among those of 'target')"),
        ("1,2,?", "line 9: no label"),
        ("{0 1, 2 1}", "line 9: sparse row (only rows that list all values are read)"),
    ],
)
def test_a_faulty_line_of_an_arff_file_is_a_bad_row(tmp_path, line, fault):
    assert faults(opened(written(tmp_path / "a.arff", ARFF + line + "\n"))) == [f"a.arff, {fault}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ARFF.partition("@data")[0], r"a.arff ends before @data"),
        (ARFF.replace("'att 1' REAL", "when date"), r"attribute 'when' is date, not numeric"),
        (ARFF.replace("@relation two", "relation two"), r"line 2: 'relation two' before @data"),
        (ARFF.replace("att0 numeric", "att0"), r"line 3: '@attribute att0' is no attribute"),
        (ARFF.partition("1.5")[0], r"holds no series"),
    ],
)
def test_an_arff_file_that_is_wrong_as_a_whole_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        opened(written(tmp_path / "a.arff", text))


@pytest.mark.parametrize(
    ("name", "separator", "label"),
    [("X_TRAIN.tsv", "\t", "1"), ("X_TRAIN.txt", ",", "1"), ("X_TRAIN.txt", "  ", "1.0e+00")],
)
def test_text_files_of_the_archive_have_the_label_first(tmp_path, name, separator, label):
    rows = [[label, "1.5", "2", "NaN"], ["-1", "NaN", "3", "4"]]
    source = opened(written(tmp_path / name, "".join(f"  {separator.join(row)}\n" for row in rows)))
    assert source.classes == ["-1", "1"] and labels_of(source) == ["1", "-1"]
    assert series_of(source) == [[[1.5], [2]], [[None], [3], [4]]]


def test_faulty_lines_of_such_files_are_bad_rows(tmp_path):
    path = written(tmp_path / "X_TEST.tsv", "1\t1\t2\n2\t1\tx\nNaN\t1\t2\n1\tNaN\tNaN\n1\n")
    assert faults(opened(path)) == [
        "X_TEST.tsv, line 2: not a number (value 2 is 'x')",
        "X_TEST.tsv, line 3: no label",
        "X_TEST.tsv, line 4: empty series",
        "X_TEST.tsv, line 5: empty series",
    ]
