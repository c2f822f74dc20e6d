from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from flame.losses import cross_entropy_sum
from flame.models.config import shrink
from flame.models.head import head_is_last, loss_in_head, output_head


def model_of(name: str, **changes):
    torch.manual_seed(0)
    config = shrink(AutoConfig.for_model(name))
    for key, value in changes.items():
        setattr(config, key, value)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    "name, changes, last",
    [
        ("llama", {}, True),
        ("qwen3", {}, True),
        ("gemma3_text", {}, True),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, True),
        ("gemma2", {}, True),
        ("nanochat", {}, True),
        ("granite", {"logits_scaling": 8.0}, False),
        ("cohere", {}, False),
    ],
)
def test_what_follows_the_head_is_noticed(name: str, changes: dict, last: bool) -> None:
    assert head_is_last(model_of(name, **changes)) is last


def test_the_head_is_itself_again_afterwards() -> None:
    model = model_of("llama")
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        head_is_last(model)
        loss_in_head(model, {"input_ids": ids}, ids)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert "forward" not in vars(output_head(model))


def test_the_head_is_itself_again_after_an_error() -> None:
    model = model_of("llama")
    with pytest.raises(RuntimeError):
        loss_in_head(model, {"input_ids": torch.arange(8).unsqueeze(0)}, torch.zeros(3, dtype=torch.long))
    assert "forward" not in vars(output_head(model))


def test_a_forward_of_the_instance_is_there_again_afterwards() -> None:
    """As tensor parallelism of transformers leaves one."""
    model = model_of("llama")
    wrapped = lambda hidden, plain=model.lm_head.forward: 2 * plain(hidden)  # noqa: E731
    model.lm_head.forward = wrapped
    ids = torch.arange(8).unsqueeze(0)
    loss_in_head(model, {"input_ids": ids}, ids)
    assert vars(model.lm_head)["forward"] is wrapped
    with pytest.raises(RuntimeError):
        loss_in_head(model, {"input_ids": ids}, torch.zeros(3, dtype=torch.long))
    assert vars(model.lm_head)["forward"] is wrapped


def test_what_stands_for_a_part_of_a_model_needs_only_its_head_and_config() -> None:
    class LastStage:
        def __init__(self, head: torch.nn.Linear) -> None:
            self.get_output_embeddings = lambda: head
            self.config = PreTrainedConfig()

        def __call__(self, hidden: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.get_output_embeddings()(hidden))

    stage, hidden, labels = LastStage(torch.nn.Linear(4, 6)), torch.randn(2, 3, 4), torch.arange(6).view(2, 3)
    loss = loss_in_head(stage, {"hidden": hidden}, labels)
    torch.testing.assert_close(loss, cross_entropy_sum(stage(hidden).logits, labels))


def test_no_logits_come_out_of_the_head() -> None:
    model = model_of("llama")
    sizes = []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
    ids = torch.arange(8).unsqueeze(0)
    loss = loss_in_head(model, {"input_ids": ids}, ids)
    assert sizes == [1]
    torch.testing.assert_close(loss, cross_entropy_sum(model(input_ids=ids).logits, ids))
