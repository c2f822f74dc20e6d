"""The sections of a job file: torchtitan's, with flame's defaults and fields, and flame's own.

Every field is a key; the string under it is what ``flame config explain`` prints.
Annotations stay real types here, because torchtitan and the parser read them: no postponed evaluation.
"""

# Fields narrow the types of torchtitan's (a section becomes flame's section, ``str | None`` becomes ``str``).
# pyright: reportIncompatibleVariableOverride=false

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torchtitan.config import job_config as titan

from flame.config.corpora import SOURCE_FORMATS, Data, Source
from flame.config.optimization import Optimizer
from flame.config.parallelism import Parallelism
from flame.config.stability import Guard, Moe
from flame.errors import ConfigError

# Names upstream flame gave the model spec and the converter that torchtitan 0.2.2 registers under a longer name.
_MODEL_NAMES = {"fla": "flame"}
_CONVERTERS = {"float8": "quantize.linear.float8"}


@dataclass
class Job(titan.Job):
    """What the run is called and where it writes."""

    config_file: str | None = None
    """Job file (TOML); looked up in the working folder first, then among the shipped `configs/`."""

    dump_folder: str = "exp"
    """Run folder: checkpoints, exported models, metrics and the resolved job file go below it."""


@dataclass
class Metrics(titan.Metrics):
    """What is measured, how often, and where it is written."""

    log_freq: int = 10
    """Steps between two logged lines, on the console and in every log file."""

    enable_tensorboard: bool = True
    """Whether to write TensorBoard event files into `<dump_folder>/<save_tb_folder>`."""


@dataclass
class Model(titan.Model):
    """Which model is trained, and with which tokenizer."""

    name: str = "flame"
    """The train spec; always `flame`. What is trained is chosen by `model.config`."""

    config: str = ""
    """HuggingFace config of the model: a JSON file, the name of a shipped one such as `llama_10M`, or a hub id."""

    tokenizer_path: str = ""
    """
    Tokenizer: a HuggingFace folder, a hub id, `builtin:python-stdlib-8k`, which is trained once and cached, or
    `builtin:characters-en` for speech; empty for the one in the folder that `model.config` names.
    """

    plugin_path: str = ""
    """Folder of a model family that lives outside the repository; empty if the family is installed or shipped."""

    attn_implementation: str = ""
    """Attention kernel, by its name in transformers (`sdpa`, `eager`, ...); empty to let flame choose."""

    def __post_init__(self) -> None:
        self.name = _MODEL_NAMES.get(self.name, self.name)
        self.converters = [_CONVERTERS.get(name, name) for name in self.converters]


