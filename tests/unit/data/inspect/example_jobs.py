"""Jobs on recordings and series."""

import json
from pathlib import Path
from typing import Any

from tests.examples import RATE
from tests.runs import Materials, write_job

ASR = {
    "model_type": "hgrn_asr",
    "sampling_rate": RATE,
    "num_mel_bins": 16,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "subsampling": 2,
    "vocab_size": 32,
}
SERIES = {"model_type": "hgrn_timeseries", "num_channels": 2, "hidden_size": 32, "num_hidden_layers": 1}


def ctc_job(materials: Materials, folder: Path, source: Path, changes: dict[str, Any] | None = None) -> Path:
    """A job on recordings."""
    return _job(
        materials,
        folder,
        ASR,
        source,
        {"model.tokenizer_path": "builtin:characters-en", "task.name": "ctc", **(changes or {})},
    )


def series_job(materials: Materials, folder: Path, source: Path, changes: dict[str, Any] | None = None) -> Path:
    """A job on series."""
    return _job(
        materials,
        folder,
        SERIES,
        source,
        {"model.tokenizer_path": "", "task.name": "classification", **(changes or {})},
    )


def _job(materials: Materials, folder: Path, model: dict[str, Any], source: Path, changes: dict[str, Any]) -> Path:
    config = folder.with_name("model.json")
    config.write_text(json.dumps(model))
    values = {
        "model.config": str(config),
        "training.seq_len": 400,
        "training.local_batch_size": 0,
        "data.sources": [{"path": str(source)}],
        **changes,
    }
    return write_job(materials, folder, values)
