"""A job written as TOML reads back as the same job."""

from dataclasses import dataclass

import pytest

from flame.config import JobConfig, TaskOptions, parse, resolve, to_toml
from flame.config.aliases import UNUSED_SECTIONS

JOB = ["--model.config", "llama", "--model.tokenizer_path", "builtin:python-stdlib-8k", "--data.sources", "corpus"]


@dataclass
class Options(TaskOptions):
    """Options of an imaginary task."""

    depth: int = 1


def reread(config: JobConfig, folder, task: type = TaskOptions) -> JobConfig:
    path = folder / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    again = parse(["--job.config_file", str(path)], task_options=lambda name, plugin_path: task)
    again.job.config_file = config.job.config_file
    return again


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--training.max_norm", "1", "--optimizer.eps", "1e-15", "--optimizer.lr", "1e22"],
        ["--job.description", "quotes \" ' and \\ and\nlines\tand \x7f\x01 and é 😀"],
        ["--data.sources", "a,b", "--data.sources.1.data_files", "x,y", "--validation.sources", "c"],
        ["--parallelism.context_parallel_load_balancer", "none", "--lr_scheduler.decay_ratio", "0.2"],
        ["--data.add_bos=false", "--model.converters", "one,two", "--quantize.grouped_mm.mx.fqns", "experts"],
        ["--parallelism.module_fqns_per_model_part", "[['a', 'b'], ['c']]"],
    ],
)
def test_round_trip(arguments, tmp_path):
    config = parse(arguments)
    assert reread(config, tmp_path) == config


def test_round_trip_of_a_resolved_job_is_still_resolved(tmp_path):
    config = parse([*JOB, "--training.gradient_accumulation_steps", "4"])
    resolve(config, 2)
    again = reread(config, tmp_path)
    resolve(again, 4)
    assert again == config


def test_round_trip_of_task_options(tmp_path):
    config = parse(["--task.depth", "3"], task_options=lambda name, plugin_path: Options)
    assert reread(config, tmp_path, Options) == config


def test_sections_that_flame_does_not_use_are_left_out():
    text = to_toml(JobConfig())
    assert not any(f"[{section}]" in text for section in UNUSED_SECTIONS)
    assert "hf_assets_path" not in text
    assert "export_dtype" not in text
