"""Fine-tuning from an exported folder to an exported folder, and what long or silent conversations do to it."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flame.data.chat.encoder import ChatEncoder
from tests.runs import WORDS, write_job

TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ message.role + ': ' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- else %}{{ message.content }}{% endif %}{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
SFT = {
    "task.name": "sft",
    "training.seq_len": 48,
    "training.varlen": True,
    "data.packing": "rows",
    "data.lanes_per_row": 1,
    "optimizer.lr": 1e-2,
    "export.enable": True,
}


def talks(path: Path, count: int, seed: int, longest: int = 6) -> Path:
    """Questions of some words, answered by the last of them."""
    drawn = random.Random(seed)
    rows = []
    for _ in range(count):
        words = drawn.choices(WORDS, k=drawn.randint(2, longest))
        rows.append({"prompt": " ".join(words), "completion": words[-1]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base(materials, pool, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    run = pool.run(write_job(materials, folder, {"training.steps": 2, "export.enable": True}), folder)
    assert run.code == 0, run.output
    return folder / "hf" / "latest"


def test_a_base_model_becomes_one_that_answers(base, materials, pool, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    changes = {
        **SFT,
        "model.config": str(base),
        "model.tokenizer_path": str(base),
        "task.chat_template": str(template),
        "training.steps": 30,
        "data.sources": [{"path": str(talks(tmp_path / "train.jsonl", 300, 0))}],
        "validation.enable": True,
        "validation.freq": 10,
        "validation.steps": -1,
        "validation.sources": [{"path": str(talks(tmp_path / "held_out.jsonl", 30, 1))}],
    }
    job = write_job(materials, tmp_path / "run", changes)
    run = pool.run(job, tmp_path / "run")
    assert run.code == 0, run.output
    losses = run.series("val_loss")
    assert len(losses) == 3 and losses[0] > losses[1] > losses[2]

    folder = tmp_path / "run" / "hf" / "latest"
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "the red bird"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert tokenizer.decode(asked["input_ids"][0]) == "<s>user: the red bird\nassistant: "
    answer = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id  # it learnt to stop
    with torch.no_grad():
        whole = tokenizer.apply_chat_template(
            [*question, {"role": "assistant", "content": "bird"}],
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
        )
        scored = whole.pop("assistant_masks")[:, 1:].bool()
        logits = model(**whole).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[scored], whole["input_ids"][:, 1:][scored])
    assert loss < losses[0]  # what was trained is what transformers asks for


@pytest.mark.parametrize(("too_long", "packing"), [("split", "best_fit"), ("cut", "rows"), ("skip", "rows")])
def test_conversations_longer_than_rows_neither_clog_nor_spoil_the_run(materials, pool, tmp_path, too_long, packing):
    """They never fit a row: nanochat's loader filled up with them and gave rows without a label (its issue 590)."""
    changes = {
        **SFT,
        "data.sources": [{"path": str(talks(tmp_path / "long.jsonl", 60, 0, longest=150))}],
        "data.packing": packing,
        "data.too_long": too_long,
        "training.local_batch_size": 1,
        "training.global_batch_size": 1,
        "export.enable": False,
    }
    run = pool.run(write_job(materials, tmp_path / "run", changes), tmp_path / "run")
    assert run.code == 0, run.output
    losses = run.series("loss")
    assert len(losses) == 5 and all(0 < loss < 20 for loss in losses)


@contextmanager
def silent_rows() -> Iterator[None]:
    """Conversations whose prompt has an even number of letters lose all that is scored."""
    whole = ChatEncoder.encode

    def encode(self: ChatEncoder, records: list[dict[str, Any]]) -> Any:
        pairs = zip(records, whole(self, records), strict=True)
        return [np.minimum(ids, ~ids) if len(row["prompt"]) % 2 == 0 else ids for row, ids in pairs]  # type: ignore

    ChatEncoder.encode = encode
    try:
        yield
    finally:
        ChatEncoder.encode = whole


@pytest.mark.parametrize("rows", [1, 4])
def test_steps_in_which_nothing_is_scored_have_no_loss(materials, pool, tmp_path, rows):
    changes = {
        **SFT,
        "data.sources": [{"path": str(talks(tmp_path / "train.jsonl", 100, 0))}],
        "training.local_batch_size": 1,
        "training.global_batch_size": rows,
        "training.steps": 8,
        "export.enable": False,
    }
    job = write_job(materials, tmp_path / "run", changes)
    run = pool.run(job, tmp_path / "run", patch="tests.e2e.test_sft:silent_rows")
    assert run.code == 0, run.output
    losses, norms = run.series("loss"), run.series("grad_norm")
    assert len(losses) == 8 and np.isfinite(losses).all() and np.isfinite(norms).all()
    assert (0 in losses) == (rows == 1) and any(loss > 1 for loss in losses)
    assert all(torch.isfinite(value).all() for value in run.weights(8).values())


def test_a_bad_row_is_an_error_if_the_job_says_so(materials, pool, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "assistant", "content": "hm"}]}) + "\n")
    changes = {**SFT, "data.sources": [{"path": str(path)}], "data.on_bad_row": "error", "export.enable": False}
    run = pool.run(write_job(materials, tmp_path / "run", changes), tmp_path / "run")
    assert run.output.startswith("DataError: ") and f"{path}, row 1: wrong role order" in run.output
