"""ELLISAdam, the Adam that Huginn was trained with (https://arxiv.org/abs/2502.05171, section 4.3), and its options."""

# torch exports its foreach functions under private names only.
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flame.optim.grouped import GroupedOptimizer
from flame.optim.local import local, local_gradient, sum_over_parts


@dataclass(frozen=True)
class Options:
    """What of ELLISAdam is on; see the keys of the same names."""

    running_init: bool = False
    update_clipping: bool = False
    atan_adam: bool = False
    decouple_wd: bool = False
    nesterov: bool = False
    tensor_wise_gradient_normalization: bool = False
    kahan_sum: bool = False
    skip_nonfinite_tensors: bool = False
    state_dtype: torch.dtype | None = None
    """Type of the moments; None for that of the weights."""


class ELLISAdam(GroupedOptimizer):
    """ELLISAdam on all groups.

    For a tensor p with gradient g in step t, base learning rate lr0 and current one lr: m and v are the running means
    of g and g^2 (with ``running_init`` they start as those of the first gradient); with ``update_clipping`` v is at
    least eps^2 and s = lr / max(1, sqrt(mean(g^2 / v))), else s = lr; p decays by lr wd, or by lr / lr0 wd if
    decoupled; then p <- p - s / (1 - b1^t) r(m, sqrt(v / (1 - b2^t))) with r(m, d) = atan2(m, d), or m / (d + eps).
    The mean and the norms of ``tensor_wise_gradient_normalization`` are over whole tensors, however these are spread.

    Args:
        groups: as torch takes them.
        roles: the role of each group.
        options: what is on.
    """

    def __init__(self, groups: list[dict[str, Any]], roles: Sequence[str], options: Options) -> None:
        self.options = options
        super().__init__(groups, roles)

    def initial_state(self, parameter: Tensor, group: dict[str, Any], role: str) -> dict[str, Any]:
        """Moments, and what Kahan summation carries over."""
        dtype = self.options.state_dtype or parameter.dtype
        state: dict[str, Any] = {
            "step": 0,
            "exp_avg": torch.zeros_like(parameter, dtype=dtype),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
        }
        if self.options.kahan_sum:
            state["carry"] = torch.zeros_like(parameter)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch's, which gives moments the type of the weights; they keep their own."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].to(self.options.state_dtype or parameter.dtype)

    def update(self, group: dict[str, Any], role: str, parameters: list[Tensor]) -> None:
        """One step of a group's parameters that have gradients."""
        options = self.options
        gradients = [local_gradient(parameter).float() for parameter in parameters]
        if options.tensor_wise_gradient_normalization:
            norms = _norms(parameters, gradients)
            gradients = list(torch._foreach_div(gradients, list(norms.clamp_min(1e-30).unbind())))
        self._move(group, parameters, gradients)

    @torch.no_grad()
    def leave_out_nonfinite(self) -> int:
        """Takes the gradient of every tensor away that is not finite throughout; before gradients are clipped, since
        that would spread it to all. Collective over the ranks that hold a tensor's parts.

        Returns:
            From how many tensors.
        """
        left_out = 0
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                norms = _norms(parameters, [local_gradient(parameter).float() for parameter in parameters])
                for parameter, keep in zip(parameters, norms.isfinite().tolist(), strict=True):
                    parameter.grad = parameter.grad if keep else None
                    left_out += not keep
        return left_out

    def _move(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Steps parameters along gradients that are in float32."""
        options, states = self.options, [self.state[parameter] for parameter in parameters]
        (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
        for state in states:
            state["step"] += 1
        stored = [[local(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq")]
        means, squares = ([moment.float() for moment in moments] for moments in stored)
        if options.running_init:
            for mean, square, gradient, state in zip(means, squares, gradients, states, strict=True):
                if state["step"] == 1:
                    mean.copy_(gradient)
                    square.copy_(gradient.square())
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        if options.update_clipping:
            torch._foreach_clamp_min_(squares, eps**2)
        for moments, values in zip(stored, (means, squares), strict=True):
            for moment, value in zip(moments, values, strict=True):
                if moment is not value:
                    moment.copy_(value)
        steps = [state["step"] for state in states]
        sizes: list[Any] = [lr / (1 - beta1**step) for step in steps]
        if options.update_clipping:
            sizes = [
                size / clip for size, clip in zip(sizes, _clips(parameters, gradients, squares).unbind(), strict=True)
            ]
        directions = self._directions(means, squares, gradients, steps, group)
        decay = group["weight_decay"] * (lr / group.get("initial_lr", lr) if options.decouple_wd and lr else lr)
        self._add(parameters, states, list(torch._foreach_mul(directions, sizes)), decay)

    def _directions(
        self,
        means: list[Tensor],
        squares: list[Tensor],
        gradients: list[Tensor],
        steps: list[int],
        group: dict[str, Any],
    ) -> list[Tensor]:
        beta1, beta2 = group["betas"]
        if self.options.nesterov:
            means = list(torch._foreach_lerp(gradients, means, beta1))
        divisors = list(torch._foreach_sqrt(squares))
        torch._foreach_div_(divisors, [(1 - beta2**step) ** 0.5 for step in steps])
        if self.options.atan_adam:
            return [torch.atan2(mean, divisor) for mean, divisor in zip(means, divisors, strict=True)]
        torch._foreach_add_(divisors, group["eps"])
        return list(torch._foreach_div(means, divisors))

    def _add(self, parameters: list[Tensor], states: list[dict[str, Any]], steps: list[Tensor], decay: float) -> None:
        """p <- (1 - decay) p - step; with Kahan summation what rounding took is carried over."""
        weights = [local(parameter) for parameter in parameters]
        if not self.options.kahan_sum:
            torch._foreach_mul_(weights, 1 - decay)
            for weight, step in zip(weights, steps, strict=True):
                weight.sub_(step)
            return
        for weight, step, state in zip(weights, steps, states, strict=True):
            carry = local(state["carry"])
            wanted = carry.float() - step - decay * weight.float()
            before = weight.clone()
            weight.add_(wanted.to(weight.dtype))
            carry.copy_(wanted - (weight.float() - before.float()))


def _norms(parameters: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """The norm of each whole tensor's gradient: [K]."""
    return sum_over_parts(torch.stack(torch._foreach_norm(gradients)).square(), parameters).sqrt()


def _clips(parameters: list[Tensor], gradients: list[Tensor], squares: list[Tensor]) -> Tensor:
    """max(1, sqrt(mean(g^2 / v))) of each whole tensor: [K]."""
    ratios = torch._foreach_mul(gradients, gradients)
    torch._foreach_div_(ratios, squares)
    sums = sum_over_parts(torch.stack([ratio.sum() for ratio in ratios]), parameters)
    counts = torch.tensor([parameter.numel() for parameter in parameters], dtype=sums.dtype).to(sums.device)
    return (sums / counts).sqrt().clamp_min(1.0)
