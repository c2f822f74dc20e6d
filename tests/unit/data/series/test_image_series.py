"""Images as series: the digits of scikit-learn, MNIST and CIFAR-10 from their files."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
from series_stand_ins import good, labels_of, opened

from flame.data.series.cifar10 import CLASSES
from flame.data.series.digits import test_images as images_for_test
from flame.data.series.images import permutation
from flame.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
PIXELS = np.random.default_rng(1).integers(0, 256, (4, 3, 32, 32), np.uint8)


class Command:
    """What a malicious pickle does."""

    def __reduce__(self):
        import os

        return os.system, ("true",)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(extent.to_bytes(4, "big") for extent in array.shape)
    return header + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A folder of MNIST's files, those for the test compressed."""
    labels = np.array([3, 1, 9], np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[:1]), mtime=0))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[:1]), mtime=0))
    return tmp_path


def records(labels, pixels):
    return b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True))


def batch(labels, pixels):
    return pickle.dumps({b"data": pixels.reshape(len(pixels), -1), b"labels": list(labels)}, protocol=2)


def archive(path, **members):
    with tarfile.open(path, "w:gz") as packed:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def test_every_fifth_digit_of_each_class_is_for_the_test():
    train, test = opened("builtin:sklearn-digits"), opened("builtin:sklearn-digits", split="test")
    assert (len(train), len(test), train.channels) == (1442, 355, 8)
    assert train.classes == test.classes == [str(digit) for digit in range(10)]
    counts = np.unique(labels_of(test), return_counts=True)[1]
    assert counts.min() >= 34 and counts.max() <= 36
    assert images_for_test(np.array([1, 2, 1, 1, 1, 1, 2])).tolist() == [False] * 5 + [True, False]


def test_digits_come_by_rows_or_by_pixels():
    rows, pixels = (good(opened("builtin:sklearn-digits", name=name))[0]["values"] for name in ("rows", "pixels"))
    assert rows.shape == (8, 8) and pixels.shape == (64, 1) and rows.dtype == np.float32
    assert np.array_equal(rows.reshape(-1), pixels[:, 0]) and rows.min() == 0 and 0.8 < rows.max() <= 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "validation"}, "no split 'validation'"),
        ({"name": "pixel"}, "no view 'pixel'.*Did you mean 'pixels'"),
        ({"name": "permuted"}, "no view 'permuted'"),
        ({"label_column": "y"}, "label_column = 'y' has no effect"),
    ],
)
def test_digits_refuse_what_they_do_not_have(keys, message):
    with pytest.raises(DataError, match=message):
        opened("builtin:sklearn-digits", **keys)


def test_mnist_is_read_from_its_files_plain_or_compressed(mnist):
    train, test = opened(mnist), opened(mnist, split="test", format="mnist")
    assert (len(train), len(test), train.channels) == (3, 1, 5)
    assert labels_of(train) == ["3", "1", "9"] and labels_of(test) == ["3"] and train.classes == list("0123456789")
    assert np.allclose(good(train)[1]["values"], IMAGES[1] / 255, atol=1e-7)
    assert np.array_equal(good(test)[0]["values"], good(train)[0]["values"])
    assert train.where(1).endswith("train-images-idx3-ubyte, image 2")


def test_mnist_by_pixels_in_order_or_permuted_alike_for_all(mnist):
    pixels, permuted = opened(mnist, name="pixels"), opened(mnist, name="permuted")
    assert pixels.channels == 1 and pixels.lengths(np.arange(3)).tolist() == [20] * 3
    order = permutation(20)
    assert sorted(order) == list(range(20)) and order.tolist() == np.random.RandomState(0).permutation(20).tolist()
    for plain, mixed in zip(good(pixels), good(permuted), strict=True):
        assert np.array_equal(plain["values"][order], mixed["values"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(IMAGES)[:-1], r"train-images-idx3-ubyte should have 76 bytes, and has 75"),
        ("train-images-idx3-ubyte", b"\0\0\x08", r"train-images-idx3-ubyte does not begin as an idx file"),
        ("train-images-idx3-ubyte", idx(IMAGES[:2]), r"holds 2 images, and .* 3 labels"),
        ("train-labels-idx1-ubyte", idx(IMAGES), r"train-labels-idx1-ubyte does not begin as an idx file"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(IMAGES[:1]), mtime=0)[:-9], r"t10k.*gz cannot be decompressed"),
    ],
)
def test_damaged_files_of_mnist_are_named(mnist, name, content, message):
    (mnist / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        opened(mnist, split="test" if name.startswith("t10k") else "train")


def test_a_missing_file_of_mnist_is_named(mnist):
    (mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="no file t10k-labels-idx1-ubyte"):
        opened(mnist, split="test")


@pytest.mark.parametrize("version", ["binary", "python", "binary archive", "python archive"])
def test_cifar10_is_the_same_in_all_its_versions(tmp_path, version):
    path, make = tmp_path, records if "binary" in version else batch
    suffix = ".bin" if "binary" in version else ""
    members = {
        f"data_batch_1{suffix}": make([9, 0], PIXELS[:2]),
        f"data_batch_2{suffix}": make([5], PIXELS[2:3]),
        f"test_batch{suffix}": make([1], PIXELS[3:]),
    }
    if "archive" in version:
        path = archive(tmp_path / "cifar-10-some.tar.gz", **members)
    else:
        for name, content in members.items():
            (tmp_path / name).write_bytes(content)
    train, test = opened(path, name="pixels"), opened(path, name="rows", split="test")
    assert labels_of(train) == ["truck", "airplane", "dog"] and labels_of(test) == ["automobile"]
    assert train.classes == list(CLASSES) and (train.channels, test.channels) == (3, 96)
    assert train.lengths(np.arange(3)).tolist() == [1024] * 3
    for place, record in enumerate(good(train)):
        assert np.allclose(record["values"], PIXELS[place].reshape(3, 1024).T / 255, atol=1e-7)
    assert np.allclose(good(test)[0]["values"], PIXELS[3].transpose(1, 2, 0).reshape(32, 96) / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_1.bin", records([1, 2], PIXELS[:2])[:-7], r"cut off within the record that begins at byte 3,073"),
        ("data_batch_1.bin", b"", r"data_batch_1.bin is cut off"),
        ("data_batch_1", batch([1], PIXELS[:1])[:-50], r"data_batch_1 is no batch of CIFAR-10, or damaged"),
        ("data_batch_1", batch([1, 2], PIXELS[:1]), r"its labels do not fit its 1 images"),
        ("data_batch_1", pickle.dumps([1]), r"it holds list, not a dict"),
        ("data_batch_1", pickle.dumps(Command()), r"it wants \w+.system, which is not admitted"),
        ("test_batch", batch([1], PIXELS[:1]), r"no batches of split 'train'"),
    ],
)
def test_damaged_batches_of_cifar10_are_named_and_never_run(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, format="cifar10")


def test_a_damaged_archive_of_cifar10_is_named(tmp_path):
    path = archive(tmp_path / "cifar-10-some.tar.gz", **{"data_batch_1.bin": records([1] * 4, PIXELS)})
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"cifar-10-some.tar.gz is damaged or incomplete"):
        opened(path)
    with pytest.raises(DataError, match=r"holds no batches of split 'test'"):
        opened(archive(path, **{"data_batch_1.bin": records([1], PIXELS[:1])}), split="test")
