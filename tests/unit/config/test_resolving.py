"""Deriving batch sizes, and refusing jobs that cannot be trained."""

import pytest
import torch

from flame.config import JobConfig, parse, resolve
from flame.config.bounds import BOUNDS
from flame.config.schema import schema_for
from flame.errors import ConfigError

JOB = ["--model.config", "llama", "--model.tokenizer_path", "builtin:python-stdlib-8k", "--data.sources", "corpus"]


def resolved(*arguments: str, world_size: int = 1) -> JobConfig:
    config = parse([*JOB, *arguments])
    resolve(config, world_size)
    return config


@pytest.mark.parametrize(
    ("arguments", "world_size", "rows"),
    [
        (["--training.local_batch_size", "4"], 1, 4),
        (["--training.local_batch_size", "4"], 2, 8),
        (["--training.local_batch_size", "0", "--training.global_batch_size", "8"], 4, 8),
        (["--training.local_batch_size", "4", "--training.gradient_accumulation_steps", "3"], 2, 24),
        (["--training.local_batch_size", "4", "--training.global_batch_size", "16"], 2, 16),
        (
            [
                "--training.local_batch_size=4",
                "--training.gradient_accumulation_steps=2",
                "--training.global_batch_size=16",
            ],
            2,
            16,
        ),
    ],
)
def test_global_batch_size_is_derived(arguments, world_size, rows):
    assert resolved(*arguments, world_size=world_size).training.global_batch_size == rows


def test_open_lengths_and_sizes_follow_the_training_ones():
    config = resolved("--training.seq_len", "64", "--training.local_batch_size", "4")
    assert (config.training.context_len, config.validation.local_batch_size) == (64, 4)


def test_a_resolved_job_keeps_its_batch_at_another_world_size():
    config = resolved("--training.local_batch_size=2", "--training.gradient_accumulation_steps=4", world_size=2)
    resolve(config, 4)
    assert config.training.global_batch_size == 16


@pytest.mark.parametrize(
    ("arguments", "world_size"),
    [
        (["--parallelism.data_parallel_replicate_degree", "2"], 4),
        (["--parallelism.data_parallel_replicate_degree=2", "--parallelism.data_parallel_shard_degree=2"], 4),
        (["--parallelism.data_parallel_shard_degree", "4"], 4),
    ],
)
def test_layouts_that_fit_the_world(arguments, world_size):
    assert resolved(*arguments, world_size=world_size).training.global_batch_size == 8 * world_size


