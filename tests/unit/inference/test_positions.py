from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig

from flame.errors import ConfigError
from flame.inference.positions import check_positions, learned_positions
from flame.models.config import tiny_config
from flame.plugin import load_plugin


def positions_of(config: Any) -> int:
    torch.manual_seed(0)
    return learned_positions(AutoModelForCausalLM.from_config(config).eval())


def test_a_learned_table_is_told_by_how_it_is_looked_up() -> None:
    config: Any = tiny_config(load_plugin("gpt2"))
    assert positions_of(config) == config.max_position_embeddings
    for rows in (config.vocab_size, 77):  # as many as tokens, too
        config.n_positions = rows
        assert positions_of(config) == rows


def test_rows_in_front_that_are_no_positions_do_not_count() -> None:
    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    assert config.pad_token_id is not None
    assert positions_of(config) == 40


def test_tables_of_tokens_are_none_of_positions() -> None:
    config: Any = tiny_config(load_plugin("nanochat_plus"))
    config.max_position_embeddings = config.padded_vocab_size
    assert positions_of(config) == 0
    config = tiny_config(load_plugin("llama"))
    assert positions_of(config) == 0


def test_what_does_not_fit_says_what_would() -> None:
    check_positions(0, 10**6, 10**6)
    check_positions(8, 3, 5)
    with pytest.raises(ConfigError, match="has 8 positions and the prompt takes 3, leaving at most 5"):
        check_positions(8, 3, 6)
    with pytest.raises(ConfigError, match="leaving none"):
        check_positions(8, 8, 1)
