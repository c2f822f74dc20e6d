import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from flame.models.build import ModelArgs
from flame.models.flops import train_flops_per_token

LENGTH = 512


def llama(**changes) -> LlamaForCausalLM:
    sizes = {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": LENGTH}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes}))


def multiplied(model: torch.nn.Module) -> int:
    """Weights of matrix products: all linear layers, the head included, and no embedding table."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))


@pytest.mark.parametrize("tied", [False, True])
def test_a_dense_model_has_the_count_of_the_formula(tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    # Scores and their product with the values: 2 FLOPs each for every pair of positions that see each other and every
    # channel.
    attention = 3 * 2 * 2 * (LENGTH + 1) / 2 * 256
    assert train_flops_per_token(model, 0, LENGTH) == pytest.approx(3 * (2 * multiplied(model) + attention), rel=1e-3)


def test_attention_grows_with_the_length_and_the_rest_does_not() -> None:
    model = llama()
    short, long = (train_flops_per_token(model, 0, length) for length in (128, 512))
    assert long - short == pytest.approx(3 * 3 * 2 * 2 * (512 - 128) / 2 * 256, rel=1e-2)


def test_experts_count_in_the_share_that_is_active() -> None:
    def count(experts: int, active: int) -> int:
        config = MixtralConfig(
            vocab_size=1000,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=experts,
            num_experts_per_tok=active,
        )
        with torch.device("meta"):
            return train_flops_per_token(MixtralForCausalLM(config), 0, 64)

    expert = 3 * 2 * 3 * 128 * 256 * 2  # three products of each of two layers
    assert count(8, 2) - count(8, 1) == pytest.approx(expert, rel=1e-2)
    assert count(16, 2) == pytest.approx(count(8, 2), rel=1e-2)


def test_a_familys_own_count_is_believed() -> None:
    assert train_flops_per_token(llama(), 640, 64) == 30


def test_the_model_is_left_as_it_was() -> None:
    model = llama()
    before = {name: (value.dtype, value.device) for name, value in model.state_dict().items()}
    train_flops_per_token(model, 0, 64)
    assert {name: (value.dtype, value.device) for name, value in model.state_dict().items()} == before


def test_tied_weights_are_counted_once() -> None:
    args = ModelArgs(model_type="llama")
    untied, _ = args.get_nparams_and_flops(llama(), LENGTH)
    tied, _ = args.get_nparams_and_flops(llama(tie_word_embeddings=True), LENGTH)
    assert untied - tied == 1000 * 256


def test_a_linear_model_does_not_grow_with_the_length() -> None:
    config = Mamba2Config(
        vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_heads=8, head_dim=16, state_size=16, n_groups=1
    )
    with torch.device("meta"):
        model = Mamba2ForCausalLM(config)
    short, long = (train_flops_per_token(model, 0, length) for length in (512, 4096))
    assert long <= 1.5 * short
