import pytest
import torch
from fla.ops.hgrn.naive import naive_recurrent_hgrn

from flame.ops.mamba import SEGMENT, selective_scan, selective_scan_by_token
from flame.ops.scan import chunk_hgrn, elementwise_scan, elementwise_scan_by_token
from tests.unit.ops.agreement import worst_error


@pytest.mark.parametrize("length", [1, 17, 31, 32, 33, 130])
@pytest.mark.parametrize("rate", [0.1, 60.0, 300.0])
def test_the_scan_equals_its_token_loop(length, rate):
    found = {"x": torch.randn(2, length, 8), "g": -torch.rand(2, length, 8) * rate, "state": torch.randn(2, 8)}
    assert worst_error(elementwise_scan, elementwise_scan_by_token, found) < 1e-6


def test_packed_documents_do_not_see_each_other():
    borders = torch.tensor([0, 1, 34, 34, 150, 200])
    found = {"x": torch.randn(1, 200, 8), "g": -torch.rand(1, 200, 8), "state": torch.randn(5, 8)}
    assert worst_error(elementwise_scan, elementwise_scan_by_token, found, cu_seqlens=borders) < 1e-6


def test_the_definition_is_that_of_fla():
    x, gates = torch.randn(2, 40, 8), -torch.rand(2, 40, 8)
    expected = naive_recurrent_hgrn(x, gates, output_final_state=True)
    torch.testing.assert_close(chunk_hgrn(x, gates, output_final_state=True), expected, rtol=1e-5, atol=1e-6)


def test_an_open_forget_gate_keeps_everything_and_a_closed_one_nothing():
    x = torch.randn(1, 50, 4)
    torch.testing.assert_close(elementwise_scan(x, torch.zeros_like(x))[0], x.cumsum(1))
    torch.testing.assert_close(elementwise_scan(x, torch.full_like(x, -1e4))[0], x)


@pytest.mark.parametrize("length", [1, 40, SEGMENT + 3])
def test_the_selective_scan_equals_its_token_loop(length):
    found = {
        "x": torch.randn(2, length, 6),
        "dt": torch.rand(2, length, 6) * 3,
        "a": -torch.rand(6, 4) * 10,
        "b": torch.randn(2, length, 4),
        "c": torch.randn(2, length, 4),
        "state": torch.randn(2, 6, 4),
    }
    assert worst_error(selective_scan, selective_scan_by_token, found) < 2e-6