@dataclass
class Training(titan.Training):
    """Shape, length and precision of the training steps."""

    steps: int = 0
    """Optimizer steps of the run; 0 for as many as `tokens_per_param`, `tokens` or `flops` pay for, else 10000."""

    tokens_per_param: float = 0.0
    """Length of the run in tokens for each parameter of the model, such as 20; 0 to say it otherwise."""

    count_params: Literal["all", "without_embeddings"] = "all"
    """Which parameters `tokens_per_param` counts; an embedding that is also the output head counts as head."""

    tokens: int = 0
    """Length of the run in tokens; 0 to say it otherwise."""

    flops: float = 0.0
    """Length of the run in floating-point operations of the model; 0 to say it otherwise."""

    local_batch_size: int = 8
    """Rows per device in one forward pass; 0 shares `global_batch_size` out over the devices."""

    global_batch_size: int = -1
    """Rows of one optimizer step, over all devices; -1 for one forward pass on every data-parallel device."""

    gradient_accumulation_steps: int = 0
    """Forward passes per optimizer step; 0 to derive them from `global_batch_size`, which they otherwise set."""

    seq_len: int = 2048
    """Tokens per row."""

    context_len: int = 0
    """Longest piece of one document inside a row, in tokens, when `varlen` is on; 0 for `seq_len`."""

    varlen: bool = False
    """Whether the documents packed into a row are isolated: positions restart and attention does not cross."""

    mixed_precision_param: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of weights and activations in both passes; `auto` is float32 on a CPU slow at bfloat16, else bfloat16."""


@dataclass
class Validation(titan.Validation):
    """Loss on held-out text during training."""

    enable: bool = False
    """Whether to validate during training."""

    sources: list[Source] = field(default_factory=list)
    """The held-out corpora; on the command line, paths separated by commas."""

    local_batch_size: int = 0
    """Rows per device in one validation pass; 0 for `training.local_batch_size`."""

    freq: int = 10
    """Training steps between two validations."""

    steps: int = -1
    """Batches per validation; -1 to read the sources to their end."""

    def __post_init__(self) -> None:
        if self.steps < 1 and self.steps != -1:
            raise ConfigError(f"validation.steps = {self.steps} must be at least 1, or -1 for all of the sources.")


@dataclass
class TaskOptions:
    """The `[task]` table; a task that has options of its own subclasses it."""

    needs_tokenizer: ClassVar[bool] = True
    """Whether there is text in it, so that the job needs a tokenizer."""
    formats: ClassVar[tuple[str, ...]] = SOURCE_FORMATS
    """What `data.sources.N.format` may be."""

    name: str = "causal_lm"
    """What the model learns: the name of a task."""


@dataclass
class Checkpoint(titan.Checkpoint):
    """Saving and loading the state of a run."""

    enable: bool = True
    """Whether to save and load checkpoints."""

    interval: int = 500
    """Steps between two checkpoints; the last step is always saved."""

    keep_latest_k: int = 2
    """Complete checkpoints to keep; 0 for all of them."""

    last_save_model_only: bool = False
    """Whether the last checkpoint holds the model alone; such a run cannot be extended."""

    initial_load_path: str | None = None
    """Checkpoint to start from while the run folder has none: a step of another run, or a HuggingFace folder."""

    initial_load_in_hf: bool = False
    """Whether `initial_load_path` is a HuggingFace folder."""

    initial_load_model_only: bool = True
    """Whether only the weights are taken from `initial_load_path`, not the optimizer, schedule and data position."""


@dataclass
class ActivationCheckpoint(titan.ActivationCheckpoint):
    """Recomputing activations in the backward pass instead of storing them."""

    mode: Literal["selective", "full", "memory_budget", "none"] = "none"
    """`none` stores all, `full` recomputes every block, `selective` some; with `memory_budget` compile chooses."""

    selective_ac_option: str = "2"
    """`op` to keep the costly operations of every block, or N to recompute every Nth block whole."""


@dataclass
class Compile(titan.Compile):
    """torch.compile, block by block."""

    backend: str = "inductor"
    """Backend of torch.compile."""


@dataclass
class Export:
    """HuggingFace folders, `<dump_folder>/hf/step-N`, written during and after the run."""

    enable: bool = True
    """Whether to export the last step."""

    interval: int = 0
    """Steps between two exports besides the last; 0 for none."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type the weights are stored in."""

    max_shard_size: str = "5GB"
    """Size above which the weights are split into several files, such as `5GB` or `500MB`."""


@dataclass
class Debug(titan.Debug):
    """Randomness and determinism."""

    seed: int = 42
    """Seed of initialisation, data order and everything drawn during training."""


@dataclass
class JobConfig(titan.JobConfig):
    """A whole job: one attribute per section of the job file."""

    job: Job = field(default_factory=Job)
    metrics: Metrics = field(default_factory=Metrics)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    parallelism: Parallelism = field(default_factory=Parallelism)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    activation_checkpoint: ActivationCheckpoint = field(default_factory=ActivationCheckpoint)
    compile: Compile = field(default_factory=Compile)
    validation: Validation = field(default_factory=Validation)
    debug: Debug = field(default_factory=Debug)
    data: Data = field(default_factory=Data)
    task: TaskOptions = field(default_factory=TaskOptions)
    export: Export = field(default_factory=Export)
    guard: Guard = field(default_factory=Guard)
    moe: Moe = field(default_factory=Moe)
