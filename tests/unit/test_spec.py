"""What a run folder says of its model."""

import logging

import pytest
from transformers import LlamaConfig

from flame.spec import _warn_of_changes


def test_a_run_that_goes_on_as_another_model_says_so(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = tmp_path / "config.json"
    with caplog.at_level(logging.WARNING):
        _warn_of_changes(earlier, LlamaConfig())
        LlamaConfig(rms_norm_eps=1e-6).save_pretrained(tmp_path)
        _warn_of_changes(earlier, LlamaConfig(rms_norm_eps=1e-6))
        assert not caplog.records
        _warn_of_changes(earlier, LlamaConfig(rms_norm_eps=1e-5))
    assert "rms_norm_eps was 1e-06 and is 1e-05" in caplog.text
