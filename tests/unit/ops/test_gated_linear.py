import pytest
import torch
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.gsa.naive import naive_recurrent_gsa

from flame.ops.delta_entries import chunk_gated_delta_rule
from flame.ops.gated_linear import gated_linear_attention, gated_linear_attention_by_token
from flame.ops.kda import chunk_kda
from flame.ops.linear_entries import chunk_gla, chunk_simple_gla
from flame.ops.slots import additive_gate, chunk_abc, chunk_gsa
from flame.ops.states import documents_of
from tests.unit.ops.agreement import worst_error

DECAYS = ("none", "key", "head", "value", "bonus")


def inputs(decay: str, rate: float, length: int, head: int = 16, documents: int = 2, batch: int = 2):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {name: normal(batch, length, 2, head) for name in ("q", "k")}
    tensors["v"] = normal(batch, length, 2, head // 2)
    width = {"key": head, "bonus": head, "head": 1, "value": head // 2}.get(decay)
    if width:
        gates = -torch.rand(batch, length, 2, width, generator=generator, dtype=torch.float64) * rate
        tensors["gv" if decay == "value" else "g"] = gates
    if decay == "bonus":
        tensors["bonus"] = normal(2, head)
    tensors["state"] = normal(documents, 2, head, head // 2)
    return tensors


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("rate", [0.1, 5.0, 60.0, 300.0])
def test_chunks_equal_the_token_loop_for_every_decay(decay, rate):
    """Rates of 60 are decays of exp(-30) per token on average, 300 sums to about -1e4 over a chunk."""
    found = inputs(decay, rate, length=130)
    assert worst_error(gated_linear_attention, gated_linear_attention_by_token, found) < 3e-6


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 17, 63, 64, 65])
def test_any_length_equals_the_token_loop(decay, length):
    found = inputs(decay, 1.0, length)
    assert worst_error(gated_linear_attention, gated_linear_attention_by_token, found) < 3e-6


@pytest.mark.parametrize("decay", DECAYS)
def test_packed_documents_do_not_see_each_other(decay):
    borders = torch.tensor([0, 1, 66, 66, 130, 199])
    found = inputs(decay, 3.0, 199, documents=5, batch=1)
    error = worst_error(gated_linear_attention, gated_linear_attention_by_token, found, cu_seqlens=borders)
    assert error < 3e-6


@pytest.mark.parametrize("head", [32, 256])
@pytest.mark.parametrize("rate", [1.0, 60.0])
def test_head_sizes_equal_the_token_loop(head, rate):
    assert worst_error(gated_linear_attention, gated_linear_attention_by_token, inputs("key", rate, 70, head)) < 3e-6


@pytest.mark.parametrize("decay", DECAYS)
def test_bfloat16_is_as_exact_as_its_digits(decay):
    found = {name: x.bfloat16().double() for name, x in inputs(decay, 1.0, 100).items()}
    error = worst_error(gated_linear_attention, gated_linear_attention_by_token, found, torch.bfloat16)
    assert error < 4e-2


@pytest.mark.parametrize("decay", ["key", "value", "bonus"])
def test_float16_does_not_overflow(decay):
    found = {name: x.half().double() for name, x in inputs(decay, 1.0, 100).items()}
    error = worst_error(gated_linear_attention, gated_linear_attention_by_token, found, torch.float16)
    assert error < 1e-2


def test_one_large_drop_leaves_later_tokens_exact():
    """Sums of 1e4 in float32 would round the small decays after the drop to multiples of 1e-3."""
    found = inputs("key", 0.01, 64)
    found["g"][:, 5] = -1e4
    assert worst_error(gated_linear_attention, gated_linear_attention_by_token, found) < 3e-6


def test_the_definition_is_that_of_fla():
    q, k, v = (torch.randn(2, 40, 2, 8) for _ in range(3))
    gates = torch.nn.functional.logsigmoid(torch.randn(2, 40, 2, 8))
    expected, state = naive_recurrent_gla(q, k, v, gates, output_final_state=True)
    output, final = chunk_gla(q, k, v, gates, output_final_state=True)
    torch.testing.assert_close((output, final), (expected, state), rtol=1e-4, atol=1e-5)


def test_a_continued_sequence_equals_the_whole():
    q, k, v = (torch.randn(1, 50, 2, 8) for _ in range(3))
    gates = -torch.rand(1, 50, 2)
    whole, _ = chunk_simple_gla(q, k, v, gates)
    early, late = ([x[:, part] for x in (q, k, v, gates)] for part in (slice(30), slice(30, None)))
    front, state = chunk_simple_gla(*early, output_final_state=True, state_v_first=True)  # type: ignore[arg-type]
    assert state is not None
    back, _ = chunk_simple_gla(*late, initial_state=state, state_v_first=True)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat([front, back], 1), whole, rtol=1e-5, atol=1e-5)


