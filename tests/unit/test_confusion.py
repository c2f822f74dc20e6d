"""Confusion matrices: the figure made of one, and its picture."""

from pathlib import Path

import pytest
import torch

from flame.confusion import draw_confusion, macro_f1


def test_macro_f1_is_the_mean_over_classes_that_occur_or_are_predicted() -> None:
    # Class 0: precision 2/3, recall 2/2; class 1: precision 1/2, recall 1/3; class 2 is predicted only once, wrongly.
    confusion = torch.tensor([[2, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert macro_f1(confusion) == pytest.approx((4 / 5 + 2 / 5 + 0) / 3)
    assert macro_f1(torch.zeros(3, 3)) == 0
    assert macro_f1(torch.diag(torch.tensor([4, 5]))) == 1


@pytest.mark.parametrize("count", [2, 30])
def test_the_confusion_matrix_is_drawn(tmp_path: Path, count: int) -> None:
    classes = [f"class {number}" for number in range(count)]
    draw_confusion(torch.randint(5, (count, count)).double(), classes, tmp_path / "validation" / "confusion-7.png")
    draw_confusion(torch.zeros(count, count), classes, tmp_path / "validation" / "empty.png")
    for file in ("confusion-7.png", "empty.png"):
        assert (tmp_path / "validation" / file).read_bytes().startswith(b"\x89PNG")
