"""The length of a run from a budget, and the keys of optimizers that do not go together."""

from pathlib import Path

import pytest

from flame.config import JobConfig, parse, resolve, to_toml
from flame.errors import ConfigError
from flame.models.build import count_parameters, model_class
from flame.models.config import load_config
from flame.optim import derive_steps

JOB = (
    *("--model.config", "llama_10M", "--model.tokenizer_path", "builtin:python-stdlib-8k"),
    *("--data.sources", "builtin:python-stdlib", "--training.seq_len", "100", "--training.local_batch_size", "10"),
)


def derived(*arguments: str, work: float = 1.0) -> JobConfig:
    config = parse([*JOB, *arguments])
    resolve(config, 1)
    model, plugin = load_config(config.model.config, "")
    derive_steps(config, model_class(plugin, model, "causal_lm"), model, plugin, work)
    return config


def parameters() -> int:
    model, plugin = load_config("llama_10M", "")
    return count_parameters(model_class(plugin, model, "causal_lm"), model)


def test_a_run_is_as_long_as_its_tokens_for_each_parameter() -> None:
    assert derived("--training.tokens_per_param", "20").training.steps == 20 * parameters() // 1000


def test_embeddings_can_be_left_out_of_the_count() -> None:
    model, _ = load_config("llama_10M", "")
    table = model.vocab_size * model.hidden_size
    table = 0 if model.tie_word_embeddings else table  # a tied one counts as head
    steps = derived("--training.tokens_per_param", "2", "--training.count_params", "without_embeddings").training.steps
    assert steps == 2 * (parameters() - table) // 1000


def test_a_run_is_as_long_as_its_tokens() -> None:
    assert derived("--training.tokens", "123456").training.steps == 123
    assert derived("--training.tokens", "10").training.steps == 1


def test_a_run_is_as_long_as_its_floating_point_operations() -> None:
    model, plugin = load_config("llama_10M", "")
    twice = derived("--training.flops", "2e15").training.steps
    assert twice == pytest.approx(2 * derived("--training.flops", "1e15").training.steps, abs=1)
    # Six for each weight a token meets, which is all where the embedding is the head too, and some for attention.
    assert model.tie_word_embeddings and plugin.forward_flops is None
    low = 6 * parameters() * 1000
    assert 2e15 / (1.2 * low) < twice < 2e15 / low


def test_a_task_says_what_a_token_costs_on_average() -> None:
    once, twice = (derived("--training.flops", "1e15", work=work).training.steps for work in (1.0, 2.0))
    assert once == pytest.approx(2 * twice, abs=2)


def test_without_a_budget_steps_are_as_given_or_ten_thousand() -> None:
    assert derived("--training.steps", "7").training.steps == 7
    assert derived().training.steps == 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--training.tokens", "5000", "--training.flops", "1e15"], "keep one of them"),
        (["--training.tokens", "5000", "--training.steps", "6"], "are 5 steps"),
        (["--training.count_params", "without_embeddings"], "has no effect without training.tokens_per_param"),
        (["--training.tokens", "-1"], "at least 0"),
    ],
)
def test_budgets_that_contradict_are_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        derived(*arguments)


def test_the_job_that_is_written_down_says_the_steps_and_can_be_run_again(tmp_path: Path) -> None:
    config = derived("--training.tokens", "5000")
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert "steps = 5\n" in to_toml(config)
    again = parse(["--job.config_file", str(tmp_path / "config.toml")])
    resolve(again, 1)
    model, plugin = load_config("llama_10M", "")
    derive_steps(again, model_class(plugin, model, "causal_lm"), model, plugin)
    assert again.training == config.training


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizer.name", "muon"], "Did you mean 'Muon'"),
        (["--optimizer.name", "Muon", "--optimizer.lr", "1e-3"], "set matrix_lr"),
        (["--optimizer.name", "Muon", "--optimizer.no_decay", "scalars"], "embedding_weight_decay"),
        (["--optimizer.matrix_lr", "0.1"], "an option of Muon"),
        (["--optimizer.name", "Muon", "--optimizer.atan_adam"], "an option of ELLISAdam"),
        (["--optimizer.no_decay", "norms"], "must be one of matrices, embeddings, head, scalars"),
        (["--optimizer.name", "Muon", "--optimizer.head_betas", "[0.9]"], "two numbers"),
        (["--optimizer.name", "Muon", "--optimizer.cautious_weight_decay"], "no effect without optimizer.weight_decay"),
        (["--optimizer.name", "ELLISAdam", "--optimizer.implementation", "for-loop"], "no effect with ELLISAdam"),
        (
            [
                *("--optimizer.name", "Muon", "--optimizer.orthogonalization", "polar_express"),
                *("--optimizer.orthogonalization_steps", "6"),
            ],
            "at most 5",
        ),
    ],
)
def test_keys_that_an_optimizer_would_ignore_are_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(parse([*JOB, *arguments]), 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AdamW", (8e-4, 0.9, 0.95, 1e-8, 0.1, [])),
        ("Muon", (None, 0.8, 0.95, 1e-10, 0.0, None)),
        ("ELLISAdam", (3e-4, 0.9, 0.95, 1e-6, 0.01, ["scalars"])),
    ],
)
def test_what_is_not_set_is_the_optimizers_own(name: str, expected: tuple) -> None:
    config = parse([*JOB, "--optimizer.name", name])
    resolve(config, 1)
    keys = config.optimizer
    assert (keys.lr, keys.beta1, keys.beta2, keys.eps, keys.weight_decay, keys.no_decay) == expected
    resolve(config, 1)
    assert (keys.lr, keys.weight_decay) == (expected[0], expected[4])
