"""The config room: one TOML file and the command line become one checked ``JobConfig``.

``parse`` reads, ``resolve`` derives and checks, ``to_toml`` writes, ``explain`` documents::

    config = parse(["--job.config_file", "configs/jobs/quickstart.toml", "--training.steps", "10"])
    resolve(config, world_size=1)
"""

import flame.compat  # noqa: F401  torchtitan binds its device when it is first imported
from flame.config.aliases import ALIASES
from flame.config.corpora import Data, Source, Stage
from flame.config.explaining import explain, help_text, list_keys
from flame.config.files import locate, shipped
from flame.config.layout import data_parallel_degree
from flame.config.parsing import parse
from flame.config.resolving import resolve
from flame.config.sections import (
    ActivationCheckpoint,
    Checkpoint,
    Compile,
    Debug,
    Export,
    Job,
    JobConfig,
    Metrics,
    Model,
    Optimizer,
    TaskOptions,
    Training,
    Validation,
)
from flame.config.stability import Guard, Moe
from flame.config.writing import to_toml

__all__ = [
    "ALIASES",
    "ActivationCheckpoint",
    "Checkpoint",
    "Compile",
    "Data",
    "Debug",
    "Export",
    "Guard",
    "Job",
    "JobConfig",
    "Metrics",
    "Model",
    "Moe",
    "Optimizer",
    "Source",
    "Stage",
    "TaskOptions",
    "Training",
    "Validation",
    "data_parallel_degree",
    "explain",
    "help_text",
    "list_keys",
    "locate",
    "parse",
    "resolve",
    "shipped",
    "to_toml",
]
