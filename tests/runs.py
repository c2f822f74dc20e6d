"""Runs tiny jobs: materials to train on, a job file builder, and ways to start a job and to read what it left.

``launch`` starts a job as a user does, in processes of its own (some seconds of imports each). ``Pool`` keeps a few
ranks alive and runs many jobs in them, for tests that are about numbers and not about starting.
"""

import json
import os
import random
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ROOT / "tests" / "fixtures" / "families"
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
# Sizes that neither 2 nor 4 divides.
UNEVEN_LLAMA = {
    **LLAMA,
    "vocab_size": 321,
    "hidden_size": 66,
    "intermediate_size": 95,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}
WORDS = [
    "the",
    "a",
    "one",
    "some",
    "cat",
    "dog",
    "bird",
    "tree",
    "sees",
    "finds",
    "eats",
    "loves",
    "red",
    "old",
    "small",
    "quick",
    "house",
    "river",
    "and",
    "then",
    "again",
]


@dataclass(frozen=True)
class Materials:
    """Files that every tiny job uses."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        """A tokenizer of some 300 tokens."""
        return self.folder / "tokenizer"

    @property
    def train(self) -> Path:
        """300 short documents."""
        return self.folder / "train.jsonl"

    @property
    def held_out(self) -> Path:
        """40 other documents."""
        return self.folder / "held_out.jsonl"

    @property
    def one_document(self) -> Path:
        """The held-out text as one long document."""
        return self.folder / "one_document.txt"

    def model(self, values: Mapping[str, Any] = LLAMA) -> Path:
        """The path of a ``config.json`` with these values."""
        path = self.folder / f"model-{abs(hash(json.dumps(values, sort_keys=True)))}.json"
        path.write_text(json.dumps(values))
        return path


def sentences(count: int, seed: int) -> list[str]:
    """Documents of 5 to 60 words with some structure to learn."""
    drawn = random.Random(seed)
    texts = []
    for _ in range(count):
        length = drawn.randint(5, 60)
        start = drawn.randrange(len(WORDS))
        texts.append(
            " ".join(WORDS[(start + step * drawn.choice((1, 1, 1, 2))) % len(WORDS)] for step in range(length))
        )
    return texts


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Makes the files of ``Materials`` once."""
    made = Materials(tmp_path_factory.mktemp("materials"))
    texts, held_out = sentences(300, seed=0), sentences(40, seed=1)
    for path, documents in ((made.train, texts), (made.held_out, held_out)):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    made.one_document.write_text("\n".join(held_out) + "\n")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(made.tokenizer)
    return made


