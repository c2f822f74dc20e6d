"""The scaled-down model that a job is tried on."""

import pytest
from transformers import LlamaConfig

from flame.models import trial
from flame.models.build import model_class
from flame.models.trial import trial_model
from flame.plugin import load_plugin


def llama(**changes):
    config = LlamaConfig(**changes)
    return model_class(load_plugin("llama"), config, "causal_lm"), config


def test_a_large_config_becomes_a_small_model() -> None:
    model = trial_model(*llama())
    assert model is not None and not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_a_family_that_stays_large_is_not_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial, "_LARGEST", 10)
    monkeypatch.setattr(trial, "plain_model", None)  # would fail if called
    with caplog.at_level("INFO"):
        assert trial_model(*llama()) is None
    assert "'llama' cannot be scaled down" in caplog.text


def test_sizes_that_do_not_fit_together_are_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_):
        raise ValueError("heads do not divide")

    monkeypatch.setattr(trial, "shrink", broken)
    assert trial_model(*llama()) is None
