"""Packed documents do not see each other, in every family that flame packs documents for."""

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedModel

from flame.losses import cross_entropy_sum
from flame.models.build import model_class, plain_model
from flame.models.config import tiny_config
from flame.models.documents import document_inputs, documents_are_isolated
from flame.models.trial import stir
from flame.plugin import load_plugin
from tests.runs import FAMILIES

ISOLATED = [
    "ema_lm",
    "deepseek_v3",
    "gemma3_text",
    "gpt_neox",
    "granite",
    "llama",
    "mixtral",
    "nanochat",
    "olmo2",
    "phi3",
    "qwen3",
    "smollm3",
]
DEAF = ["deaf_lm", "bloom"]
LENGTHS = [5, 1, 9, 7]


def model_of(name: str) -> PreTrainedModel:
    plugin = load_plugin(name, str(FAMILIES))
    if name == "deaf_lm":
        values = tiny_config(load_plugin("llama")).to_dict()
        config = AutoConfig.for_model(**{**values, "model_type": name})
    else:
        config = tiny_config(plugin)
    return stir(plain_model(model_class(plugin, config, "causal_lm"), config, seed=3).eval())


def documents(model: PreTrainedModel, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, model.config.vocab_size, (length,), generator=generator) for length in LENGTHS]


def packed_logits(model: PreTrainedModel, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of each document, from two equal rows that hold all of them."""
    ids = torch.cat(parts).expand(2, -1)
    positions = torch.cat([torch.arange(len(part)) for part in parts]).expand(2, -1)
    with torch.no_grad():
        logits = model(**document_inputs({"input_ids": ids, "position_ids": positions}, "position_ids")).logits
    return list(logits[1].split(LENGTHS))


@pytest.mark.parametrize("name", ISOLATED)
def test_changing_a_document_leaves_the_others_logits(name: str) -> None:
    model = model_of(name)
    assert documents_are_isolated(model, "position_ids")
    before, other = documents(model, 0), documents(model, 1)
    logits = packed_logits(model, before)
    for changed in range(len(LENGTHS)):
        parts = [other[index] if index == changed else part for index, part in enumerate(before)]
        for index, (now, then) in enumerate(zip(packed_logits(model, parts), logits, strict=True)):
            same = torch.allclose(now, then, rtol=1e-5, atol=1e-6)
            assert same == (index != changed), (changed, index)


@pytest.mark.parametrize("name", ISOLATED)
def test_the_loss_of_a_packed_row_is_the_sum_over_its_documents_alone(name: str) -> None:
    model = model_of(name)
    parts = documents(model, 2)
    labels = [torch.cat([part[1:], torch.tensor([-100])]) for part in parts]
    packed = cross_entropy_sum(torch.cat(packed_logits(model, parts)), torch.cat(labels))
    with torch.no_grad():
        alone = [
            cross_entropy_sum(model(input_ids=part.unsqueeze(0)).logits[0], label)
            for part, label in zip(parts, labels, strict=True)
            if len(part) > 1
        ]
    torch.testing.assert_close(packed, torch.stack(alone).sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DEAF)
def test_a_family_that_does_not_listen_is_found_out(name: str) -> None:
    model = model_of(name)
    assert not documents_are_isolated(model, "position_ids")


def test_borders_for_families_that_take_them() -> None:
    ids = torch.arange(12).reshape(2, 6)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]])
    given = document_inputs({"input_ids": ids, "position_ids": positions}, "cu_seqlens")
    assert given.keys() == {"input_ids", "cu_seqlens"}
    assert given["cu_seqlens"].tolist() == [0, 3, 5, 6, 10, 12]
    assert given["cu_seqlens"].dtype == torch.int32
    assert given["input_ids"].tolist() == [list(range(12))]


def test_rows_without_documents_are_passed_as_they_are() -> None:
    inputs = {"input_ids": torch.zeros(2, 4, dtype=torch.long)}
    assert document_inputs(inputs, "cu_seqlens") is inputs


def test_eager_attention_isolates_too() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config._attn_implementation = "eager"
    model = plain_model(model_class(load_plugin("llama"), config, "causal_lm"), config, seed=0).eval()
    assert model.config._attn_implementation == "eager"
    assert documents_are_isolated(model, "position_ids")


def test_packed_rows_become_one_row_for_kernels_without_masks() -> None:
    """Flash attention looks for restarts of positions in a single row only."""
    plugin = load_plugin("llama")
    config = tiny_config(plugin)
    model = plain_model(model_class(plugin, config, "causal_lm"), config, seed=0).eval()
    ids = torch.randint(0, config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    seeds = torch.arange(24).view(2, 12)
    inputs = document_inputs({"input_ids": ids, "position_ids": positions, "seeds": seeds, "num_steps": 3}, "one_row")
    assert inputs["input_ids"].shape == inputs["seeds"].shape == (1, 24) and inputs["num_steps"] == 3
    with torch.no_grad():
        packed = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"]).logits.view(2, 12, -1)
        for row, part in ((0, slice(0, 5)), (1, slice(5, 12))):
            alone = model(input_ids=ids[row : row + 1, part]).logits
            torch.testing.assert_close(packed[row : row + 1, part], alone)