def test_borders_that_miss_tokens_are_refused():
    x = torch.randn(1, 10, 2, 4)
    with pytest.raises(ValueError, match=r"from 0 to 8 does not cover one row of 10 tokens"):
        gated_linear_attention(x, x, x, cu_seqlens=torch.tensor([0, 8]))


@pytest.mark.parametrize("function", [chunk_simple_gla, chunk_gated_delta_rule, chunk_kda])
def test_an_option_that_would_be_ignored_is_refused(function):
    x = torch.randn(1, 4, 2, 4)
    with pytest.raises(ValueError, match="head_first: no such option without Triton; leave it out"):
        function(x, x, x, x, x[..., 0], head_first=True)


def test_a_state_of_another_shape_is_refused():
    x = torch.randn(2, 10, 2, 4)
    with pytest.raises(ValueError, match=r"initial state of shape \(1, 2, 4, 4\) does not fit"):
        gated_linear_attention(x, x, x, state=torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize("gated", [True, False])
def test_slot_attention_is_that_of_fla(gated):
    q, k, v, s = (torch.randn(2, 70, 2, 8) for _ in range(4))
    gates = torch.nn.functional.logsigmoid(torch.randn(2, 70, 2, 8)) if gated else None
    if not gated:  # fla's naive version takes [B, H, T, D] sums; its gate is defined over the time axis
        z = s.logcumsumexp(1)
        weights, decay = (s - z).exp(), torch.cat([z[:, :1], z[:, :-1]], 1) - z
        expected, _ = naive_recurrent_gsa(q, k, v, weights, decay)
    else:
        expected, _ = naive_recurrent_gsa(q, k, v, s, gates)
    torch.testing.assert_close(chunk_gsa(q, k, v, s, gates)[0], expected, rtol=1e-4, atol=1e-5)


def gate_by_token(x, state, cu_seqlens=None):
    weights, gates, finals = [], [], []
    for index, (row, tokens) in enumerate(documents_of(x, cu_seqlens)):
        z = state[index, 0]
        for t in tokens:
            z, previous = torch.logaddexp(z, x[row, t]), z
            weights.append((x[row, t] - z).exp())
            gates.append(previous - z)
        finals.append(z[None])
    return torch.stack(weights).view(x.shape), torch.stack(gates).view(x.shape), torch.stack(finals)


@pytest.mark.parametrize(("length", "borders"), [(1, None), (70, None), (200, [0, 1, 34, 150, 200])])
def test_the_additive_gate_equals_its_token_loop(length, borders):
    rows, documents = (2, 2) if borders is None else (1, len(borders) - 1)
    found = {"x": torch.randn(rows, length, 2, 4) * 5, "state": torch.randn(documents, 1, 2, 4)}
    cu_seqlens = None if borders is None else torch.tensor(borders)
    assert worst_error(additive_gate, gate_by_token, found, cu_seqlens=cu_seqlens) < 2e-5


def test_a_gate_without_a_past_starts_at_one():
    weights, gates, _ = additive_gate(torch.randn(2, 5, 2, 4))
    assert torch.equal(weights[:, 0], torch.ones(2, 2, 4))
    assert torch.equal(gates[:, 0], torch.zeros(2, 2, 4))


def test_abc_continues_where_it_stopped():
    q, k, v, s = (torch.randn(1, 40, 2, 8) for _ in range(4))
    whole, _ = chunk_abc(q, k, v, s)
    early, late = ([x[:, part] for x in (q, k, v, s)] for part in (slice(25), slice(25, None)))
    front, state = chunk_abc(*early, output_final_state=True)  # type: ignore[arg-type]
    back, _ = chunk_abc(*late, initial_state=state)  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat([front, back], 1), whole, rtol=1e-5, atol=1e-5)
