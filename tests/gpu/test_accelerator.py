"""What only an accelerator can show:  pytest tests/gpu -m gpu"""

import json
from pathlib import Path

import pytest
import torch

from flame import launch
from flame.losses import cross_entropy_sum
from flame.models.head import _linear_cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_fused_loss_equals_the_naive_one() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 300, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(1000, 128, device="cuda") * 0.1).to(torch.bfloat16).requires_grad_()
    labels = torch.randint(0, 1000, (2, 300), device="cuda")
    labels[:, ::5] = -100
    expected = cross_entropy_sum(hidden @ weight.t(), labels)
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    loss = _linear_cross_entropy(hidden, weight, None, labels, 0.0)
    grads = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    for grad, other in zip(grads, expected_grads, strict=True):
        assert (grad - other).norm() <= 2e-2 * other.norm()


@pytest.mark.parametrize("varlen", ["false", "true"])
def test_quickstart_learns(varlen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPU", "1")
    arguments = ["--job.config_file", "quickstart", "--job.dump_folder", str(tmp_path), "--training.steps", "60"]
    arguments += ["--training.varlen", varlen, "--validation.enable", "false"]
    assert launch.main(arguments) == 0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"] - 1
    assert (tmp_path / "hf" / "latest" / "model.safetensors").is_file()