@pytest.mark.parametrize(
    ("arguments", "world_size", "said"),
    [
        (["--parallelism.data_parallel_replicate_degree", "2"], 3, "multiply to 2 processes, but there are 3"),
        (["--parallelism.data_parallel_shard_degree", "2"], 4, "multiply to 2 processes, but there are 4"),
        (["--training.global_batch_size", "12"], 1, "is not a multiple of 8 rows"),
        (["--training.global_batch_size", "8"], 2, "is not a multiple of 16 rows"),
        (["--training.global_batch_size=16", "--training.gradient_accumulation_steps=3"], 1, "gives 24 rows"),
        (["--training.seq_len=64", "--training.context_len=128"], 1, "is longer than training.seq_len = 64"),
        (["--training.seq_len=64", "--training.context_len=32"], 1, "without training.varlen = true"),
        (["--parallelism.tensor_parallel_degree", "2"], 3, "multiply to 2 processes, but there are 3"),
        (["--parallelism.expert_parallel_degree", "3"], 4, "does not divide the 4 processes"),
        (["--parallelism.expert_tensor_parallel_degree", "2"], 2, "experts are held whole; set it to 1"),
        (["--parallelism.expert_parallel_comm_backend", "deepep"], 2, "use 'standard'"),
        (["--parallelism.enable_async_tensor_parallel"], 2, "has nothing to overlap"),
        (["--parallelism.context_parallel_degree=2", "--training.seq_len=30"], 2, "make it a multiple of 4"),
        (["--parallelism.context_parallel_degree=2", "--parallelism.context_parallel_load_balancer=ptrr"], 2, "'none'"),
        (["--parallelism.pipeline_parallel_degree=2", "--training.local_batch_size=1"], 2, "as many micro-batches"),
        (
            ["--parallelism.pipeline_parallel_degree=2", "--parallelism.pipeline_parallel_schedule_csv=order.csv"],
            2,
            "name a pipeline_parallel_schedule",
        ),
        (
            ["--parallelism.pipeline_parallel_degree=2", "--parallelism.pipeline_parallel_schedule=DualPipeV"]
            + ["--parallelism.expert_parallel_degree=2"],
            4,
            "pipeline_parallel_expert_parallel_overlap = false",
        ),
        (
            ["--parallelism.pipeline_parallel_degree=2", "--parallelism.pipeline_parallel_microbatch_size=3"],
            2,
            "is not a multiple of parallelism.pipeline_parallel_microbatch_size = 3",
        ),
        (
            ["--parallelism.pipeline_parallel_degree=2", "--parallelism.pipeline_parallel_schedule=ZBVZeroBubble"]
            + ["--compile.enable"],
            2,
            "set compile.enable = false",
        ),
        (["--model.name", "llama3"], 1, "model.name = 'llama3'"),
        (["--model.config="], 1, "model.config is not set"),
        (["--model.tokenizer_path="], 1, "model.tokenizer_path is not set"),
        (["--model.config", "nowhere.json"], 1, "No such file: 'nowhere.json'"),
        (["--model.config", "./nowhere"], 1, "No such file: './nowhere'"),
        (["--model.tokenizer_path", "./nowhere"], 1, "model.tokenizer_path = './nowhere' does not exist"),
        (["--model.plugin_path", "nowhere"], 1, "model.plugin_path = 'nowhere' is not a folder"),
        (["--model.converters", "quantize.linear.float8"], 1, "pip install torchao"),
        (["--data.sources="], 1, "data.sources is empty"),
        (["--data.sources.0.path="], 1, "data.sources.0.path is empty"),
        (["--data.sources.0.path", "nowhere.jsonl"], 1, "data.sources.0.path = 'nowhere.jsonl' does not exist"),
        (["--data.sources.0.path", "./*.nothing"], 1, "does not exist"),
        (["--data.sources.0.format", "jsonll"], 1, "Did you mean 'jsonl'?"),
        (["--validation.enable"], 1, "validation.sources is empty"),
        (["--validation.sources", "/nowhere"], 1, "validation.sources.0.path = '/nowhere' does not exist"),
        (["--optimizer.name", "AdmW"], 1, "Did you mean 'AdamW'?"),
        (["--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=all"], 1, "'op'"),
        (["--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=0"], 1, "'op'"),
        (["--activation_checkpoint.mode", "memory_budget"], 1, "needs compile.enable"),
        (["--job.dump_folder="], 1, "job.dump_folder is empty"),
        (["--job.dump_folder", __file__], 1, "is a file"),
        (["--checkpoint.folder="], 1, "checkpoint.folder is empty"),
        (["--checkpoint.initial_load_in_hf"], 1, "needs checkpoint.initial_load_path"),
        (["--checkpoint.initial_load_path", "./nowhere"], 1, "does not exist"),
        (
            ["--checkpoint.initial_load_path=.", "--checkpoint.initial_load_in_hf"]
            + ["--checkpoint.no_initial_load_model_only"],
            1,
            "there are only weights",
        ),
        (["--checkpoint.load_step=5", "--checkpoint.no_enable"], 1, "needs checkpoint.enable"),
        (["--export.max_shard_size", "big"], 1, "such as 5GB"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(arguments, world_size, said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # torchao may be installed
    with pytest.raises(ConfigError) as error:
        resolved(*arguments, world_size=world_size)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the mode is right where there is an accelerator")
def test_pinned_memory_needs_an_accelerator():
    with pytest.raises(ConfigError, match="use 'async'"):
        resolved("--checkpoint.async_mode", "async_with_pinned_mem")


@pytest.mark.parametrize("key", BOUNDS)
def test_numbers_out_of_range_are_refused(key):
    bound = BOUNDS[key]
    below = next(low for low in (bound.low, bound.low - 1, bound.low - 2) if not bound.holds(low))
    arguments = ["--validation.sources", "held_out"] if key.startswith("validation") else []
    with pytest.raises(ConfigError) as error:
        resolved(*arguments, f"--{key.replace('*', '0')}={below:g}")
    assert key.replace("*", "0") in str(error.value)
    assert "must be" in str(error.value)


@pytest.mark.parametrize("key", [key for key, bound in BOUNDS.items() if bound.high < float("inf")])
def test_numbers_above_their_range_are_refused(key):
    with pytest.raises(ConfigError, match="must be in"):
        resolved(f"--{key}={BOUNDS[key].high + 1:g}")


def test_bounds_name_numbers_that_exist():
    keys = {key.name: key for key in schema_for().used()}
    assert set(BOUNDS) <= set(keys)


def test_every_default_lies_in_its_range():
    for name, bound in BOUNDS.items():
        default = schema_for().keys[name].default
        assert default is None or bound.holds(default), name


def test_existing_local_files_are_accepted(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "model.json").write_text("{}")
    arguments = ["--data.sources", f"{tmp_path}/*.jsonl,{tmp_path},hf://org/corpus", "--model.config"]
    resolved(*arguments, str(tmp_path / "model.json"), "--checkpoint.initial_load_path", str(tmp_path))


def test_the_tokenizer_of_a_model_folder_is_taken_with_the_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="tokenizer_path is not set"):
        resolved("--model.config", str(tmp_path), "--model.tokenizer_path", "")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert resolved("--model.config", str(tmp_path), "--model.tokenizer_path", "").model.tokenizer_path == str(tmp_path)
