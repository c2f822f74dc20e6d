"""The masked-diffusion task with a model that fills in blocks from left to right."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from flame.errors import ConfigError
from flame.models.build import plain_model
from flame.models.trial import stir
from flame.tasks.base import seeded
from flame.tasks.masked_diffusion import TASK, MaskedDiffusion, MaskedDiffusionOptions
from tests.runs import Materials, materials, pool, write_job
from tests.unit.tasks.test_masked_diffusion import SMALL, UNIT, job, llada, prepared, rows, tokenizer

__all__ = ["materials", "pool", "tokenizer"]

BLOCK = 8


def checked(tokenizer: PreTrainedTokenizerFast, layout: dict[str, int] | None = None, attention: str = "sdpa") -> Any:
    """The task and a stirred model."""
    task: MaskedDiffusion = TASK(MaskedDiffusionOptions(random_length_share=0.0), tokenizer, job(**(layout or {})))
    config, cls = llada(block_length=BLOCK)
    config._attn_implementation = attention
    task.check(cls, config, "position_ids")
    return task, stir(plain_model(cls, config, seed=0)).eval()


def test_each_block_has_a_probability_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    task, _ = checked(tokenizer)
    inputs, labels = prepared(task, count=500)
    noise = inputs["noise"].view(500, -1, BLOCK)
    several = [set(block[block > 0].tolist()) for row in noise for block in row]
    assert max(map(len, several)) == 1
    assert sum(len(set(row.amax(1).tolist())) > 2 for row in noise) > 450, "blocks of a row are hidden alike"
    assert torch.equal(inputs["clean_ids"], labels)
    assert (inputs["input_ids"] == task.mask_token_id).equal(inputs["noise"] > 0)


def test_blocks_of_packed_documents_begin_with_them(tokenizer: PreTrainedTokenizerFast) -> None:
    task, _ = checked(tokenizer)
    inputs, labels = rows(1, 21)
    inputs["position_ids"] = torch.cat([torch.arange(10), torch.arange(11)])[None]
    borders = [0, 8, 10, 18, 21]
    for seed in range(20):
        noise = task.prepare(inputs, labels, seeded(seed))[0]["noise"][0]
        for begin, end in zip(borders, borders[1:], strict=False):
            assert len(set(noise[begin:end][noise[begin:end] > 0].tolist())) <= 1


def test_the_loss_is_that_of_every_block_given_the_text_before_it(tokenizer: PreTrainedTokenizerFast) -> None:
    task, model = checked(tokenizer)
    inputs, labels = prepared(task, count=3)
    expected = torch.zeros(())
    for start in range(0, 32, BLOCK):
        block = slice(start, start + BLOCK)
        ids = torch.cat([labels[:, :start], inputs["input_ids"][:, block]], dim=1)
        chances = model(ids).logits[:, start:].log_softmax(-1)
        losses = -chances.gather(-1, labels[:, block].unsqueeze(-1)).squeeze(-1)  # [B, BLOCK]
        noise = inputs["noise"][:, block]
        expected = expected + torch.where(noise > 0, losses * UNIT / noise.clamp(min=1), 0.0).sum()
    found = task.loss_sum(model, inputs, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found, task.loss(model(**task.model_inputs(inputs)), labels, inputs), rtol=1e-5, atol=0)
    assert task.work(inputs) == task.mean_work(model.config) == 2


@pytest.mark.parametrize("degree", ["pipeline_parallel_degree", "context_parallel_degree"])
def test_layouts_that_part_a_row_are_refused(tokenizer: PreTrainedTokenizerFast, degree: str) -> None:
    with pytest.raises(ConfigError, match=f"parallelism.{degree} = 2: block_length = 8 of the model needs 1"):
        checked(tokenizer, {degree: 2})


def test_flash_attention_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="block_length = 8: flash attention takes no mask"):
        checked(tokenizer, attention="flash_attention_2")


@pytest.mark.parametrize("degree", [1, 2])
def test_a_job_learns(materials: Materials, pool, tmp_path, degree: int) -> None:
    changes = {
        "model.config": str(materials.model({"model_type": "llada", **SMALL, "block_length": BLOCK})),
        "task.name": "masked_diffusion",
        "training.steps": 30,
        "training.varlen": degree == 2,
        "parallelism.tensor_parallel_degree": degree,
        "optimizer.lr": 1e-2,
        "validation.enable": True,
        "validation.freq": 30,
        "validation.sources": [{"path": str(materials.held_out)}],
        "export.enable": True,
    }
    run = pool.run(write_job(materials, tmp_path / "run", changes), tmp_path / "run", world=degree)
    assert run.code == 0, run.output
    assert run.series("val_loss")[-1] < 0.8 * torch.tensor(301).log().item()
    model: Any = AutoModelForCausalLM.from_pretrained(run.folder / "hf" / "latest")
    assert model.config.block_length == BLOCK
    found = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=16)
    assert found.shape == (1, 19) and not (found == 300).any()
