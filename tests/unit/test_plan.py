"""``flame plan``: sizes, formulas, refusals and exit codes. What it says of real ranks: tests/parallel."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flame.errors import ConfigError
from flame.plan import command, report
from flame.plan.formula import in_flight, token_bytes
from flame.plan.meter import sent_bytes
from flame.plan.plan import DEGREES, Plan, as_json, usable
from flame.plan.rehearsal import RankPlan
from tests.runs import ROOT, Materials, environment, write_job


def flame_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flame.cli", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=100)


@pytest.mark.parametrize(
    "text, size",
    [("80GiB", 80 * 2**30), ("141GB", 141 * 10**9), ("24G", 24 * 10**9), ("1.5 MiB", 3 * 2**19), ("512", 512)],
)
def test_sizes(text, size):
    assert command.parse_size(text) == size


@pytest.mark.parametrize("text", ["80 apples", "GiB", "-1GiB", "0GiB", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="80GiB"):
        command.parse_size(text)


@pytest.mark.parametrize(
    "operation, sent",
    [("all-gather", 750), ("reduce-scatter", 750), ("all-reduce", 1500), ("all-to-all", 750), ("send", 1000)],
)
def test_bytes_sent_by_ring_algorithms(operation, sent):
    assert sent_bytes(operation, 1000, ranks=4) == sent


@pytest.mark.parametrize(
    "schedule, rank, waiting", [("1F1B", 0, 4), ("1F1B", 3, 1), ("GPipe", 0, 16), ("Interleaved1F1B", 2, 16)]
)
def test_micro_batches_in_flight(schedule, rank, waiting):
    assert in_flight(schedule, 16, ranks=4, rank=rank) == waiting


def job_of(mode: str = "none", option: str = "2", tensor: int = 1, **sizes: int) -> SimpleNamespace:
    text = SimpleNamespace(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, **sizes)
    config = SimpleNamespace(
        training=SimpleNamespace(mixed_precision_param="bfloat16"),
        activation_checkpoint=SimpleNamespace(mode=mode, selective_ac_option=option),
        parallelism=SimpleNamespace(tensor_parallel_degree=tensor),
    )
    return SimpleNamespace(config=config, model_config=SimpleNamespace(get_text_config=lambda: text))


@pytest.mark.parametrize(
    "job, expected",
    [
        (job_of(), 2 * (8 * 64 + 2 * 64 + 2 * 32 + 4 * 96)),
        (job_of(tensor=2), 2 * (8 * 64 + (2 * 64 + 2 * 32 + 4 * 96) // 2)),
        (job_of("full"), 2 * 64),
        (job_of("selective"), (2 * 64 + 2 * (8 * 64 + 2 * 64 + 2 * 32 + 4 * 96)) // 2),
        (job_of(num_experts_per_tok=2), 2 * (8 * 64 + 2 * 64 + 2 * 32 + 4 * 192)),
    ],
)
def test_activations_of_a_token_by_formula(job, expected):
    assert token_bytes(job) == expected


def plan_of(peak: int) -> Plan:
    rank = RankPlan(0, [0], 10, parameters=40, gradients=40, optimizer=80, buffers=0, peak=peak)
    layout: dict[str, int] = {name: 1 for name in DEGREES}
    return Plan(1, 1, layout, "llama", "bfloat16", 10, 60, rows=2, tokens=64, passes=1, ranks=[rank])


def test_it_fits_up_to_what_is_usable():
    limit = usable(1000)
    assert limit == 920
    assert as_json(plan_of(limit), 1000)["fits"]
    assert not as_json(plan_of(limit + 1), 1000)["fits"]
    assert "FITS" in report.as_table(plan_of(limit), 1000).splitlines()[-1]
    assert "DOES NOT FIT: rank 0" in report.as_table(plan_of(limit + 1), 1000)


def test_units_of_sizes():
    assert [report.size(count) for count in (512, 2**20, 3 * 2**29)] == ["512 B", "1.00 MiB", "1.50 GiB"]


def test_a_cluster_by_the_command_line(materials: Materials, tmp_path: Path):
    job = str(write_job(materials, tmp_path / "run"))
    given = ["--job.config_file", job, "--nnodes", "2", "--ngpu=2", "--json", "--memory", "1MiB"]
    done = flame_plan(*given, "--training.global-batch-size", "-1", "--parallelism.data_parallel_shard_degree", "-1")
    assert done.returncode == command.DOES_NOT_FIT, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["tokens"], found["passes"], found["fits"]) == (8, 256, 1, False)
    assert found["layout"]["dp_shard"] == 4
    (rank,) = found["ranks"]
    assert rank["parameters"] == rank["gradients"] == 4 * rank["parameter_count"]
    assert {(kind["operation"], kind["mesh"]) for kind in rank["traffic"]} == {
        ("all-gather", "fsdp"),
        ("reduce-scatter", "fsdp"),
    }
    assert not (tmp_path / "run").exists()


def test_stages_and_a_verdict_for_people(materials: Materials, tmp_path: Path):
    job = str(write_job(materials, tmp_path / "run", {"training.mixed_precision_param": "auto"}))
    degree = ["--parallelism.pipeline_parallel_degree", "2"]
    done = flame_plan("--job.config_file", job, "--ngpu", "2", "--memory", "1GiB", *degree)
    assert done.returncode == 0, done.stderr
    assert "rank 0, stage 0" in done.stdout and "rank 1, stage 1" in done.stdout
    assert "pp: send" in done.stdout and "bfloat16" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("FITS: ")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--parallelism.tensor_parallel_degree", "3"], "multiply to 3"),
        (["--ngpu", "3", "--parallelism.tensor_parallel_degree", "3"], "num_attention_heads"),
        (["--ngpu", "3"], "global_batch_size"),
        (["--memory", "much"], "80GiB"),
        (["--training.stepps", "3"], "training.steps"),
        (["--nnodes", "0"], "--nnodes"),
    ],
)
def test_what_cannot_be_trained_is_one_line(arguments, named, materials: Materials, tmp_path: Path, capfd):
    from flame.cli import main

    job = str(write_job(materials, tmp_path / "run"))
    assert main(["plan", "--job.config_file", job, *arguments]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert named in output.err.splitlines()[-1]


def test_a_task_without_rows_of_tokens_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="rows of tokens only.*'classification'"):
        command.main(["--job.config_file", "digits_series", "--ngpu", "2"])
