"""Tells the classes of time series, or the numbers that go with them.

flame classify --model exp/digits_series/hf/latest builtin:sklearn-digits --split test
flame classify --model exp/ecg/hf/latest unseen.csv --json
flame classify --model exp/ecg/hf/latest --steps one_series.csv     # rows are steps, columns are channels
"""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification
from transformers.utils import logging as hf_logging

from flame.config import Source
from flame.data.series.open import open_series
from flame.data.sources.records import BadRow
from flame.errors import ConfigError, DataError
from flame.inference.engine import family_of, find_device
from flame.inference.folder import load_part, load_weights
from flame.utils.arguments import Arguments

_ROWS = 64  # series that are classified at once


def main(argv: list[str]) -> int:
    """Runs ``flame classify``."""
    options = _parser().parse_args(argv)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    plugin = family_of(options.model, options.plugin_path, options.trust_remote_code)
    if plugin.objective != "classification" and plugin.origin != "remote":
        raise ConfigError(
            f"--model '{options.model}' is of family '{plugin.model_type}', which does not classify series"
        )
    place = find_device(options.device)
    model: Any = load_weights(AutoModelForSequenceClassification, options.model, options.trust_remote_code)
    model = model.float().to(place).eval()
    features = load_part(AutoFeatureExtractor, options.model, options.trust_remote_code)
    tally = _Tally()
    for path in options.series:
        for name, values, label in _read(path, options):
            tally.show(name, _predicted(model, features, values), label, options.json)
    tally.close(options.json)
    return 0


def _parser() -> Arguments:
    parser = Arguments("flame classify", (__doc__ or "").strip())
    parser.add_argument("series", nargs="+", help="files or sources of series, as in data.sources.N.path")
    parser.add_argument("--model", required=True, help="a HuggingFace folder or hub id")
    parser.add_argument("--steps", action="store_true", help="each file is one series: numbers, a step in every row")
    for key in ("name", "format", "label_column", "series_column", "time_column"):
        parser.add_argument(f"--{key}", default="", help=f"as data.sources.N.{key}")
    parser.add_argument("--split", default="train", help="as data.sources.N.split (train)")
    parser.add_argument("--value_columns", default="", help="as data.sources.N.value_columns, separated by commas")
    parser.add_argument("--json", action="store_true", help="a JSON object for each series")
    parser.add_argument("--device", default="", help="where to run; the accelerator, if there is one")
    parser.add_argument("--plugin_path", default="", help="folder of a family outside the repository")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code in the model's folder")
    return parser


def _read(path: str, options: Any) -> Iterator[tuple[str, np.ndarray, Any]]:
    """The series of a file, each with what it is called and its label, if it has one."""
    if options.steps:
        yield path, _one_series(path), None
        return
    source = Source(
        path=path,
        value_columns=[name for name in options.value_columns.split(",") if name],
        **{
            key: getattr(options, key)
            for key in ("name", "split", "format", "label_column", "series_column", "time_column")
        },
    )
    opened = open_series(source)
    for first in range(0, len(opened), _ROWS):
        numbers = range(first, min(first + _ROWS, len(opened)))
        for number, record in zip(numbers, opened.read(numbers), strict=True):
            if isinstance(record, BadRow):
                raise DataError(f"{record}: mend it, or leave it out")
            yield opened.where(number), record["values"], record["label"]


def _one_series(path: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a file without rows
            table = np.loadtxt(path, dtype=np.float64, delimiter="," if path.endswith(".csv") else None, ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"--steps: '{path}' is no table of numbers ({error}); leave its header out") from error
    if not len(table):
        raise DataError(f"--steps: '{path}' holds no steps: give a row of numbers for each")
    if np.isinf(table).any():
        raise DataError(f"--steps: '{path}' holds infinite values: take them out, or write nan for what is missing")
    return table


@torch.no_grad()
def _predicted(model: Any, features: Any, values: np.ndarray) -> dict[str, float]:
    """Probabilities by class, the greatest first; or one number, under an empty name."""
    try:
        inputs = features([values], return_tensors="pt").to(model.device)
    except ValueError as error:
        raise DataError(str(error)) from error
    logits = model(**inputs).logits[0].float()
    if model.config.problem_type == "regression":
        return {"": logits[0].item()}
    order = logits.argsort(descending=True).tolist()
    shares = logits.softmax(-1).tolist()
    return {model.config.id2label[number]: shares[number] for number in order}


class _Tally:
    """Prints predictions, and how many were right."""

    def __init__(self) -> None:
        self.right, self.labelled, self.errors, self.are_numbers = 0, 0, 0.0, False

    def show(self, name: str, predicted: dict[str, float], label: Any, as_json: bool) -> None:
        """Prints one, and counts it."""
        best = next(iter(predicted))
        is_number = self.are_numbers = not best
        known = label is not None
        self.labelled += known
        if known and is_number:
            self.errors += abs(predicted[""] - float(label))
        elif known:
            self.right += str(label) == best
        if as_json:
            what = {"value": predicted[""]} if is_number else {"class": best, "probabilities": predicted}
            print(json.dumps({"series": name, **what, **({"label": label} if known else {})}, ensure_ascii=False))
            return
        said = f"{predicted['']:.6g}" if is_number else f"{best}  {predicted[best]:.3f}"
        print(f"{name}  {said}{f'  (label {label})' if known else ''}")

    def close(self, as_json: bool) -> None:
        """Prints the sum, if series had labels."""
        if not self.labelled or as_json:
            return
        if self.are_numbers:
            print(f"mean absolute error {self.errors / self.labelled:.4g} over {self.labelled} series")
        else:
            print(f"{self.right} of {self.labelled} right: accuracy {self.right / self.labelled:.4f}")
