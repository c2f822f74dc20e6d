"""Every shipped job parses, every shipped model config loads, and upstream's published command still works."""

import importlib
import importlib.util
import json
import re
from pathlib import Path

import fla.models  # noqa: F401  registers fla's families with transformers
import pytest
import torch
from transformers import AutoConfig

from flame.config import Source, parse, resolve
from flame.models.build import count_parameters, model_class
from flame.models.config import load_config
from flame.train import task_options

ROOT = Path(__file__).resolve().parents[1]
JOBS = sorted((ROOT / "configs" / "jobs").glob("*.toml"))
BASE_JOBS = sorted((ROOT / "flame" / "models").glob("*.toml"))
MODELS = sorted((ROOT / "configs").glob("*.json"))

UPSTREAM_COMMAND: str = """
  --job.config_file flame/models/fla.toml
  --job.dump_folder exp/transformer-340M-4K-10B/batch1.seqlen65536.context4096.warmup1024.update1.steps20480.lr1e-3.cosine
  --model.config configs/transformer_340M.json
  --model.tokenizer_path fla-hub/transformer-1.3B-100B
  --optimizer.name AdamW
  --optimizer.eps 1e-15
  --optimizer.lr 1e-3
  --lr_scheduler.warmup_steps 1024
  --lr_scheduler.lr_min 0.1
  --lr_scheduler.decay_type cosine
  --training.batch_size 1
  --training.seq_len 65536
  --training.context_len 4096
  --training.varlen
  --training.gradient_accumulation_steps 1
  --training.steps 20480
  --training.max_norm 1.0
  --training.skip_nan_inf
  --training.dataset HuggingFaceFW/fineweb-edu
  --training.dataset_name sample-100BT
  --training.dataset_split train
  --training.num_workers 32
  --training.prefetch_factor 2
  --training.seed 42
  --training.compile
  --checkpoint.interval 2048
  --checkpoint.load_step -1
  --checkpoint.keep_latest_k 2
  --metrics.log_freq 1
"""  # noqa: E501  word for word


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_there_are_jobs():
    assert JOBS


@pytest.mark.parametrize("path", [*JOBS, *BASE_JOBS], ids=lambda path: path.stem)
def test_a_shipped_job_can_be_trained(path):
    config = parse(["--job.config_file", str(path)], task_options)
    resolve(config, world_size=1)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_shipped_model_config_loads(path):
    model_type = json.loads(path.read_text())["model_type"]
    if importlib.util.find_spec("custom_models") and importlib.util.find_spec(f"custom_models.{model_type}"):
        importlib.import_module(f"custom_models.{model_type}")
    assert AutoConfig.from_pretrained(path).model_type == model_type


@pytest.mark.parametrize(
    "path",
    [
        # Its modules fill large tables while they are made.
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem.startswith("rwkv7_") else [])
        for path in MODELS
    ],
)
def test_the_listed_number_of_parameters_is_that_of_the_config(path):
    rows = (ROOT / "docs" / "models.md").read_text()
    row = re.search(rf"^\| `{path.stem}` \|.*$", rows, re.M)
    assert row, f"{path.stem} is not in docs/models.md"
    config, plugin = load_config(str(path))
    parameters = count_parameters(model_class(plugin, config, next(iter(plugin.auto_classes))), config)
    assert f"| {parameters:,} |" in row[0]
    assert f"| {config.num_hidden_layers} x {config.hidden_size:,} |" in row[0]


def test_the_list_of_shapes_names_no_others():
    listed = re.findall(r"^\| `(\S+?)` \|", (ROOT / "docs" / "models.md").read_text(), re.M)
    assert sorted(listed) == [path.stem for path in MODELS]


# What their authors publish, to as many digits as they do.
PUBLISHED = {
    "gpt2_124M": 124_439_808,
    "llama_7B": 6_738_415_616,
    "llama3_1B": 1_235_814_400,
    "llama3_8B": 8_030_261_248,
    "qwen3_0.6B": 596_049_920,
    "olmo2_7B": 7_298_617_344,
    "mixtral_8x7B": 46_702_792_704,
    "tiny_llama_1.1B": 1_100_048_384,
    "nanochat_d20": 560_988_160,
    "nanochat_d32": 1_879_048_192,
    "huginn_nebel_3.5B": 3_564_976_800,
    "llada_8B": 8.02e9,
    "llada_1B": 1.49e9,
    "huginn_deluge_4B": 4.43e9,
    "deepseek_v2_lite_16B": 15.7e9,
    "deepseek_v2_236B": 236e9,
    "deepseek_v3_671B": 671e9,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_of_others_has_the_size_they_publish(name: str):
    config, plugin = load_config(name)
    parameters = count_parameters(model_class(plugin, config, "causal_lm"), config)
    published = PUBLISHED[name]
    assert parameters == published if isinstance(published, int) else abs(parameters / published - 1) < 0.004


def test_nanochat_follows_from_its_depth():
    found = {path.stem.removeprefix("nanochat_d"): path for path in MODELS if path.stem.startswith("nanochat_d")}
    assert {"4", "12", "20", "26", "32", "34"} <= found.keys()
    for depth, path in found.items():
        layers = int(depth)
        config, plugin = load_config(str(path))
        width = 64 * layers
        assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (layers, width, 4 * width)
        assert config.num_attention_heads == config.num_key_value_heads == -(-width // 128)
        parameters = count_parameters(model_class(plugin, config, "causal_lm"), config)
        assert parameters == 12 * layers * width**2 + 2 * 65536 * width
        assert config.rms_norm_eps == torch.finfo(torch.float32).eps and config.final_logit_softcapping == 15


def test_the_published_command_of_upstream_means_what_it_means_there():
    config = parse(UPSTREAM_COMMAND.split())
    resolve(config, world_size=8)
    assert config.job.dump_folder.endswith("cosine")
    assert config.model.config == "configs/transformer_340M.json"
    assert config.model.tokenizer_path == "fla-hub/transformer-1.3B-100B"
    assert (config.optimizer.name, config.optimizer.eps, config.optimizer.lr) == ("AdamW", 1e-15, 1e-3)
    schedule = config.lr_scheduler
    assert (schedule.warmup_steps, schedule.decay_type, schedule.min_lr_factor) == (1024, "cosine", 0.1)
    training = config.training
    assert (training.local_batch_size, training.global_batch_size, training.steps) == (1, 8, 20480)
    assert (training.seq_len, training.context_len, training.varlen) == (65536, 4096, True)
    assert (training.max_norm, config.guard.skip_nan_inf) == (1.0, True)
    assert config.data.sources == [Source("HuggingFaceFW/fineweb-edu", name="sample-100BT", split="train")]
    assert (training.dataloader.num_workers, training.dataloader.prefetch_factor) == (32, 2)
    assert (config.debug.seed, config.compile.enable) == (42, True)
    checkpoint = config.checkpoint
    assert (checkpoint.enable, checkpoint.interval, checkpoint.load_step, checkpoint.keep_latest_k) == (
        True,
        2048,
        -1,
        2,
    )
    assert (config.metrics.log_freq, config.metrics.enable_wandb) == (1, True)
    assert (config.profiling.enable_profiling, config.profiling.profile_freq) == (True, 512)
    assert (config.export.dtype, config.job.print_config) == ("float32", True)
    assert config.activation_checkpoint.mode == "none"
