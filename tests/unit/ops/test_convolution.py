import pytest
import torch
from torch.nn import functional as F

from flame.ops.convolution import causal_conv1d, causal_conv1d_update, causal_conv1d_update_states
from tests.unit.ops.agreement import worst_error

BORDERS = torch.tensor([0, 1, 3, 20, 20, 24, 40])


def by_token(x, weight, bias=None, residual=None, state=None, activation=None, cu_seqlens=None):
    """The definition: one token after the other, each document with its own window of the last W inputs."""
    channels, width = weight.shape
    if cu_seqlens is None:
        documents = list(x)
    else:
        documents = [x[0, a:b] for a, b in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)]
    outputs, states = [], []
    for number, document in enumerate(documents):
        window = x.new_zeros(channels, width) if state is None else state[number]
        for token in document:
            window = torch.cat([window[:, 1:], token[:, None]], 1)
            y = (window * weight).sum(1) + (0 if bias is None else bias)
            outputs.append(F.silu(y) if activation else y)
        states.append(window)
    y = torch.stack(outputs).view_as(x)
    return (y if residual is None else y + residual), torch.stack(states)


def ours(x, weight, bias=None, residual=None, state=None, **options):
    return causal_conv1d(x, weight, bias, residual, state, True, **options)


def tensors(*names, rows=2, length=9, channels=6, width=4, documents=None):
    shapes = {
        "x": (rows, length, channels),
        "residual": (rows, length, channels),
        "weight": (channels, width),
        "bias": (channels,),
        "state": (documents or rows, channels, width),
    }
    return {name: torch.randn(shapes[name]) for name in names}


@pytest.mark.parametrize("length", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("names", [("x", "weight"), ("x", "weight", "bias", "residual"), ("x", "weight", "state")])
def test_the_shifted_sum_equals_the_loop_over_tokens(length, names):
    assert worst_error(ours, by_token, tensors(*names, length=length), activation="silu") < 1e-6


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_any_width_of_window_works(width):
    found = tensors("x", "weight", "bias", "state", width=width)
    assert worst_error(ours, by_token, found) < 1e-6


@pytest.mark.parametrize("names", [("x", "weight", "bias"), ("x", "weight", "bias", "state", "residual")])
def test_packed_documents_do_not_see_each_other(names):
    found = tensors(*names, rows=1, length=40, documents=len(BORDERS) - 1)
    options = {"cu_seqlens": BORDERS, "activation": "swish"}
    assert worst_error(ours, by_token, found, **options) < 1e-6
    assert worst_error(ours, by_token, found, torch.float64, **options) < 1e-12
    assert worst_error(ours, by_token, found, torch.bfloat16, **options) < 2e-2


def test_prefill_and_single_steps_continue_each_other():
    x, weight, bias = (tensors("x", "weight", "bias")[name] for name in ("x", "weight", "bias"))
    full, final = causal_conv1d(x, weight, bias, output_final_state=True, activation="silu")
    _, cache = causal_conv1d(x[:, :5], weight, bias, output_final_state=True, activation="silu")
    assert cache is not None
    for step in range(5, 9):
        y, returned = causal_conv1d_update(x[:, step : step + 1], cache, weight=weight, bias=bias, activation="silu")
        assert returned is cache
        torch.testing.assert_close(y, full[:, step : step + 1])
    torch.testing.assert_close(cache, final)


@pytest.mark.parametrize("shape", [(3, 6), (3, 1, 6), (1, 3, 6), (3, 1, 2, 3)])
def test_one_token_comes_in_any_of_its_shapes(shape):
    cache, weight, x = torch.randn(3, 6, 4), torch.randn(6, 4), torch.randn(3, 6)
    expected = (torch.cat([cache[..., 1:], x[..., None]], -1) * weight).sum(-1) + x
    y, _ = causal_conv1d_update(x.view(shape), cache, residual=x.view(shape), weight=weight)
    assert y.shape == shape
    torch.testing.assert_close(y.reshape(3, 6), expected)


def test_channels_may_come_as_heads():
    x, weight = torch.randn(2, 9, 2, 3), torch.randn(6, 4)
    y, _ = causal_conv1d(x, weight)
    torch.testing.assert_close(y.flatten(2), causal_conv1d(x.flatten(2), weight)[0])
    assert y.shape == x.shape


def test_states_alone_are_those_of_the_convolution():
    x, state = torch.randn(1, 40, 6), torch.randn(6, 6, 4)
    _, expected = by_token(x, torch.ones(6, 4), state=state, cu_seqlens=BORDERS)
    torch.testing.assert_close(causal_conv1d_update_states(x[0], 4, state, BORDERS), expected)


def test_what_cannot_be_computed_is_refused():
    x, weight = torch.randn(2, 9, 6), torch.randn(6, 4)
    with pytest.raises(ValueError, match="context parallelism"):
        causal_conv1d(x, weight, cp_context=object())
    with pytest.raises(ValueError, match="activation 'gelu'"):
        causal_conv1d(x, weight, activation="gelu")
    with pytest.raises(ValueError, match="one row"):
        causal_conv1d(x, weight, cu_seqlens=torch.tensor([0, 18]))
    with pytest.raises(ValueError, match="weight"):
        causal_conv1d(x)