def write_job(materials: Materials, folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Writes the job file of a tiny run.

    Args:
        materials: what it trains on.
        folder: the run folder; the job file lies beside it.
        changes: dotted key -> value; None leaves a key of all tiny jobs out.
    """
    values: dict[str, Any] = {
        "job.dump_folder": str(folder),
        "model.config": str(materials.model()),
        "model.tokenizer_path": str(materials.tokenizer),
        "training.seq_len": 32,
        "training.local_batch_size": 2,
        "training.global_batch_size": 8,
        "training.steps": 5,
        "training.mixed_precision_param": "float32",
        "training.dataloader.num_workers": 0,
        "data.sources": [{"path": str(materials.train)}],
        "optimizer.lr": 1e-3,
        "lr_scheduler.warmup_steps": 0,
        "lr_scheduler.decay_ratio": 0.0,
        "metrics.log_freq": 1,
        "metrics.enable_tensorboard": False,
        "checkpoint.keep_latest_k": 0,
        "export.enable": False,
        **(changes or {}),
    }
    path = folder.with_name(folder.name + ".toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None)
    path.write_text("# A tiny job.\n" + "".join(lines))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


@dataclass(frozen=True)
class Run:
    """What a run left."""

    folder: Path
    code: int = 0
    output: str = ""
    """Standard output and error of a launched job, the error line of a job in a pool."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """All of ``metrics.jsonl``."""
        return read_records(self.folder)

    def series(self, name: str) -> list[float]:
        """One figure over the logged steps that have it."""
        return [record[name] for record in self.records if name in record]

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """The model's tensors of a checkpoint, by HuggingFace name."""
        states = load_states(self.folder / "checkpoint" / f"step-{step}")
        return {name: value for name, value in states.items() if not name.startswith(("optimizer", "dataloader"))}

    def moments(self, step: int) -> dict[str, torch.Tensor]:
        """The optimizer's tensors of a checkpoint."""
        states = load_states(self.folder / "checkpoint" / f"step-{step}")
        return {name: value for name, value in states.items() if name.startswith("optimizer")}


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The objects of a run's ``metrics.jsonl``; a last line still being written is left out."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def load_states(step: Path) -> dict[str, torch.Tensor]:
    """All tensors of a DCP step, unsharded, by key."""
    reader = FileSystemReader(step)
    entries = reader.read_metadata().state_dict_metadata
    states = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load(states, storage_reader=reader, no_dist=True)
    return states


def environment(processes: int = 1, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a job's processes: no network, one thread each."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {
        **inherited,
        "NGPU": str(processes),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        **(extra or {}),
    }


def launch(
    job: Path,
    folder: Path,
    *arguments: str,
    processes: int = 1,
    extra: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> Run:
    """Runs a job through ``python -m flame.launch``."""
    command = [sys.executable, "-m", "flame.launch", "--job.config_file", str(job), *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(processes, extra),
        timeout=timeout,
    )
    return Run(folder, done.returncode, done.stdout)


class Pool:
    """Ranks that stay alive from job to job; started when first needed, restarted after one of them hangs, and after
    some jobs: gloo leaves a polling thread per process group behind, and hundreds of them take the machine."""

    LIFETIME = 12  # jobs

    def __init__(self) -> None:
        self._jobs = 0
        self._ranks: list[subprocess.Popen[str]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="flame-pool-")
        self._log = Path(self._folder.name) / "log"
        self._log.touch()

    def run(
        self, job: Path, folder: Path, *arguments: str, world: int = 1, patch: str = "", timeout: float = 120
    ) -> Run:
        """Trains a job on the first ``world`` ranks.

        Args:
            job: the job file.
            folder: its run folder.
            arguments: further words of the command line.
            world: number of ranks.
            patch: ``module:name`` of a context manager that is open in every rank during the job.
            timeout: seconds.

        Returns:
            The run; its code is 0 or, if any rank raised, 1, and then its output is the first error.
        """
        if self._jobs >= self.LIFETIME:
            self.close()
        self._jobs += 1
        self._ensure(world)
        request = {
            "argv": ["--job.config_file", str(job), *arguments],
            "world": world,
            "port": _free_port(),
            "patch": patch,
        }
        for rank in self._ranks[:world]:
            assert rank.stdin is not None
            rank.stdin.write(json.dumps(request) + "\n")
            rank.stdin.flush()
        deadline = time.monotonic() + timeout
        errors = [error for rank in self._ranks[:world] if (error := self._answer(rank, deadline))]
        return Run(folder, 1 if errors else 0, errors[0] if errors else "")

    def _answer(self, rank: subprocess.Popen[str], deadline: float) -> str:
        assert rank.stdout is not None
        select.select([rank.stdout], [], [], max(0.0, deadline - time.monotonic()))
        # A rank that died answers with an empty line, one that hangs is not ready to be read.
        line = rank.stdout.readline() if select.select([rank.stdout], [], [], 0)[0] else ""
        if line:
            return json.loads(line)["error"]
        log = self._log.read_text()[-9000:]
        self.close()
        raise TimeoutError(f"a rank died or hung; the end of the log:\n{log}")

    def _ensure(self, world: int) -> None:
        while len(self._ranks) < world:
            command = [sys.executable, "-m", "tests.rank", str(len(self._ranks)), str(self._log)]
            self._ranks.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    # What a preflight of other code has found must not count.
                    env=environment(extra={"FLAME_CACHE": str(self._log.with_name("cache"))}),
                    cwd=ROOT,
                )
            )

    def close(self) -> None:
        """Ends the ranks."""
        for rank in self._ranks:
            rank.kill()
            rank.wait()
        self._ranks.clear()
        self._jobs = 0

    def remove_log(self) -> None:
        """Removes what the ranks wrote."""
        self._folder.cleanup()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """One pool for all tests of the session."""
    made = Pool()
    yield made
    made.close()
    made.remove_log()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
