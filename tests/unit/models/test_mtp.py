"""Layers that predict further tokens: the paper's equations, transformers' own, and what they may and may not see."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.modeling_layers import MtpModel

from flame.config import JobConfig
from flame.errors import ConfigError
from flame.losses import IGNORE_INDEX
from flame.models.build import model_class, plain_model
from flame.models.config import shrink
from flame.models.head import scoring_head
from flame.models.mtp import add_further_layers, further_layers, take_further_tokens, with_further_tokens
from flame.plugin import load_plugin
from flame.tasks.causal_lm import CausalLM, CausalLMOptions
from tests.runs import materials

__all__ = ["materials"]

LENGTH = 14


def config_of(model_type: str = "deepseek_v3", depth: int = 2) -> Any:
    return shrink(AutoConfig.for_model(model_type, num_nextn_predict_layers=depth))


def build(config: Any) -> Any:
    cls = model_class(load_plugin(config.model_type), config, "causal_lm")
    add_further_layers(cls, config)
    return plain_model(cls, config, seed=0)


def ids_of(model: Any, rows: int = 2) -> torch.Tensor:
    return torch.randint(3, model.config.vocab_size, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def ahead(ids: torch.Tensor, depth: int = 2) -> list[torch.Tensor]:
    return take_further_tokens(with_further_tokens({"input_ids": ids}, ids, depth))[1]


@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe"])
def test_logits_are_those_of_transformers_drafting_layers(model_type: str) -> None:
    model = build(config_of(model_type))
    ids, layers = ids_of(model), model.get_decoder().layers
    plain = plain_model(model_class(load_plugin(model_type), model.config, "causal_lm"), model.config, seed=0)
    theirs = MtpModel(plain, 2)
    for number, layer in enumerate(layers[-2:]):
        theirs.layers[number].load_state_dict(
            {
                name.replace("shared_head.norm", "post_norm")
                if name.startswith(("enorm", "hnorm", "eh_proj", "shared_head"))
                else f"mtp_block.{name}": value
                for name, value in layer.state_dict().items()
            }
        )
    outputs, further = model(input_ids=ids, further_ids=ahead(ids))
    states = model.get_decoder()(input_ids=ids).last_hidden_state
    for number, logits in enumerate(further):
        seen = LENGTH - number - 1  # positions for which the token ahead is in the row
        positions = torch.arange(number + 1, LENGTH).unsqueeze(0)
        states = theirs.forward_layer(number, states[:, :seen], positions, None, input_ids=ids[:, number + 1 :])
        assert (model.lm_head(states) - logits[:, :seen]).abs().max() < 1e-5
    assert torch.equal(outputs.logits, model(input_ids=ids).logits)


def test_a_layer_computes_the_papers_equation() -> None:
    model = build(config_of(depth=1))
    ids = ids_of(model)
    _, (logits,) = model(input_ids=ids, further_ids=ahead(ids, 1))
    states, layer = model.model(input_ids=ids).last_hidden_state, model.model.layers[-1]

    def norm(values: torch.Tensor, module: Any) -> torch.Tensor:
        return values * (values.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * module.weight

    embeddings = model.model.embed_tokens(ids.roll(-1, 1))
    hidden = torch.cat([norm(embeddings, layer.enorm), norm(states, layer.hnorm)], -1) @ layer.eh_proj.weight.T
    rotation = model.model.rotary_emb(hidden, torch.arange(LENGTH).unsqueeze(0))
    hidden = hidden + layer.self_attn(layer.input_layernorm(hidden), rotation, None)[0]
    hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    expected = norm(hidden, layer.shared_head["norm"]) @ model.lm_head.weight.T
    assert (expected - logits)[:, :-1].abs().max() < 1e-5


def test_they_begin_with_the_weights_the_model_has_without_them() -> None:
    config = config_of()
    plain = plain_model(model_class(load_plugin("deepseek_v3"), config, "causal_lm"), config, seed=0).state_dict()
    states = build(config).state_dict()
    assert plain.keys() < states.keys()
    assert all(torch.equal(states[name], value) for name, value in plain.items())
    first = config.num_hidden_layers
    assert {name.split(".")[2] for name in states.keys() - plain.keys()} == {str(first), str(first + 1)}


def test_embedding_and_head_learn_from_further_tokens_too() -> None:
    model = build(config_of(depth=1))
    ids = ids_of(model)
    _, (logits,) = model(input_ids=ids, further_ids=ahead(ids, 1))
    logits.square().sum().backward()
    assert not [
        name for name, parameter in model.named_parameters() if parameter.grad is None and "experts" not in name
    ]


def test_a_position_sees_the_tokens_up_to_the_one_given_and_no_more() -> None:
    model = build(config_of()).eval()
    ids = ids_of(model)
    changed = ids.clone()
    changed[:, 8] = (ids[:, 8] + 1) % model.config.vocab_size
    (_, before), (_, after) = (model(input_ids=each, further_ids=ahead(each)) for each in (ids, changed))
    for number, (first, second) in enumerate(zip(before, after, strict=True), 1):
        differs = (first - second).abs().amax(dim=(0, 2)) > 1e-6
        assert not differs[: 8 - number].any()
        assert differs[8 - number]


def test_the_head_scores_each_layer_against_labels_of_its_own() -> None:
    model = build(config_of())
    ids = ids_of(model)
    labels = ids.roll(-1, 1).masked_fill(torch.arange(LENGTH) == LENGTH - 1, IGNORE_INDEX)
    _, further_ids, further_labels = take_further_tokens(with_further_tokens({"input_ids": ids}, labels, 2))
    outputs, logits = model(input_ids=ids, further_ids=further_ids)
    with scoring_head(model, [labels, *further_labels]):
        scored, losses = model(input_ids=ids, further_ids=further_ids)
    for loss, each, wanted in zip(
        [scored.logits, *losses], [outputs.logits, *logits], [labels, *further_labels], strict=True
    ):
        expected = F.cross_entropy(each.flatten(0, 1), wanted.flatten(), reduction="sum", ignore_index=IGNORE_INDEX)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_end_of_a_row_and_of_a_document_has_no_further_label() -> None:
    ids = torch.arange(10, 18).unsqueeze(0)
    labels = torch.tensor([[11, 12, IGNORE_INDEX, 14, 15, 16, 17, 18]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])  # documents of 3 and 5 tokens
    made = with_further_tokens({"input_ids": ids, "position_ids": positions}, labels, 2)
    usual, tokens, targets = take_further_tokens(made)
    none = IGNORE_INDEX
    assert usual.keys() == {"input_ids", "position_ids"}
    assert tokens[0].tolist() == [[11, 12, 13, 14, 15, 16, 17, 0]]
    assert targets[0].tolist() == [[12, none, none, 15, 16, 17, 18, none]]
    assert targets[1].tolist() == [[none, none, none, 16, 17, 18, none, none]]
    assert take_further_tokens(usual) == (usual, [], [])


def test_a_config_without_such_layers_is_refused() -> None:
    uneven = config_of()
    uneven.layer_types = ["full_attention"] * uneven.num_hidden_layers
    for config, reason in (
        (config_of(depth=0), "asks for no further layers"),
        (shrink(AutoConfig.for_model("llama")), "asks for no further layers"),
        (uneven, "differ by their number"),
    ):
        cls = model_class(load_plugin(config.model_type), config, "causal_lm")
        with pytest.raises(ConfigError, match=reason):
            add_further_layers(cls, config)


@pytest.mark.parametrize("depth", [-1, -3])
def test_a_number_of_layers_that_is_none_is_refused(depth: int) -> None:
    config = config_of()
    config.num_mtp_layers = depth
    with pytest.raises(ConfigError, match=f"num_nextn_predict_layers = {depth} of the model config"):
        further_layers(config)


def test_documents_in_one_row_have_the_same_further_tokens(materials) -> None:
    """Flash attention looks for documents in a single row."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    task = CausalLM(CausalLMOptions(mtp_loss_weight=0.5), tokenizer=tokenizer, config=JobConfig())
    config = config_of()
    cls = model_class(load_plugin(config.model_type), config, "causal_lm")
    task.extend(cls, config)
    model = plain_model(cls, config, seed=0)
    ids = ids_of(model)
    inputs = {"input_ids": ids, "position_ids": torch.cat([torch.arange(6), torch.arange(LENGTH - 6)]).repeat(2, 1)}
    inputs, labels = task.prepare(inputs, ids.roll(-1, 1), torch.Generator())
    found = []
    for task.documents in ("position_ids", "one_row"):
        model.zero_grad()
        task.loss_sum(model, inputs, labels).backward()
        found.append((task.observed()["mtp_loss"], model.lm_head.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_layers_that_nobody_asked_to_train_are_left_out_aloud(materials, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(materials.tokenizer)
    task = CausalLM(CausalLMOptions(), tokenizer=tokenizer, config=JobConfig())
    config = config_of()
    task.extend(model_class(load_plugin(config.model_type), config, "causal_lm"), config)
    assert further_layers(config) == 0
    assert "the config has 2 layers that predict further tokens; they are left out" in caplog.text
