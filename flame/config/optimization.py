"""The ``[optimizer]`` section of a job file: torchtitan's, with flame's defaults and fields.

Annotations stay real types here, because torchtitan and the parser read them: no postponed evaluation.
"""

# Fields narrow the types of torchtitan's, or widen them by "unset".
# pyright: reportIncompatibleVariableOverride=false

from dataclasses import dataclass, field, fields
from typing import Literal

from torchtitan.config import job_config as titan

from flame.errors import ConfigError, closest

ROLES = ("matrices", "embeddings", "head", "scalars")
"""What a parameter is to an optimizer; ``scalars`` are norms, biases, convolutions and all else."""


@dataclass
class Optimizer(titan.Optimizer):
    """How the weights are stepped."""

    name: str = "AdamW"
    """Optimizer: `AdamW`, `Adam`, `Muon` or `ELLISAdam`."""

    lr: float | None = None
    """Learning rate; unset for 0.0008, with `ELLISAdam` 0.0003. `Muon` has one for each kind of parameter instead."""

    beta1: float | None = None
    """Decay of the running mean of the gradients, in [0, 1); unset for 0.9, with `Muon` (beside matrices) 0.8."""

    beta2: float | None = None
    """Decay of the running mean of the squared gradients, in [0, 1); unset for 0.95."""

    eps: float | None = None
    """What keeps divisions finite; unset for 1e-8, with `Muon` 1e-10, with `ELLISAdam` 1e-6."""

    weight_decay: float | None = None
    """Decoupled weight decay (of `Adam`: added to the gradient). Unset for 0.1, with `ELLISAdam` 0.01, with `Adam`
    none; with `Muon` that of matrices, unset for none."""

    no_decay: list[str] | None = None
    """Parameters without weight decay: any of `matrices`, `embeddings`, `head`, `scalars`; unset for none of them, with
    `ELLISAdam` for `scalars`. `Muon` has a weight decay for each."""

    implementation: Literal["for-loop", "foreach", "fused"] = "fused"
    """How AdamW and Adam run, also beside Muon; ELLISAdam is always `foreach`."""

    matrix_lr: float = 0.02
    """Muon: learning rate of matrices."""

    embedding_lr: float | None = None
    """Muon: learning rate of embeddings, for width 768; unset for 0.2 times the root mean square they start with."""

    head_lr: float = 0.004
    """Muon: learning rate of the output head and of embeddings tied to it, for width 768."""

    scalar_lr: float = 0.005
    """Muon: learning rate of norms, biases, convolutions and all else."""

    width_scaling: bool = True
    """Muon: whether `embedding_lr` and `head_lr` are multiplied by (768 / width)^0.5."""

    embedding_betas: list[float] = field(default_factory=list)
    """Muon: betas of embeddings; empty for `beta1` and `beta2`."""

    head_betas: list[float] = field(default_factory=list)
    """Muon: betas of the head; empty for `beta1` and `beta2`."""

    scalar_betas: list[float] = field(default_factory=list)
    """Muon: betas of all else; empty for `beta1` and `beta2`."""

    embedding_weight_decay: float = 0.0
    """Muon: weight decay of embeddings."""

    head_weight_decay: float = 0.0
    """Muon: weight decay of the head."""

    scalar_weight_decay: float = 0.0
    """Muon: weight decay of all else."""

    momentum: float = 0.95
    """Muon: decay of the running mean of the gradients of matrices."""

    momentum_start: float = 0.85
    """Muon: what `momentum` rises from."""

    momentum_warmup_steps: int = 300
    """Muon: steps over which it rises."""

    momentum_end: float | None = None
    """Muon: what `momentum` falls to while the learning rate decays; unset to stay."""

    weight_decay_schedule: Literal["constant", "cosine"] = "constant"
    """Muon: whether the weight decay of matrices stays or falls to zero over the run."""

    cautious_weight_decay: bool = False
    """Muon: whether only those entries of matrices decay that the update makes smaller too."""

    orthogonalization: Literal["newton_schulz", "polar_express"] = "newton_schulz"
    """Muon: the polynomials that make an update orthogonal: one of degree 5, or a sequence that gets closer."""

    orthogonalization_steps: int = 5
    """Muon: how often they are applied; `polar_express` has 5."""

    orthogonalization_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Muon: in which type; `auto` is float32 on a CPU slow at bfloat16, else bfloat16."""

    equalize_rows: bool = False
    """Muon: whether the rows of a matrix's gradient are first scaled to equal norms (MuonEq)."""

    split_fused: bool = True
    """Muon: whether a projection that is several in one (query, key and value; gate and up) is several matrices."""

    running_init: bool = False
    """ELLISAdam: whether moments start as the first gradient instead of zero."""

    update_clipping: bool = False
    """ELLISAdam: whether steps shrink where gradients exceed what their running squares expect; floors these."""

    atan_adam: bool = False
    """ELLISAdam: whether the step is the arc tangent of the ratio of moments, which needs no eps."""

    decouple_wd: bool = False
    """ELLISAdam: whether weight decay follows the schedule but not the height of the learning rate."""

    nesterov: bool = False
    """ELLISAdam: whether the step looks ahead by the newest gradient."""

    tensor_wise_gradient_normalization: bool = False
    """ELLISAdam: whether the gradient of each tensor is divided by its norm."""

    kahan_sum: bool = False
    """ELLISAdam: whether what rounding takes from an update is added to the next; for weights in bfloat16."""

    state_dtype: Literal["param", "float32", "bfloat16"] = "param"
    """ELLISAdam: type the moments are stored in; `param` for that of the weights."""

    skip_nonfinite_tensors: bool = False
    """ELLISAdam: whether a tensor with a gradient that is not finite is left as it is."""


