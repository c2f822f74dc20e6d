"""Packed documents through a whole job: who is refused, and what the loss of a packed batch means."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from flame.config import parse, resolve
from flame.data.job import train_loader
from flame.losses import cross_entropy_sum
from flame.models.build import plain_model
from flame.spec import check_job, load_job
from flame.train import task_options
from tests.runs import FAMILIES, LLAMA, launch, write_job

VARLEN = {"training.varlen": True, "training.context_len": 16}


def test_a_family_that_ignores_position_ids_is_refused_in_one_line(materials, tmp_path):
    deaf = {"model.config": str(materials.model({**LLAMA, "model_type": "deaf_lm"}))}
    job = write_job(materials, tmp_path / "run", {**VARLEN, **deaf, "model.plugin_path": str(FAMILIES)})
    run = launch(job, tmp_path / "run")
    assert run.code == 2
    (line,) = run.output.splitlines()
    assert line.startswith("flame: error: training.varlen: 'deaf_lm' lets packed documents see each other")
    assert not run.folder.exists()


def test_the_same_family_trains_without_packing(materials, pool, tmp_path):
    deaf = {"model.config": str(materials.model({**LLAMA, "model_type": "deaf_lm"}))}
    job = write_job(materials, tmp_path / "run", {**deaf, "model.plugin_path": str(FAMILIES)})
    run = pool.run(job, tmp_path / "run")
    assert run.code == 0, run.output


@pytest.fixture
def first_batches(materials, tmp_path):
    config = parse(["--job.config_file", str(write_job(materials, tmp_path / "run", VARLEN))], task_options)
    resolve(config, world_size=1)
    job = load_job(config)
    check_job(job)
    batches = iter(train_loader(config, job.task.encoder()))
    return job, [next(batches) for _ in range(4)]


def test_the_loss_of_packed_rows_is_the_sum_over_documents_alone(first_batches):
    job, batches = first_batches
    model = plain_model(job.model_class, job.model_config, seed=0).eval()
    documents, packed, alone = 0, torch.tensor(0.0), torch.tensor(0.0)
    with torch.no_grad():
        for inputs, labels in batches:
            packed += job.task.loss_sum(model, inputs, labels)
            for ids, positions, targets in zip(inputs["input_ids"], inputs["position_ids"], labels, strict=True):
                starts = (positions == 0).nonzero().flatten().tolist()
                for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                    assert end - start <= VARLEN["training.context_len"]
                    logits = model(input_ids=ids[start:end].unsqueeze(0)).logits[0]
                    alone += cross_entropy_sum(logits, targets[start:end])
                    documents += 1
    assert documents > 12
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=0)


def test_no_label_crosses_into_the_next_document(first_batches):
    job, batches = first_batches
    tokenizer = job.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    ends = 0
    for inputs, labels in batches:
        assert (labels[inputs["input_ids"] == tokenizer.eos_token_id] == -100).all()
        ends += int((inputs["input_ids"] == tokenizer.eos_token_id).sum())
    assert ends > 0
