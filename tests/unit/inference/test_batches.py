import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from flame.inference.batches import honours_padding, in_batches, left_padded
from flame.inference.engine import Engine
from flame.inference.prompts import Prompt
from flame.models.config import tiny_config
from flame.plugin import load_plugin


def test_rows_are_filled_on_the_left() -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], 9, "cpu")
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_every_prompt_is_in_one_batch() -> None:
    prompts = [Prompt("", [0] * length) for length in (3, 1, 2, 3, 1, 3)]
    for size, pads in ((2, True), (2, False), (4, False), (100, True)):
        batches = list(in_batches(prompts, size, pads))
        assert sorted(index for batch in batches for index in batch) == list(range(6))
        assert all(len(batch) <= size for batch in batches)
        if not pads:
            assert all(len({len(prompts[index].ids) for index in batch}) == 1 for batch in batches)
    assert len(list(in_batches(prompts, 2, True))) == 3


@pytest.mark.parametrize(
    "family, honoured",
    [("llama", True), ("nanochat", True), ("gpt2", True), ("deepseek_v3", True), ("rwkv", False), ("gla", False)],
)
def test_whether_a_family_honours_padding_is_found_out(family: str, honoured: bool) -> None:
    plugin = load_plugin(family)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    model = AutoModelForCausalLM.from_config(tiny_config(plugin))
    torch.random.set_rng_state(state)
    assert honours_padding(Engine(model, None, plugin)) is honoured  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), state)


class Odd(LlamaForCausalLM):
    """Knows no padding, and says so in its own manner."""

    error: type[Exception] = ValueError

    def forward(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and not mask.all():
            raise self.error("padding")
        return super().forward(*args, **kwargs)  # type: ignore[arg-type]


class Unscalable(LlamaForCausalLM):
    """Cannot be made from a config alone."""

    def __init__(self, config: object, sizes: object) -> None:
        super().__init__(config)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError])
def test_a_family_that_fails_at_padding_does_not_honour_it(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, "error", error)
    plugin = load_plugin("llama")
    config = tiny_config(plugin)
    assert not honours_padding(Engine(Odd(config), None, plugin))  # type: ignore[arg-type]
    assert not honours_padding(Engine(Unscalable(config, None), None, plugin))  # type: ignore[arg-type]