_OWN: dict[str, dict[str, object]] = {
    "AdamW": {"lr": 8e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "no_decay": []},
    "Adam": {"lr": 8e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "no_decay": []},
    "Muon": {"beta1": 0.8, "beta2": 0.95, "eps": 1e-10, "weight_decay": 0.0},
    "ELLISAdam": {"lr": 3e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.01, "no_decay": ["scalars"]},
}
OPTIMIZERS = tuple(_OWN)
"""Names ``optimizer.name`` may have."""


def resolve_optimizer(optimizer: Optimizer) -> None:
    """Fills in what the chosen optimizer takes where the job sets nothing; doing it twice changes nothing.

    Raises:
        ConfigError: an unknown optimizer or value, or a key that the optimizer would ignore.
    """
    if optimizer.name not in OPTIMIZERS:
        raise ConfigError(
            f"optimizer.name = '{optimizer.name}' must be one of {', '.join(OPTIMIZERS)}."
            f"{closest(optimizer.name, OPTIMIZERS)}"
        )
    own = _OWN[optimizer.name]
    for key in _OWN["AdamW"]:
        value = getattr(optimizer, key)
        if key not in own and value is not None:
            remedy = "weight_decay, embedding_weight_decay ..." if key == "no_decay" else "matrix_lr, embedding_lr ..."
            raise ConfigError(f"optimizer.{key} = {value} has no effect with {optimizer.name}; set {remedy} instead.")
        if key in own and value is None:
            setattr(optimizer, key, own[key])
    _check_ignored(optimizer)
    _check_values(optimizer)


def _check_ignored(optimizer: Optimizer) -> None:
    default = Optimizer()
    for declared in fields(optimizer):
        owner = _owner(declared.name)
        value = getattr(optimizer, declared.name)
        if owner and owner != optimizer.name and value != getattr(default, declared.name):
            raise ConfigError(
                f"optimizer.{declared.name} = {value} is an option of {owner}, and optimizer.name = "
                f"'{optimizer.name}' would ignore it; remove it, or set the name to '{owner}'."
            )
    for key in ("cautious_weight_decay", "weight_decay_schedule"):
        if getattr(optimizer, key) != getattr(default, key) and not optimizer.weight_decay:
            raise ConfigError(
                f"optimizer.{key} = {getattr(optimizer, key)} has no effect without optimizer.weight_decay; set that."
            )
    if optimizer.name == "ELLISAdam" and optimizer.implementation == "for-loop":
        raise ConfigError("optimizer.implementation = 'for-loop' has no effect with ELLISAdam; remove it.")


def _owner(key: str) -> str:
    """The optimizer that alone has a key; empty for those that several have."""
    names = list(Optimizer.__annotations__)
    if key not in names or names.index(key) < names.index("matrix_lr"):
        return ""
    return "Muon" if names.index(key) < names.index("running_init") else "ELLISAdam"


def _check_values(optimizer: Optimizer) -> None:
    for role in optimizer.no_decay or []:
        if role not in ROLES:
            raise ConfigError(f"optimizer.no_decay: '{role}' must be one of {', '.join(ROLES)}.{closest(role, ROLES)}")
    for key in ("embedding_betas", "head_betas", "scalar_betas"):
        betas = getattr(optimizer, key)
        if betas and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
            raise ConfigError(f"optimizer.{key} = {betas} must be two numbers in [0, 1), or empty.")
    if optimizer.orthogonalization == "polar_express" and optimizer.orthogonalization_steps > 5:
        raise ConfigError(
            f"optimizer.orthogonalization_steps = {optimizer.orthogonalization_steps} must be at most 5 with "
            "polar_express, which has that many polynomials."
        )
