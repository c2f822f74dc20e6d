"""The CTC loss is minus the logarithm of the probability of all paths that read as the labels."""

import math

import numpy as np
import pytest
import torch
from ctc_by_hand import BLANK, probabilities, random_scores

from flame.losses import IGNORE_INDEX, ctc_sum


def loss_of(scores: list[np.ndarray], labels: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of rows that are padded to the longest with garbage, and the gradient of the logits."""
    longest, most = max(map(len, scores)), max(1, *map(len, labels))
    logits = torch.full((len(scores), longest, scores[0].shape[1]), 7.0)
    padded = torch.full((len(labels), most), IGNORE_INDEX)
    for row, (one, wanted) in enumerate(zip(scores, labels, strict=True)):
        logits[row, : len(one)] = torch.from_numpy(one)
        padded[row, : len(wanted)] = torch.tensor(wanted, dtype=torch.long)
    logits.requires_grad_()
    loss = ctc_sum(logits, padded, torch.tensor([len(one) for one in scores]), BLANK)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


def by_hand(scores: np.ndarray, labels: list[int]) -> float:
    return -math.log(probabilities(scores)[tuple(labels)])


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], [3, 2, 3], [2, 2, 1], [1, 2, 3, 1]])
def test_the_loss_is_that_of_all_paths(steps: int, labels: list[int]) -> None:
    scores = random_scores(steps, 4, seed=steps)
    loss, gradient = loss_of([scores], [labels])
    if tuple(labels) in probabilities(scores):
        assert loss.item() == pytest.approx(by_hand(scores, labels), rel=1e-5)
        assert gradient.abs().sum() > 0
    else:
        assert loss.item() == 0 and not gradient.any(), "a row that is too short must not count"


def test_the_gradient_is_that_of_the_probability() -> None:
    scores, labels, small = random_scores(4, 3, seed=1), [1, 2, 2], 1e-4
    _, gradient = loss_of([scores], [labels])
    for step, label in np.ndindex(scores.shape):
        around = []
        for sign in (1, -1):
            moved = scores.copy()
            moved[step, label] += sign * small
            moved -= np.log(np.exp(moved).sum(1, keepdims=True))
            around.append(by_hand(moved, labels))
        assert gradient[0, step, label].item() == pytest.approx((around[0] - around[1]) / (2 * small), abs=1e-5)


def test_rows_are_summed_and_padding_changes_nothing() -> None:
    scores = [random_scores(steps, 4, seed=steps) for steps in (3, 5, 4)]
    labels = [[1, 2], [3, 3], [2]]
    loss, gradient = loss_of(scores, labels)
    assert loss.item() == pytest.approx(sum(map(by_hand, scores, labels)), rel=1e-5)
    assert not gradient[0, 3:].any() and not gradient[2, 4:].any()


@pytest.mark.parametrize("labels", [[], [1, 1, 1]], ids=["without labels", "too short for its labels"])
def test_a_row_that_says_nothing_adds_nothing(labels: list[int]) -> None:
    scores = [random_scores(4, 3, seed=0), random_scores(4, 3, seed=1)]
    loss, gradient = loss_of(scores, [[1, 2], labels])
    assert loss.item() == pytest.approx(by_hand(scores[0], [1, 2]), rel=1e-5)
    assert gradient[0].any() and not gradient[1].any()


def test_a_batch_without_labels_has_no_loss() -> None:
    loss, gradient = loss_of([random_scores(1, 3, seed=0)], [[]])
    assert loss.item() == 0 and not gradient.any()


def test_logits_of_half_precision_are_summed_in_full_precision() -> None:
    scores = random_scores(5, 4, seed=2)
    logits = torch.from_numpy(scores)[None].bfloat16()
    loss = ctc_sum(logits, torch.tensor([[1, 3]]), torch.tensor([5]), BLANK)
    assert loss.dtype == torch.float32
    exact = logits[0].double().log_softmax(-1).numpy()
    assert loss.item() == pytest.approx(by_hand(exact, [1, 3]), rel=1e-5)
