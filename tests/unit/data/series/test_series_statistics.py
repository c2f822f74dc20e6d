"""Mean and deviation of every channel."""

import numpy as np
import pytest
from series_stand_ins import opened, written

from flame.data.series.statistics import series_statistics
from flame.errors import DataError


def source_of(path, values, lengths=None):
    np.savez(
        path, values=values, lengths=lengths if lengths is not None else [len(values)], y=np.arange(len(lengths or [0]))
    )
    return opened(path)


def test_statistics_are_those_of_all_steps_without_missing_ones(tmp_path):
    values = np.random.default_rng(0).normal(3, [1, 20, 0.1], (1000, 3)).astype(np.float32)
    values[::7, 1] = np.nan
    mean, deviation = series_statistics(source_of(tmp_path / "a.npz", values, [1, 500, 399, 100]))
    assert mean.dtype == deviation.dtype == np.float64
    assert np.allclose(mean, np.nanmean(values.astype(float), axis=0), rtol=1e-12)
    assert np.allclose(deviation, np.nanstd(values.astype(float), axis=0), rtol=1e-12)


def test_digits_are_not_lost_where_the_mean_is_large(tmp_path):
    values = (1e6 + np.random.default_rng(0).integers(0, 2, (4000, 1))).astype(np.float32)
    mean, deviation = series_statistics(source_of(tmp_path / "a.npz", values, [1000] * 4))
    assert np.isclose(deviation, values.astype(float).std(), rtol=1e-9) and np.isclose(
        mean, values.astype(float).mean()
    )


def test_a_constant_channel_has_the_deviation_one_and_an_empty_one_the_mean_zero(tmp_path):
    values = np.stack([np.full(30, 0.1), np.full(30, np.nan), np.arange(30)], axis=1).astype(np.float32)
    mean, deviation = series_statistics(source_of(tmp_path / "a.npz", values, [10, 20]))
    assert np.allclose(mean, [0.1, 0, 14.5]) and deviation[:2].tolist() == [1, 1] and deviation[2] > 8


def test_large_sources_are_sampled_evenly_and_bad_rows_left_out(tmp_path):
    lines = "".join(f"{number}:a\n" if number % 2 else "x:a\n" for number in range(1, 102))
    source = opened(written(tmp_path / "a.ts", "@classLabel true a\n@data\n" + lines))
    mean, _ = series_statistics(source, most=10)
    assert 20 < mean[0] < 80
    assert series_statistics(source)[0][0] == 51


def test_a_source_of_bad_rows_only_is_an_error(tmp_path):
    source = source_of(tmp_path / "a.npz", np.full(4, np.inf), [2, 2])
    with pytest.raises(DataError, match="none of 2 series"):
        series_statistics(source)
