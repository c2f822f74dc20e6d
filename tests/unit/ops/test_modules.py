"""fla's own module classes, on the functions that ``install`` gives them, against what they are said to compute."""

import sys

import pytest
import torch
from fla import modules
from fla.modules.activations import ACT2FN
from fla.modules.fused_bitlinear import activation_quant, weight_quant
from fla.modules.norm.layernorm_gated import LayerNormGated, RMSNormGated
from torch.nn import functional as F

from flame.ops.install import install, original
from flame.ops.table import ENTRY_POINTS
from tests.unit.ops.test_norms import definition

D = 24


@pytest.fixture(autouse=True, scope="module")
def installed():
    # Kept, as in a training process: fla's own functions cannot run here anyway.
    install()


def x_and(*more):
    return tuple(torch.randn(2, 9, D) for _ in range(1 + len(more)))


def agree(module, expected, *inputs, **options):
    """The module's output and the gradients of its inputs are those of ``expected``."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    results = []
    for function in (lambda *leaves: module(*leaves, **options), expected):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = function(*leaves)
        y = y[0] if isinstance(y, tuple) else y
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append((y, [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_norms():
    for module, is_rms_norm, groups in [
        (modules.RMSNorm(D, bias=True), True, 1),
        (modules.LayerNorm(D, bias=True), False, 1),
        (modules.GroupNorm(4, D, bias=True), False, 4),
        (modules.GroupNorm(4, D, is_rms_norm=True), True, 4),
    ]:

        def expected(x, r, module=module, is_rms_norm=is_rms_norm, groups=groups):
            return definition(x, module.weight, module.bias, r, is_rms_norm, groups)[0]

        agree(module, expected, *x_and("residual"))
    agree(modules.L2Norm(), lambda x: F.normalize(x, dim=-1), *x_and())


def test_norms_with_a_gate():
    for module in (modules.FusedRMSNormGated(D, activation="sigmoid"), modules.FusedLayerNormGated(D)):
        act = torch.sigmoid if module.activation == "sigmoid" else F.silu

        def expected(x, g, module=module, act=act):
            is_rms_norm = isinstance(module, modules.FusedRMSNormGated)
            return definition(x, module.weight, None, is_rms_norm=is_rms_norm)[0] * act(g)

        agree(module, expected, *x_and("gate"))
    both = (RMSNormGated(D, group_size=8), True), (LayerNormGated(D, norm_before_gate=False), False)
    for module, is_rms_norm in both:

        def gated_first(x, z, module=module, is_rms_norm=is_rms_norm):
            groups = D // (module.group_size or D)
            return definition(x * F.silu(z), module.weight, module.bias, None, is_rms_norm, groups)[0]

        agree(module, gated_first, *x_and("z"))


def test_norms_with_a_projection():
    weight, bias = torch.randn(5, D), torch.randn(5)
    for module, is_rms_norm in ((modules.RMSNormLinear(D), True), (modules.LayerNormLinear(D), False)):

        def expected(x, module=module, is_rms_norm=is_rms_norm):
            return F.linear(definition(x, module.weight, is_rms_norm=is_rms_norm)[0], weight, bias)

        agree(module, expected, *x_and(), weight=weight, bias=bias)
    module = modules.FusedRMSNormSwishGateLinear(D)

    def gated(x, g):
        return F.linear(definition(x, module.weight, is_rms_norm=True)[0] * F.silu(g), weight)

    agree(module, gated, *x_and("gate"), weight=weight)


def test_the_short_convolution_and_its_cache():
    module = modules.ShortConvolution(D, 4, bias=True)

    def expected(x):
        padded = F.pad(x.mT, (3, 0))
        return F.silu(F.conv1d(padded, module.weight, module.bias, groups=D)).mT

    agree(module, expected, *x_and())
    x = torch.randn(2, 9, D)
    with torch.no_grad():
        full, _ = module(x)
        y, cache = module(x[:, :6], output_final_state=True)
        steps = [y]
        for step in range(6, 9):
            y, cache = module(x[:, step : step + 1], cache=cache, output_final_state=True)
            steps.append(y)
    torch.testing.assert_close(torch.cat(steps, 1), full)
    packed, _ = module(x.reshape(1, 18, D), cu_seqlens=torch.tensor([0, 9, 18]))
    torch.testing.assert_close(packed.view_as(x), full)


def test_rotary_positions():
    module = modules.RotaryEmbedding(8)
    q, k = torch.randn(2, 9, 3, 8), torch.randn(2, 9, 1, 8)
    turned_q, turned_k = module(q, k)
    angles = torch.outer(torch.arange(9.0), 10000.0 ** -torch.linspace(0, 0.75, 4))[:, None]
    turned = torch.complex(*q.chunk(2, -1)) * torch.polar(torch.ones(()), angles)
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(turned_q, expected)
    # A score depends on the distance alone.
    later_q, later_k = module(q, k, seqlen_offset=5)
    torch.testing.assert_close(later_q @ later_k[:, :1].mT, turned_q @ turned_k[:, :1].mT, rtol=1e-4, atol=1e-5)
    packed, _ = module(q.view(1, 18, 3, 8), k.view(1, 18, 1, 8), cu_seqlens=torch.tensor([0, 9, 18]), max_seqlen=9)
    torch.testing.assert_close(packed.view_as(q), expected)


@pytest.mark.parametrize("fuse_swiglu", [True, False])
def test_the_gated_mlp(fuse_swiglu):
    module = modules.GatedMLP(D, intermediate_size=32, fuse_swiglu=fuse_swiglu)
    agree(module, lambda x: module.down_proj(F.silu(module.gate_proj(x)) * module.up_proj(x)), *x_and())
    module = modules.GatedMLP(D, intermediate_size=32, fuse_swiglu=fuse_swiglu, hidden_act="powlu")
    assert bool(module(torch.randn(2, 9, D)).isfinite().all())


def test_activations_by_name():
    x = torch.randn(40)
    expected = {
        "relu": F.relu(x),
        "sigmoid": x.sigmoid(),
        "logsigmoid": F.logsigmoid(x),
        "silu": F.silu(x),
        "swish": F.silu(x),
        "sqrelu": F.relu(x) ** 2,
        "gelu": F.gelu(x, approximate="tanh"),
    }
    assert set(ACT2FN) == {*expected, "bias_gelu"}
    torch.testing.assert_close({name: ACT2FN[name](x) for name in expected}, expected)
    torch.testing.assert_close(ACT2FN["bias_gelu"](x, x), F.gelu(2 * x, approximate="tanh"))


def test_bit_linear():
    def expected(x):
        y = definition(x, module.norm.weight, is_rms_norm=True, eps=1e-8)[0]
        y = y + (activation_quant(y) - y).detach()
        return F.linear(y, weight_quant(module.weight))

    for module in (modules.BitLinear(D, 7), modules.FusedBitLinear(D, 7)):
        agree(module, expected, *x_and())


def test_losses():
    logits, target = torch.randn(10, 11), torch.tensor([3, -100, 0, 10, 5, 5, -100, 7, 1, 2])
    agree(modules.FusedCrossEntropyLoss(), lambda x: F.cross_entropy(x, target), logits, target=target)
    for reduction in ("mean", "sum", "none"):
        loss = modules.FusedCrossEntropyLoss(reduction=reduction, lse_square_scale=0.1, return_z_loss=True)
        total, square = loss(logits, target)
        torch.testing.assert_close(total - square, F.cross_entropy(logits, target, reduction=reduction))
    head, teacher = torch.randn(11, D), torch.randn(10, D)
    x = torch.randn(10, D)
    options = {"target": target, "weight": head}
    agree(modules.FusedLinearCrossEntropyLoss(), lambda x: F.cross_entropy(x @ head.mT, target), x, **options)

    def divergence(x):
        student, goal = (x @ head.mT).log_softmax(-1), (teacher @ head.mT).log_softmax(-1)
        return F.kl_div(student, goal, log_target=True, reduction="batchmean")

    agree(modules.FusedKLDivLoss(), divergence, x, target_x=teacher, weight=head, target_weight=head)


def test_every_binding_of_a_function_is_replaced():
    gone = {id(original(path)): path for path in ENTRY_POINTS if path.startswith("fla.modules")}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "fla":
            left = [gone[id(value)] for value in vars(module).values() if id(value) in gone]
            assert not left, f"{name} still has {left}"
