"""DeepSeek: its arithmetic against torchtitan's, dense latent attention, and what a trained folder holds."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchtitan.models.deepseek_v3 import DeepSeekV3ModelArgs
from torchtitan.models.deepseek_v3.model.model import DeepSeekV3Model
from torchtitan.models.moe import MoEArgs
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from flame.inference.absorbed import absorbed
from flame.models.experts import BIAS
from tests.runs import Materials, Pool, Run, write_job

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 128,
    "num_nextn_predict_layers": 1,
}
# HuggingFace name -> torchtitan's, within a layer.
NAMES = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.q_a_proj": "attention.wq_a",
    "self_attn.q_a_layernorm": "attention.q_norm",
    "self_attn.q_b_proj": "attention.wq_b",
    "self_attn.kv_a_proj_with_mqa": "attention.wkv_a",
    "self_attn.kv_a_layernorm": "attention.kv_norm",
    "self_attn.kv_b_proj": "attention.wkv_b",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate": "moe.router.gate",
    **{f"mlp.{name}_proj": f"feed_forward.w{index}" for name, index in (("gate", 1), ("up", 3), ("down", 2))},
    **{
        f"mlp.shared_experts.{name}_proj": f"moe.shared_experts.w{index}"
        for name, index in (("gate", 1), ("up", 3), ("down", 2))
    },
}
OUTER = {"model.embed_tokens.weight": "tok_embeddings.weight", "model.norm.weight": "norm.weight"}


def in_torchtitan_names(states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in states.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if found is None:
            renamed[OUTER.get(name, "output.weight")] = value
            continue
        layer, inner = f"layers.{found[1]}", found[2]
        if inner == "mlp.experts.gate_up_proj":
            renamed[f"{layer}.moe.experts.w1"], renamed[f"{layer}.moe.experts.w3"] = value.chunk(2, dim=1)
        elif inner == "mlp.experts.down_proj":
            renamed[f"{layer}.moe.experts.w2"] = value
        elif inner.endswith(BIAS):
            renamed[f"{layer}.moe.expert_bias"] = value
        else:
            renamed[f"{layer}.{NAMES[inner.removesuffix('.weight')]}.weight"] = value
    return renamed


@torch.no_grad()
@pytest.mark.parametrize("query_rank", [None, 32])
@pytest.mark.parametrize("groups", [1, 2])
def test_logits_are_torchtitans(monkeypatch: pytest.MonkeyPatch, query_rank: int | None, groups: int) -> None:
    # torchtitan counts choices by a histogram of integers, which exists on GPUs only.
    histogram = torch.histc
    monkeypatch.setattr(torch, "histc", lambda chosen, **options: histogram(chosen.float(), **options).to(chosen.dtype))
    values = {**SMALL, "q_lora_rank": query_rank, "n_group": groups, "initializer_range": 0.1}
    torch.manual_seed(0)
    ours = DeepseekV3ForCausalLM(DeepseekV3Config(**values)).eval()
    for name, buffer in ours.named_buffers():
        if name.endswith(BIAS):
            buffer.normal_(std=0.3)
    arguments = DeepSeekV3ModelArgs(
        max_seq_len=128,
        vocab_size=320,
        dim=64,
        inter_dim=96,
        moe_inter_dim=32,
        n_layers=3,
        n_dense_layers=1,
        n_heads=4,
        norm_eps=1e-6,
        moe_args=MoEArgs(
            num_experts=8,
            num_shared_experts=1,
            score_func="sigmoid",
            route_norm=True,
            route_scale=2.5,
            score_before_experts=False,
            top_k=2,
            num_expert_groups=groups if groups > 1 else None,
            num_limited_groups=1 if groups > 1 else None,
            use_grouped_mm=False,
        ),
        q_lora_rank=query_rank or 0,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
    )
    arguments.moe_impl = "standard"  # type: ignore[attr-defined]
    theirs = DeepSeekV3Model(arguments).eval()
    theirs.norm.eps = 1e-6
    theirs.load_state_dict(in_torchtitan_names(ours.state_dict()))
    ids = torch.randint(320, (2, 40))
    logits = ours(input_ids=ids).logits
    assert logits.std() > 0.1
    assert (theirs(ids) - logits).abs().max() < 1e-4


def train(materials: Materials, pool: Pool, folder: Path, changes: dict[str, Any], **values: Any) -> Run:
    model = materials.model({"model_type": "deepseek_v3", **SMALL, **values})
    job = write_job(materials, folder, {"model.config": str(model), "export.enable": True, **changes})
    run = pool.run(job, folder)
    assert run.code == 0, run.output
    return run


BALANCED = {"moe.bias_update_rate": 0.01, "moe.sequence_balance_loss": 1e-3, "task.mtp_loss_weight": 0.3}


@pytest.fixture(scope="module")
def trained(materials: Materials, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Run:
    changes = {**BALANCED, "checkpoint.interval": 2, "training.steps": 4}
    return train(materials, pool, tmp_path_factory.mktemp("deepseek") / "run", changes)


def exported(run: Run, step: int = 4) -> Path:
    return run.folder / "hf" / f"step-{step}"


def loaded(run: Run, step: int = 4) -> Any:
    return AutoModelForCausalLM.from_pretrained(exported(run, step))


def test_an_exported_folder_holds_biases_and_further_layers_as_trained(trained: Run) -> None:
    files, states = load_file(exported(trained) / "model.safetensors"), trained.weights(4)
    assert files.keys() == states.keys()
    assert all(torch.equal(files[name], value) for name, value in states.items())
    assert sum(name.endswith(BIAS) for name in files) == 3
    assert all(value.any() for name, value in files.items() if name.endswith(BIAS))
    assert {"model.layers.3.eh_proj.weight", "model.layers.3.shared_head.norm.weight"} < files.keys()
    assert not [name for name in trained.moments(4) if BIAS in name]


def test_transformers_drafts_with_the_exported_further_layers(trained: Run) -> None:
    model = loaded(trained)
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained.weights(4)[name]), name
    # transformers knows the numbers of the published models' layers only.
    model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.3\."]
    ids = torch.tensor([[1, 40, 41, 42]])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    alone = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, use_mtp=True, **options), alone)
    with absorbed(model) as changed:
        assert changed
        assert torch.equal(model.generate(ids, **options), alone)
        assert torch.equal(model.generate(ids, use_mtp=True, **options), alone)


def test_a_resumed_run_goes_on_with_its_biases(materials: Materials, pool: Pool, tmp_path: Path, trained: Run) -> None:
    first = train(materials, pool, tmp_path / "run", {**BALANCED, "training.steps": 2, "lr_scheduler.total_steps": 4})
    again = train(materials, pool, first.folder, {**BALANCED, "training.steps": 4})
    expected = trained.weights(4)
    for name, value in again.weights(4).items():
        assert torch.equal(value, expected[name]), name
    assert again.series("expert_load") == trained.series("expert_load")
    assert again.series("balance_loss") == trained.series("balance_loss")


def test_bfloat16_training_and_export_leave_the_bias_in_float32(
    materials: Materials, pool: Pool, tmp_path: Path
) -> None:
    changes = {"training.mixed_precision_param": "bfloat16", "export.dtype": "bfloat16", "training.steps": 3}
    run = train(materials, pool, tmp_path / "run", {**changes, "moe.bias_update_rate": 1e-3})
    files = load_file(exported(run, 3) / "model.safetensors")
    steps = {round(value / 1e-3, 3) for name in files if name.endswith(BIAS) for value in files[name].tolist()}
    assert files["lm_head.weight"].dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for name, value in files.items() if name.endswith(BIAS))
    assert steps <= {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0} and len(steps) > 1


def test_dense_latent_attention_trains_and_exports(materials: Materials, pool: Pool, tmp_path: Path) -> None:
    run = train(materials, pool, tmp_path / "run", {"training.steps": 4}, first_k_dense_replace=3)
    assert run.series("loss")[-1] < run.series("loss")[0]
    assert not run.series("expert_load")
    model = loaded(run)
    assert not [name for name, _ in model.named_modules() if "experts" in name]
    ids = torch.tensor([[1, 40, 41, 42]])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    alone = model.generate(ids, **options)
    with absorbed(model):
        assert torch.equal(model.generate(ids, **options), alone)


@pytest.mark.slow
def test_plain_transformers_drafts_with_the_published_number_of_layers(
    materials: Materials, pool: Pool, tmp_path: Path
) -> None:
    sizes = {"num_hidden_layers": 61, "first_k_dense_replace": 60, "hidden_size": 32, "moe_intermediate_size": 8}
    run = train(materials, pool, tmp_path / "run", {**BALANCED, "training.steps": 1}, **sizes)
    model = loaded(run, 1)
    ids = torch.tensor([[1, 40, 41, 42]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, use_mtp=True, **options), model.generate(ids, **options))


def test_weights_with_further_layers_start_a_run_without(
    materials: Materials, pool: Pool, tmp_path: Path, trained: Run
) -> None:
    source = {"checkpoint.initial_load_path": str(exported(trained)), "checkpoint.initial_load_in_hf": True}
    run = train(materials, pool, tmp_path / "run", {**source, "training.steps": 1, "optimizer.lr": 1e-12})
    weights, expected = run.weights(1), trained.weights(4)
    assert not [name for name in weights if name.startswith("model.layers.3.")]
    assert all(torch.allclose(value, expected[name]) for name, value in weights.items() if not name.endswith(BIAS))
