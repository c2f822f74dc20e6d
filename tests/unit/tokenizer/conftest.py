"""Texts to learn from, and folders of tokenizers that the command line has trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flame.tokenizer.cli import main
from flame.tokenizer.corpus import corpus_files
from flame.tokenizer.evaluation.samples import SAMPLES


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some 300 KB of code, and texts in several languages."""
    code = [path.read_text(encoding="utf-8") for path in corpus_files("python-stdlib", "validation")]
    return [*code, *SAMPLES.values()] * 2


@pytest.fixture(scope="session")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts as a jsonl file."""
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains with the given options, once for each."""
    known: dict[tuple[str, ...], Path] = {}

    def train(*options: str) -> Path:
        if options not in known:
            folder = tmp_path_factory.mktemp("trained") / "tokenizer"
            assert main(["train", str(folder), "--data", str(corpus), "--vocab_size", "1024", *options]) == 0
            known[options] = folder
        return known[options]

    return train
