"""The masked-diffusion task: what is hidden, what is scored, and how much it counts."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from flame.config import JobConfig
from flame.errors import ConfigError
from flame.models.build import model_class, plain_model
from flame.models.config import tiny_config
from flame.models.masks import fit_mask_token
from flame.models.trial import stir
from flame.plugin import load_plugin
from flame.tasks.base import seeded
from flame.tasks.masked_diffusion import TASK, MaskedDiffusion, MaskedDiffusionOptions
from flame.tokenizer.byte_lengths import token_bytes
from tests.runs import LLAMA, Materials, materials, pool, write_job

__all__ = ["materials", "pool"]

UNIT = 2**24
SMALL = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "mask_token_id": None,
}


@pytest.fixture
def tokenizer(materials: Materials) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)


def llada(**changes: Any) -> Any:
    plugin = load_plugin("llada")
    config = tiny_config(plugin)
    for name, value in changes.items():
        setattr(config, name, value)
    return config, model_class(plugin, config, "causal_lm")


def job(length: int = 32, **parallelism: int) -> JobConfig:
    config = JobConfig()
    config.training.seq_len = length
    for name, value in parallelism.items():
        setattr(config.parallelism, name, value)
    return config


@pytest.fixture
def task(tokenizer: PreTrainedTokenizerFast) -> MaskedDiffusion:
    made = TASK(MaskedDiffusionOptions(random_length_share=0.0), tokenizer, job())
    config, cls = llada()
    made.check(cls, config, "position_ids")
    return made


def rows(count: int, length: int, size: int = 290) -> tuple[dict[str, Tensor], Tensor]:
    """What the loader gives: texts, and the same texts one token later."""
    ids = torch.randint(3, size, (count, length + 1), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids[:, :-1].clone()}, ids[:, 1:].clone()


def prepared(task: MaskedDiffusion, count: int = 8, length: int = 32) -> tuple[dict[str, Any], Tensor]:
    return task.prepare_rows(rows(count, length), [seeded(row) for row in range(count)])


# What is hidden


def test_targets_are_the_tokens_at_the_same_position(task: MaskedDiffusion) -> None:
    given, _ = rows(8, 32)
    inputs, labels = prepared(task)
    assert torch.equal(labels, given["input_ids"])
    hidden = inputs["input_ids"] != given["input_ids"]
    assert torch.equal(hidden, inputs["noise"] > 0)
    assert (inputs["input_ids"][hidden] == task.mask_token_id).all() and 0 < hidden.float().mean() < 1


def test_each_row_has_one_probability_and_half_of_all_tokens_are_hidden(task: MaskedDiffusion) -> None:
    inputs, _ = prepared(task, count=4000, length=24)
    hidden = inputs["noise"] > 0
    for noise in inputs["noise"][:50]:
        assert len(set(noise[noise > 0].tolist())) <= 1
    chance = inputs["noise"].amax(1)[hidden.any(1)] / UNIT
    shares = hidden.float().mean(1)
    assert shares.mean().item() == pytest.approx((1 + 1e-3) / 2, abs=4 * math.sqrt(1 / 12 / 4000))
    error = (shares[hidden.any(1)] - chance).abs().mean()
    assert error < 0.1, "rows are not hidden with their own probability"
    assert shares.std().item() == pytest.approx(math.sqrt(1 / 12 + 1 / 6 / 24), rel=0.05)


def test_what_fills_a_row_up_is_not_scored_and_looks_like_the_end_of_text(task: MaskedDiffusion) -> None:
    inputs, labels = rows(1, 32)
    inputs["input_ids"][:, 20:], labels[:, 19:] = 0, -100
    found, targets = task.prepare(inputs, labels, seeded(0))
    assert (targets[:, :20] != -100).all() and (targets[:, 20:] == -100).all()
    assert (found["input_ids"][:, 20:] == task.tokenizer.eos_token_id).all()
    assert (found["noise"][:, 20:] == 0).all()


def test_packed_documents_are_scored_to_their_last_token(task: MaskedDiffusion) -> None:
    inputs, labels = rows(1, 12)
    inputs["position_ids"] = torch.cat([torch.arange(5), torch.arange(7)])[None]
    labels[:, 4] = -100  # no target crosses the border
    found, targets = task.prepare(inputs, labels, seeded(0))
    assert (targets != -100).all() and torch.equal(found["position_ids"], inputs["position_ids"])


def test_some_batches_are_cut_to_a_length_that_all_ranks_draw(tokenizer: PreTrainedTokenizerFast) -> None:
    task = TASK(MaskedDiffusionOptions(random_length_share=0.3), tokenizer, job(16))
    task.mask_token_id = 300
    drawn = [task.draw(seeded(step))["cut_length"] for step in range(2000)]
    assert drawn == [task.draw(seeded(step))["cut_length"] for step in range(2000)]
    cut = [length for length in drawn if length]
    assert len(cut) / 2000 == pytest.approx(0.3, abs=0.05) and set(cut) == set(range(1, 17))
    inputs, labels = rows(3, 16)
    batch = task.prepare_rows(({**inputs, "cut_length": 5}, labels), [seeded(row) for row in range(3)])
    assert batch[0]["input_ids"].shape == batch[0]["noise"].shape == batch[1].shape == (3, 5)
    assert torch.equal(batch[1], inputs["input_ids"][:, :5])
    assert "cut_length" not in batch[0] and task.work(batch[0]) == 5 / 16


@pytest.mark.parametrize("degree", ["pipeline_parallel_degree", "context_parallel_degree"])
def test_rows_of_many_lengths_are_refused_where_they_cannot_be(tokenizer: PreTrainedTokenizerFast, degree: str) -> None:
    with pytest.raises(ConfigError, match=r"task.random_length_share = 0.01.* set it to 0"):
        TASK(MaskedDiffusionOptions(), tokenizer, job(**{degree: 2}))
    TASK(MaskedDiffusionOptions(random_length_share=0.0), tokenizer, job(**{degree: 2}))


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"eps": 1.0}, {"random_length_share": 1.5}])
def test_shares_outside_of_their_range_are_refused(tokenizer: PreTrainedTokenizerFast, options: dict) -> None:
    with pytest.raises(ConfigError, match=f"task.{next(iter(options))}"):
        TASK(MaskedDiffusionOptions(**options), tokenizer, job())


# What is scored


def test_only_hidden_tokens_count_each_over_its_probability(task: MaskedDiffusion) -> None:
    inputs, labels = prepared(task, count=4)
    logits = torch.randn(4, 32, 320, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for row in range(4):
        for position in range(32):
            if inputs["input_ids"][row, position] == task.mask_token_id:
                chance = inputs["noise"][row].max().item() / UNIT
                expected -= logits[row, position].log_softmax(-1)[labels[row, position]].item() / chance
    assert task.loss(SimpleNamespace(logits=logits), labels, inputs).item() == pytest.approx(expected, rel=1e-5)


def test_a_uniform_model_has_a_loss_of_the_logarithm_of_the_vocabulary(task: MaskedDiffusion) -> None:
    inputs, labels = prepared(task, count=4000, length=24)
    loss = task.loss(SimpleNamespace(logits=torch.zeros(4000, 24, 5)), labels.clamp(max=4), inputs)
    # The variance of hidden / p over rows is E[(1 - p) / p] / 24, with E[1 / p] = ln(1 / eps) / (1 - eps).
    error = math.sqrt((math.log(1e3) - 1) / 24 / 4000)
    assert loss.item() / labels.numel() == pytest.approx(math.log(5), abs=4 * error * math.log(5))


def test_logits_where_nothing_is_hidden_are_not_needed(task: MaskedDiffusion) -> None:
    config, cls = llada()
    task.check(cls, config, "position_ids")
    whole: Any = stir(plain_model(cls, config, seed=0))
    few: Any = copy.deepcopy(whole)
    inputs, labels = prepared(task)
    seen: list[torch.Size] = []
    few.lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.shape))
    expected = task.loss(whole(**task.model_inputs(inputs)), labels, inputs)
    expected.backward()
    found = task.loss_sum(few, inputs, labels)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    for (name, weight), other in zip(few.named_parameters(), whole.parameters(), strict=True):
        assert (weight.grad - other.grad).norm() <= 1e-5 * other.grad.norm(), name
    assert seen == [((inputs["noise"] > 0).sum().item(), config.vocab_size)]


def test_many_logits_are_scored_in_parts(task: MaskedDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = prepared(task)
    logits = torch.randn(8, 32, 320, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        loss = task.loss(SimpleNamespace(logits=logits), labels, inputs)
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    whole = loss_and_gradient()
    monkeypatch.setattr("flame.tasks.masked_diffusion.CHUNK_ELEMENTS", 7 * 320)
    for found, expected in zip(loss_and_gradient(), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_rows_whose_labels_were_taken_away_have_no_loss(task: MaskedDiffusion) -> None:
    """Validation gives ranks that run out of documents such rows, with the noise of others."""
    config, cls = llada()
    task.check(cls, config, "position_ids")
    inputs, labels = prepared(task)
    assert task.loss_sum(plain_model(cls, config, seed=0), inputs, torch.full_like(labels, -100)).item() == 0


def test_bits_per_byte_are_those_of_the_whole_text(task: MaskedDiffusion) -> None:
    _, labels = prepared(task)
    labels[:, ::2] = -100
    lengths = token_bytes(task.tokenizer)
    assert task.counts(labels)["bytes"].item() == lengths[labels[:, 1::2]].sum().item() > 0
    figures = task.report(2.0, 100.0, {"bytes": 50.0})
    assert figures["bpb"] == pytest.approx(4 / math.log(2)) and figures["ppl"] == pytest.approx(math.exp(2))


def test_what_is_learned_is_the_likelihood(task: MaskedDiffusion) -> None:
    """Texts that count on from one of twenty numbers: what is unknown of them is where they begin."""
    config, cls = llada(vocab_size=24, mask_token_id=23, hidden_size=64, head_dim=16)
    task.mask_token_id = 23
    model: Any = plain_model(cls, config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, step / 20) * (1 - step / 300)
        generator = seeded(step)
        text = (torch.randint(0, 20, (64, 1), generator=generator) + torch.arange(9)) % 20 + 3
        inputs, labels = task.prepare({"input_ids": text[:, :-1]}, text[:, 1:].clone(), generator)
        optimizer.zero_grad()
        (task.loss_sum(model, inputs, labels) / labels.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    text = torch.arange(8) + 7
    drawn = {"samples": 512, "batch_size": 512, "generator": torch.Generator().manual_seed(0)}
    assert model.eval().log_likelihood(text[:0], text, **drawn) == pytest.approx(-math.log(20), abs=0.4)
    assert model.log_likelihood(text[:2], text[2:], **drawn) == pytest.approx(0, abs=0.2)
    assert model.generate(text[None, :2], max_new_tokens=6).tolist() == [text.tolist()]


# The mask token


def test_a_tokenizer_without_a_mask_gets_a_row_for_it(tokenizer: PreTrainedTokenizerFast) -> None:
    config, _ = llada(vocab_size=len(tokenizer))
    assert fit_mask_token(config, tokenizer) == len(tokenizer)
    assert config.mask_token_id == len(tokenizer) and config.vocab_size == len(tokenizer) + 1
    assert fit_mask_token(config, tokenizer) == len(tokenizer)  # and again
    config, _ = llada(vocab_size=320)
    assert fit_mask_token(config, tokenizer) == len(tokenizer) and config.vocab_size == 320


def test_a_mask_that_is_a_word_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    config, _ = llada(vocab_size=320, mask_token_id=270)
    with pytest.raises(ConfigError, match=r"mask_token_id 270 .* ordinary token '.*'.* set it to null"):
        fit_mask_token(config, tokenizer)
    for absent in (320, -5):
        config, _ = llada(vocab_size=320, mask_token_id=absent)
        with pytest.raises(ConfigError, match=f"mask_token_id {absent} is no row of a vocabulary of 320"):
            fit_mask_token(config, tokenizer)


@pytest.mark.parametrize("role", ["bos", "eos", "pad"])
def test_a_mask_that_has_another_role_is_refused(tokenizer: PreTrainedTokenizerFast, role: str) -> None:
    taken = len(tokenizer)
    tokenizer.add_special_tokens({f"{role}_token": "<|taken|>"})
    message = f"mask_token_id {taken} is the tokenizer's {role} token '<.taken.>'.* config null"
    for mask in (taken, None):  # of the config
        config, _ = llada(vocab_size=320, mask_token_id=mask)
        if mask is None:
            tokenizer.add_special_tokens({"mask_token": "<|taken|>"})
        with pytest.raises(ConfigError, match=message) as caught:
            fit_mask_token(config, tokenizer)
        assert "\n" not in str(caught.value)


def test_special_and_spare_rows_can_be_masks(tokenizer: PreTrainedTokenizerFast) -> None:
    config, _ = llada(vocab_size=320, mask_token_id=310)
    assert fit_mask_token(config, tokenizer) == 310
    tokenizer.add_tokens([AddedToken("<|mdm_mask|>", special=True)])  # type: ignore[list-item]
    config, _ = llada(vocab_size=320, mask_token_id=len(tokenizer) - 1)
    assert fit_mask_token(config, tokenizer) == len(tokenizer) - 1
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    assert fit_mask_token(config, tokenizer) == tokenizer.mask_token_id == len(tokenizer) - 1


def test_a_causal_family_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    config = AutoConfig.for_model(**LLAMA)
    config.mask_token_id = None
    task = TASK(MaskedDiffusionOptions(), tokenizer, job())
    with pytest.raises(ConfigError, match=r"'llama' is causal.*causal_lm"):
        task.check(model_class(load_plugin("llama"), config, "causal_lm"), config, "position_ids")
    with pytest.raises(ConfigError, match="'gpt2' has no mask_token_id"):
        fit_mask_token(AutoConfig.for_model("gpt2"), tokenizer)


# A job


def test_a_job_learns(materials: Materials, pool, tmp_path) -> None:
    changes = {
        "model.config": str(materials.model({"model_type": "llada", **SMALL})),
        "task.name": "masked_diffusion",
        "task.random_length_share": 0.2,
        "training.steps": 30,
        "optimizer.lr": 1e-2,
        "validation.enable": True,
        "validation.freq": 30,
        "validation.sources": [{"path": str(materials.held_out)}],
        "export.enable": True,
    }
    run = pool.run(write_job(materials, tmp_path / "run", changes), tmp_path / "run")
    assert run.code == 0, run.output
    assert run.series("tokens")[-1] < 30 * 256, "no batch was cut"
    assert run.series("val_loss")[-1] < 0.8 * math.log(301)
    assert run.series("val_bpb")[-1] > 0
    model: Any = AutoModelForCausalLM.from_pretrained(run.folder / "hf" / "latest")
    assert (model.config.mask_token_id, model.config.vocab_size) == (300, 301)
    found = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8)
    assert found.shape == (1, 11) and not (found == 300).any()
