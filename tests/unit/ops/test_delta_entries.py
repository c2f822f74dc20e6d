"""fla's entry points of the delta rules: the same numbers as fla's own references, whatever the options."""

from typing import Any

import pytest
import torch
from fla.ops.comba.naive import naive_chunk_comba
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
from fla.ops.gated_delta_rule.gate import naive_gdn_gate
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gdn2.naive import naive_recurrent_gdn2
from fla.ops.kda.gate import naive_kda_gate, naive_kda_lowerbound_gate
from fla.ops.kda.naive import naive_recurrent_kda
from torch import Tensor
from torch.nn.functional import normalize

from flame.ops import delta_entries, kda
from flame.ops.delta import delta_rule_by_token
from flame.ops.delta_inputs import unit_length
from tests.unit.ops.test_delta import results, worst

B, T, H, HV, K, V = 2, 70, 2, 4, 32, 24
FINAL: dict[str, Any] = {"output_final_state": True}


@pytest.fixture
def x() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def share(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    return {
        "q": normalize(normal(B, T, H, K), dim=-1), "k": normalize(normal(B, T, H, K), dim=-1),
        "p": 0.1 * normal(B, T, H, K), "v": normal(B, T, HV, V), "beta": share(B, T, HV), "g": -share(B, T, HV),
        "gk": -share(B, T, HV, K), "gv": -share(B, T, HV, V), "wide": share(B, T, HV, V), "erase": share(B, T, HV, K),
        "state": normal(B, HV, K, V), "A_log": normal(HV), "dt_bias": normal(HV), "dt_bias_k": normal(HV * K),
    }  # fmt: skip


def grouped(x: Tensor) -> Tensor:
    return x.repeat_interleave(HV // H, 2)


def same(ours: Any, theirs: Any, tensors: list[Tensor]) -> None:
    """Outputs, states and gradients agree."""
    assert worst(results(ours, tensors), results(theirs, tensors)) < 1e-4


@pytest.mark.parametrize("entry", ["chunk_delta_rule", "fused_recurrent_delta_rule"])
def test_delta_rule(x: dict[str, Tensor], entry: str) -> None:
    def theirs(q, k, v, beta, state):
        heads = [y.transpose(1, 2) for y in (unit_length(q), unit_length(k), v, beta)]
        o, final = delta_rule_recurrence(*heads, initial_state=state)
        return o.transpose(1, 2), final

    def ours(q, k, v, beta, state):
        return getattr(delta_entries, entry)(q, k, v, beta, initial_state=state, use_qk_l2norm_in_kernel=True, **FINAL)

    same(ours, theirs, [x["q"], 3 * x["k"], x["v"][:, :, :H], x["beta"][:, :, :H], x["state"][:, :H]])


@pytest.mark.parametrize("entry", ["chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"])
@pytest.mark.parametrize("in_kernel", [False, True])
def test_gated_delta_rule_with_grouped_values(x: dict[str, Tensor], entry: str, in_kernel: bool) -> None:
    gate = {"use_gate_in_kernel": True, "use_qk_l2norm_in_kernel": True, "use_beta_sigmoid_in_kernel": True,
            "allow_neg_eigval": True} if in_kernel else {}  # fmt: skip

    def ours(q, k, v, g, beta, state, A_log, dt_bias):
        parameters = {"A_log": A_log, "dt_bias": dt_bias} if in_kernel else {}
        result = getattr(delta_entries, entry)(
            q, k, v, g, beta=beta, initial_state=state, state_v_first=in_kernel, **gate, **parameters, **FINAL
        )
        return (*result, A_log + dt_bias)  # so that both have a gradient

    def theirs(q, k, v, g, beta, state, A_log, dt_bias):
        if in_kernel:
            q, k, g = unit_length(q), unit_length(k), naive_gdn_gate(g, A_log, dt_bias)
            beta, state = 2 * beta.sigmoid(), state.mT
        o, final = naive_recurrent_gated_delta_rule(grouped(q), grouped(k), v, beta, g, initial_state=state, **FINAL)
        assert final is not None
        return o, final.mT if in_kernel else final, A_log + dt_bias

    state = x["state"].mT.contiguous() if in_kernel else x["state"]
    same(ours, theirs, [x["q"], x["k"], x["v"], x["g"], x["beta"], state, x["A_log"], x["dt_bias"]])


@pytest.mark.parametrize("names", [("gk",), ("g", "gk"), ("gv",), ("g", "gk", "gv", "wide"), ("wide",)])
def test_further_decays_and_gates_per_channel(x: dict[str, Tensor], names: tuple[str, ...]) -> None:
    decays = {name: x[name] for name in names if name != "wide"}
    beta = x["wide" if "wide" in names else "beta"]
    ours = delta_entries.fused_recurrent_gated_delta_rule(
        x["q"], x["k"], x["v"], beta=beta, initial_state=x["state"], **decays, **FINAL
    )
    state, outputs = x["state"], []
    for t in range(T):
        if "g" in decays:
            state = state * x["g"][:, t].exp()[..., None, None]
        if "gk" in decays:
            state = state * x["gk"][:, t].exp().unsqueeze(-1)
        if "gv" in decays:
            state = state * x["gv"][:, t].exp().unsqueeze(-2)
        q, k = (y.repeat_interleave(2, 1) for y in (x["q"][:, t], x["k"][:, t]))
        strength = beta[:, t] if beta.dim() == 4 else beta[:, t].unsqueeze(-1)
        error = strength * (x["v"][:, t] - torch.einsum("bhk,bhkv->bhv", k, state))
        state = state + k.unsqueeze(-1) * error.unsqueeze(-2)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q, state) * K**-0.5)
    torch.testing.assert_close(ours, (torch.stack(outputs, 1), state), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entry", ["chunk_kda", "fused_recurrent_kda"])
@pytest.mark.parametrize("lower_bound", [None, -5.0])
def test_kda(x: dict[str, Tensor], entry: str, lower_bound: float | None) -> None:
    function = getattr(kda, entry)
    tensors = [x["q"], x["k"], x["v"], x["gk"], x["beta"], x["state"]]
    same(
        lambda *y: function(*y[:5], initial_state=y[5], **FINAL),
        lambda *y: naive_recurrent_kda(*y[:5], initial_state=y[5], **FINAL),
        tensors,
    )
    ours = function(*tensors[:5], A_log=x["A_log"], dt_bias=x["dt_bias_k"], lower_bound=lower_bound,
                    use_gate_in_kernel=True, use_qk_l2norm_in_kernel=True)  # fmt: skip
    if lower_bound is None:
        g = naive_kda_gate(x["gk"], x["A_log"], x["dt_bias_k"])
    else:
        g = naive_kda_lowerbound_gate(x["gk"], x["A_log"], x["dt_bias_k"], lower_bound)
    torch.testing.assert_close(kda.fused_kda_gate(x["gk"], x["A_log"], x["dt_bias_k"], lower_bound), g)
    theirs = naive_recurrent_kda(unit_length(x["q"]), unit_length(x["k"]), x["v"], g, x["beta"])
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
    assert ours[1] is None


@pytest.mark.parametrize("entry", ["chunk_gdn2", "fused_recurrent_gdn2"])
def test_gated_deltanet_2(x: dict[str, Tensor], entry: str) -> None:
    tensors = [grouped(x["q"]), grouped(x["k"]), x["v"], x["gk"], x["erase"], x["wide"], x["state"]]
    same(
        lambda *y: getattr(kda, entry)(*y[:6], initial_state=y[6], **FINAL),
        lambda *y: naive_recurrent_gdn2(*y[:6], initial_state=y[6], **FINAL),
        tensors,
    )


@pytest.mark.parametrize("entry", ["chunk_comba", "fused_recurrent_comba"])
def test_comba_reads_before_the_decay(x: dict[str, Tensor], entry: str) -> None:
    def ours(q, k, v, p, g, beta, state):
        return getattr(delta_entries, entry)(q=q, k=k, v=v, p=p, g=g, beta=beta, initial_state=state, **FINAL)

    def theirs(q, k, v, p, g, beta, state):
        q, k, p = grouped(q), grouped(k), grouped(p)
        return naive_chunk_comba(q, k, v, p, g, beta, initial_state=state, **FINAL)

    tensors = [x["q"], x["k"], x["v"], x["p"], x["g"], x["beta"], x["state"]]
    assert worst(results(ours, tensors)[:2], results(lambda *y: _comba_by_token(*y), tensors)[:2]) < 1e-4
    same(ours, theirs, tensors)


def _comba_by_token(q, k, v, p, g, beta, state):
    erase = grouped(p) * beta.unsqueeze(-1)
    return delta_rule_by_token(
        grouped(q) * K**-0.5, grouped(k), v * beta.unsqueeze(-1), erase, g.unsqueeze(-1), state, erase_first=True
    )


@pytest.mark.parametrize("writes", [1, 3])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_delta_product(writes: int, gated: bool, packed: bool) -> None:
    generator = torch.Generator().manual_seed(writes)
    rows, cu = (1, torch.tensor([0, 1, 40, 70])) if packed else (2, None)
    N = 3 if packed else 2
    q = torch.randn(rows, 70, H, K, generator=generator)
    k = normalize(torch.randn(rows, 70 * writes, H, K, generator=generator), dim=-1)
    v = torch.randn(rows, 70 * writes, H, V, generator=generator)
    beta = torch.rand(rows, 70 * writes, H, generator=generator)
    g = -torch.rand(rows, 70, H, generator=generator) if gated else None
    state = torch.randn(N, H, K, V, generator=generator)

    def ours(q, k, v, g, beta, state):
        return delta_entries.chunk_gated_delta_product(
            q, k, v, g, beta, writes, initial_state=state, cu_seqlens=cu, **FINAL
        )

    def theirs(q, k, v, g, beta, state):
        return naive_recurrent_gated_delta_product(q, k, v, g, beta, K**-0.5, cu, state, True, writes)

    tensors: list[Any] = [q, k, v, g, beta, state]
    same(ours, theirs, tensors)


def test_tensors_without_values_and_autocast(x: dict[str, Tensor]) -> None:
    tensors: list[Any] = [x[name] for name in ("q", "k", "v", "g", "beta")]
    empty: list[Any] = [y.to("meta") for y in tensors]
    o, state = delta_entries.chunk_gated_delta_rule(*empty, **FINAL)
    assert state is not None and o.shape == x["v"].shape and state.shape == x["state"].shape
    plain = delta_entries.chunk_gated_delta_rule(*tensors)[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(delta_entries.chunk_gated_delta_rule(*tensors)[0], plain)


def test_what_needs_kernels_or_does_not_fit_is_refused(x: dict[str, Tensor]) -> None:
    q, k, v, g, gk, beta = (x[name] for name in ("q", "k", "v", "g", "gk", "beta"))
    with pytest.raises(ValueError, match="cp_context"):
        delta_entries.chunk_gated_delta_rule(q, k, v, g, beta, cp_context=object())
    with pytest.raises(ValueError, match="return_intermediate_states"):
        kda.chunk_kda(q, k, v, gk, beta, return_intermediate_states=True)
    with pytest.raises(ValueError, match="use_beta_sigmoid_in_kernel"):
        kda.chunk_kda(q, k, v, gk, beta, allow_neg_eigval=True)
    with pytest.raises(ValueError, match="A_log"):
        kda.chunk_kda(q, k, v, gk, beta, use_gate_in_kernel=True)
    with pytest.raises(ValueError, match="3 value heads cannot share 2 key heads"):
        delta_entries.chunk_gated_delta_rule(q, k, v[:, :, :3], g[:, :, :3], beta[:, :, :3])
    with pytest.raises(ValueError, match="1 states for 2 documents"):
        delta_entries.chunk_delta_rule(q, k, v[:, :, :2], beta[:, :, :2], initial_state=x["state"][:1, :2])
