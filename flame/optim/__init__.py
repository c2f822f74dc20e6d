"""The optimizers: Muon, ELLISAdam and groups of parameters, the learning rate's schedule and the length of a run."""

import flame.compat  # noqa: F401  torchtitan binds its device when it is first imported
from flame.optim.build import Optimizers, build_optimizers
from flame.optim.horizon import derive_steps
from flame.optim.schedule import build_lr_schedulers

__all__ = ["Optimizers", "build_lr_schedulers", "build_optimizers", "derive_steps"]
