"""What a model knows already of its training data: that of the run that goes on, or of the folder it starts from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flame.config import JobConfig


def known_features(config: JobConfig) -> dict[str, Any]:
    """What its ``preprocessor_config.json`` says; empty for a model that is new."""
    return _first(config, "preprocessor_config.json")


def known_classes(config: JobConfig) -> list[str]:
    """The classes that its ``config.json`` names, in the order of their numbers; empty for a model that is new."""
    labels = _first(config, "config.json").get("id2label") or {}
    return [labels[number] for number in sorted(labels, key=int)]


def known_spread(config: JobConfig) -> tuple[float, float] | None:
    """Mean and deviation of the numbers that it predicts, as its ``config.json`` says; None for a model that is new."""
    values = _first(config, "config.json")
    if values.get("problem_type") != "regression" or "label_std" not in values:
        return None
    return values["label_mean"], values["label_std"]


def _first(config: JobConfig, name: str) -> dict[str, Any]:
    for folder in _folders(config):
        if (folder / name).is_file() and (folder / "preprocessor_config.json").is_file():
            return json.loads((folder / name).read_text())
    return {}


def _folders(config: JobConfig) -> Iterator[Path]:
    run, checkpoint = Path(config.job.dump_folder), config.checkpoint
    if checkpoint.enable and any((run / checkpoint.folder).glob("step-*")):
        yield run / "model"
    yield Path(config.model.config).expanduser()
    if checkpoint.initial_load_path:
        yield Path(checkpoint.initial_load_path).expanduser()
