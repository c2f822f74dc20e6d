"""Trains a tiny model of every family under every parallelism and compares with one process.

python -m tests.parallel.matrix [--origin fla] [--families a,b] [--layouts fsdp,tp] [--again] [--output FILE] [--jobs N]

Each cell of the table trains three optimizer steps of eight rows on two gloo processes. It is equal to one process, or
it is refused before the first step; a third thing is a fault of flame, is shouted about, and makes the exit status 1.
Cells go to a log beside the table as they finish, and a sweep that was interrupted goes on from it.
"""

import argparse
import inspect
import json
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from torch.distributed.tensor import DTensor
from transformers import AutoConfig

import flame
import flame.compat
import flame.trainer
import tests.runs
from flame.errors import ConfigError
from flame.families import families
from flame.models.config import shrink
from flame.plugin import load_plugin
from tests.examples import recordings, series
from tests.parallel.decoding import decoding_error
from tests.runs import Materials, Pool, Run, write_job

STEPS = 3
TOLERANCE = 1e-4
LARGEST_TOLERANCE = 1e-3
"""For families that differ from themselves by more than ``TOLERANCE`` where the same sum is taken in another order."""
LEARNING_RATE = 1e-3
LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp": {"parallelism.data_parallel_shard_degree": 2},
    "tp": {"parallelism.tensor_parallel_degree": 2},
    "pp": {"parallelism.pipeline_parallel_degree": 2, "parallelism.pipeline_parallel_microbatch_size": 2},
    "cp": {"parallelism.context_parallel_degree": 2},
    "cp_alltoall": {
        "parallelism.context_parallel_degree": 2,
        "parallelism.context_parallel_rotate_method": "alltoall",
    },
    "ep": {"parallelism.data_parallel_shard_degree": 2, "parallelism.expert_parallel_degree": 2},
}
TITLES = {
    "fsdp": "FSDP 2",
    "tp": "TP 2",
    "pp": "PP 2",
    "cp": "CP 2",
    "cp_alltoall": "CP 2 all-to-all",
    "ep": "EP 2",
    "resume": "resumes",
    "generate": "generates",
    "varlen": "packs",
}
LIFE = ["resume", "generate", "varlen"]
COLUMNS = {
    "transformers": list(LAYOUTS),
    "fla": ["fsdp", "tp", "pp", "cp", *LIFE],
    "custom_models": ["fsdp", "tp", "pp", "cp", "cp_alltoall", *LIFE],
}
PAGES = {
    "transformers": Path("docs/parallelism_matrix.md"),
    "fla": Path("docs/fla_families.md"),
    "custom_models": Path("docs/custom_families.md"),
}
# What a job says besides, by the objective of its family.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "autoregressive": {},
    "recurrent_depth": {"task.name": "recurrent_depth"},
    "masked_diffusion": {"task.name": "masked_diffusion", "task.random_length_share": 0.0},
}
# Of families that do not read text: the task, and what it trains on.
EXAMPLES: dict[str, dict[str, Any]] = {
    "ctc": {
        "task.name": "ctc",
        "model.tokenizer_path": "builtin:characters-en",
        "training.seq_len": 100,
        "data.sources": [{"path": "recordings"}],
    },
    "classification": {
        "task.name": "classification",
        "model.tokenizer_path": "",
        "data.sources": [{"path": "series.npz"}],
    },
}
OF_TEXT = ("generate", "varlen")
"""What has no meaning where there is no text."""
FAILURES = ("differs", "crash", "hang")
# Families that look both ways unless they are told not to.
_ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
)
# Values without which the defaults of a config class make no model, or none that looks only backwards.
COMPLETED: dict[str, dict[str, Any]] = {
    **{name: {"is_decoder": True} for name in _ENCODERS.split()},
    **{name: {"head_dim": 128} for name in ("hunyuan_v1_dense", "ministral")},
    "dbrx": {"attn_config": {"rope_theta": 5e5, "clip_qkv": 8, "kv_n_heads": 8}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 16, "moe_topk": 2},
    "lfm2_moe": {"layer_types": (["conv", "conv", "full_attention"] * 11)[:32]},
    "rodimus": {
        "ska_attn": {"num_heads": 16, "qkv_bias": False, "qk_norm": False, "window_size": 64, "rope_theta": 1e4},
        "residual_in_fp32": False,
    },
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "cohere_compass_text": {
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 10,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")
        },
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 4,
    },
}
_VOCABULARY, _MEMORY, _TIMEOUT = 320, 6 << 30, 60
_EXPERTS = re.compile(r"(num_|n_|moe_num_)?(local_|routed_|moe_)?(experts|expert_num)")


@dataclass(frozen=True)
class Cell:
    """What became of one family in one layout."""

    family: str
    layout: str
    """A key of ``LAYOUTS``, or ``one`` for the reason why one process does not train the family."""
    outcome: str
    """``equal``, ``refused``, ``untrained``, ``none`` (no experts to spread) or one of ``FAILURES``."""
    reason: str = ""
    seconds: float = 0.0
    detail: str = ""
    """The end of the ranks' log where something failed."""


@contextmanager
def limits() -> Iterator[None]:
    """What the ranks patch: a bound on their memory, and an error of its own for what a step refuses.

    A refusal counts only before the first step.
    """
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY, resource.RLIM_INFINITY))
    step = flame.trainer.Trainer.train_step

    def guarded(trainer: flame.trainer.Trainer, batches: Any) -> None:
        try:
            step(trainer, batches)
        except ConfigError as error:
            raise RuntimeError(f"refused in a step, not before it: {error}") from error

    with mock.patch.object(flame.trainer.Trainer, "train_step", guarded):
        yield


@contextmanager
def shaken() -> Iterator[None]:
    """``limits``, and initial weights that are off by some rounding errors."""
    start = flame.trainer.Trainer.train

    def train(trainer: flame.trainer.Trainer) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for part in trainer.model_parts:
                for parameter in part.parameters():
                    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
                    local *= 1 + 5e-7 * torch.randn(local.shape, generator=generator)
        start(trainer)

    with limits(), mock.patch.object(flame.trainer.Trainer, "train", train):
        yield


def small_family(model_type: str) -> dict[str, Any]:
    """The values of a tiny config of a family, of at least four layers and even sizes, without any randomness.

    Dropout and noise draw from generators that no two layouts advance alike.
    """
    plugin = load_plugin(model_type)
    if plugin.tiny is not None:
        config = plugin.tiny()
    else:
        config = shrink(AutoConfig.for_model(model_type, **COMPLETED.get(model_type, {})), layers=4, divisor=2)
    text = config.get_text_config()
    if plugin.features is None or hasattr(text, "vocab_size"):
        text.vocab_size = max(getattr(text, "vocab_size", 0), _VOCABULARY)
    values = {**config.to_dict(), "model_type": model_type}
    for name in ("transformers_version", "dtype", "auto_map", "architectures"):
        values.pop(name, None)
    _adapt(values)
    return values


def _adapt(values: dict[str, Any]) -> None:
    """Switches dropout and noise off, and makes other vocabularies (a decoder's, per-layer ones) large enough."""
    for name, value in values.items():
        if isinstance(value, dict):
            _adapt(value)
        elif type(value) in (bool, int, float) and re.search("drop|noise|jitter", str(name)):
            values[name] = type(value)(0)
        elif type(value) is int and value > 1 and "vocab_size" in str(name):
            values[name] = max(value, _VOCABULARY)


def has_experts(values: dict[str, Any]) -> bool:
    """Whether a config, or one within it, counts experts."""
    return any(
        has_experts(value)
        if isinstance(value, dict)
        else bool(_EXPERTS.fullmatch(str(name))) and isinstance(value, int) and value > 1
        for name, value in values.items()
    )


class Bench:
    """Trains cells in ranks that it keeps alive.

    Args:
        materials: what to train on.
        pool: the ranks.
        folder: where the runs of a family lie until the next one.
    """

    _making = threading.Lock()

    def __init__(self, materials: Materials, pool: Pool, folder: Path) -> None:
        self.materials, self.pool, self.folder = materials, pool, folder
        self._started: dict[str, tuple[dict[str, Any], Run] | Cell] = {}

    def family(self, model_type: str, layouts: Iterable[str]) -> Iterator[Cell]:
        """Trains a family in one process and then in every layout, which gives a cell each."""
        started = self.start(model_type)
        if isinstance(started, Cell):
            yield started
            return
        for layout in layouts:
            without = layout == "ep" and not has_experts(started[0])
            without |= layout in OF_TEXT and load_plugin(model_type).objective in EXAMPLES
            yield Cell(model_type, layout, "none") if without else self.cell(model_type, layout)

    def cell(self, model_type: str, layout: str) -> Cell:
        """Trains a family in one layout, and in one process if the family before was another."""
        started = self.start(model_type)
        if isinstance(started, Cell):
            return started
        values, reference = started
        start = time.monotonic()
        if layout == "generate":
            return replace(self._generate(model_type, values), seconds=time.monotonic() - start)
        if layout == "resume":
            run, cell = self._resume(model_type, values)
        elif layout == "varlen":
            run, cell = self.train(model_type, values, layout, {"training.varlen": True}, world=1)
            return replace(cell, seconds=time.monotonic() - start)
        else:
            run, cell = self.train(model_type, values, layout, LAYOUTS[layout])
        if run is not None and (what := difference(run, reference, TOLERANCE)):
            sensitive = not difference(run, reference, LARGEST_TOLERANCE) and self._is_sensitive(values, reference)
            cell = replace(cell, reason=what, outcome="equal" if sensitive else "differs")
        if run is not None:
            shutil.rmtree(run.folder.parent)
        return replace(cell, seconds=time.monotonic() - start)

    def _asked(self, objective: str) -> dict[str, Any]:
        """What a job says besides; what it trains on is made when first needed."""
        if objective not in EXAMPLES:
            return OBJECTIVES[objective]
        folder = self.folder / "examples"
        with self._making:
            if not folder.is_dir():
                folder.mkdir()
                recordings(folder / "recordings", 24, shortest=0.5, step=0.02)
                series(folder / "series.npz", ["cat", "dog", "cow"] * 8)
        asked = EXAMPLES[objective]
        sources = [{**source, "path": str(folder / source["path"])} for source in asked["data.sources"]]
        return {**asked, "data.sources": sources}

    def _resume(self, model_type: str, values: dict[str, Any]) -> tuple[Run | None, Cell]:
        """A run that ended one step early and was started again for the last one."""
        run, cell = self.train(model_type, values, "resume", {"training.steps": STEPS - 1}, world=1)
        if run is None:
            return None, cell
        return self.train(model_type, values, "resume", {}, world=1, folder=run.folder)

    def _generate(self, model_type: str, values: dict[str, Any]) -> Cell:
        """Whether the exported folder decodes token by token what it computes on whole sequences."""
        run, cell = self.train(model_type, values, "generate", {"export.enable": True}, world=1)
        if run is None:
            return cell
        try:
            what = decoding_error(str(run.folder / "hf" / "latest"))
        except Exception as error:  # whatever a family's own cache raises
            return replace(cell, outcome="crash", reason=_brief(f"{type(error).__name__}: {error}"))
        return replace(cell, reason=what, outcome="differs" if what else "equal")

    def _is_sensitive(self, values: dict[str, Any], reference: Run) -> bool:
        """Whether one process that takes the same batches in two halves, or starts with weights that are rounded
        otherwise, differs from itself as well."""
        name = reference.folder.parent.name
        halves, _ = self.train(name, values, "halves", {"training.local_batch_size": 4}, world=1)
        if halves is None or difference(halves, reference, TOLERANCE):
            return halves is not None
        other, _ = self.train(name, values, "shaken", {}, world=1, patch="tests.parallel.matrix:shaken")
        return other is not None and bool(difference(other, reference, TOLERANCE))

    def start(self, model_type: str) -> tuple[dict[str, Any], Run] | Cell:
        """A family's values and its run in one process, or why there is none."""
        if model_type not in self._started:
            self._started = {model_type: self._started_now(model_type)}
        return self._started[model_type]

    def _started_now(self, model_type: str) -> tuple[dict[str, Any], Run] | Cell:
        try:
            values = small_family(model_type)
        except Exception as error:  # whatever a config class raises for its own defaults
            return Cell(model_type, "one", "untrained", _brief(f"{type(error).__name__}: {error}"))
        run, cell = self.train(model_type, values, "one", {}, world=1)
        if run is None:
            return replace(cell, outcome="untrained")
        if not all(loss < float("inf") for loss in run.series("loss")):
            return Cell(model_type, "one", "untrained", f"the loss is {run.series('loss')}")
        return values, run

    def train(
        self,
        model_type: str,
        values: dict[str, Any],
        layout: str,
        changes: dict[str, Any],
        world: int = 2,
        folder: Path | None = None,
        patch: str = "tests.parallel.matrix:limits",
    ) -> tuple[Run | None, Cell]:
        """The run, or why there is none."""
        folder = folder or Path(tempfile.mkdtemp(prefix=f"{model_type}-{layout}-", dir=self.folder)) / "run"
        job = {
            "model.config": str(self.materials.model(values)),
            "training.local_batch_size": 0,
            "training.steps": STEPS,
            "training.max_norm": 0.5,
            "optimizer.lr": LEARNING_RATE,
            # Adam makes full steps of gradients that are nothing but rounding; this keeps them small.
            "optimizer.eps": 1e-5,
            "parallelism.preflight": "always",
            **self._asked(load_plugin(model_type).objective),
            **changes,
        }
        file = write_job(self.materials, folder, job)
        start = time.monotonic()
        try:
            run = self.pool.run(file, folder, world=world, patch=patch, timeout=_TIMEOUT)
        except TimeoutError as error:
            outcome = "hang" if time.monotonic() - start > _TIMEOUT - 1 else "crash"
            reason = f"no answer within {_TIMEOUT} s" if outcome == "hang" else "a rank died"
            return None, Cell(model_type, layout, outcome, reason, detail=str(error)[-4000:])
        if not run.code:
            return run, Cell(model_type, layout, "equal")
        reason, refused = _brief(run.output), run.output.startswith("ConfigError: ")
        detail = self.pool._log.read_text()[-4000:]
        return None, Cell(model_type, layout, "refused" if refused else "crash", reason, detail=detail)


def difference(run: Run, reference: Run, tolerance: float) -> str:
    """What of a run is not equal to the reference's; empty if nothing."""
    for name in ("loss", "grad_norm"):
        got, expected = run.series(name), reference.series(name)
        errors = [abs(one - other) / abs(other) for one, other in zip(got, expected, strict=False)]
        if len(got) != STEPS or not all(error <= tolerance for error in errors):
            return f"{name} off by {', '.join(f'{error:.0e}' for error in errors)} in {len(got)} of {STEPS} steps"
    weights, expected_weights = run.weights(STEPS), reference.weights(STEPS)
    if weights.keys() != expected_weights.keys():
        return f"other weights: {sorted(weights.keys() ^ expected_weights.keys())[:4]}"
    for name, weight in expected_weights.items():
        error = (weights[name] - weight).double().norm()
        # A gradient that is zero but for rounding (a key's bias) moves a weight by a small part of a full step.
        rounding = 1e-3 * STEPS * LEARNING_RATE * weight.numel() ** 0.5
        if not error <= tolerance * weight.double().norm() + rounding:
            return f"weight {name} off by {error / weight.double().norm():.0e}"
    return ""


def _brief(error: str) -> str:
    """An error without what is particular to one family, so that equal reasons are equal."""
    text = " ".join(error.split()).removeprefix("ConfigError: ")
    text = re.sub(r"family '[^']+'", "the family", text)
    text = re.sub(r"parallelism\.\w+( = \d+)?: |model\.config '/[^']+' is refused by the family: ", "", text)
    text = re.sub(r"'/[^']+'", "'...'", text)
    text = re.split(r"; the likely cause|; set |; use |; choose |\. Use another layout|, or parallelism\.", text)[0]
    text = re.sub(r"differs from one device: the .*", "differs from one device", text)
    text = re.sub(r"the loss is \S+ instead of [^;]+|the gradient of \S+ is \S+ off", "figures differ", text)
    text = re.sub(r"\b[A-Z]\w+(ForCausalLM|LMHeadModel|LMHead|Model|Config|Decoder\w*)\b", "the model", text)
    text = re.sub(r"\b\w+(\.\w+){2,}", "...", text)
    text = re.sub(r"[-\d][\d.e+-]{2,}", "N", text)
    return text.strip()[:220]


class Log:
    """Finished cells, one JSON line each; failures and those of other versions are tried again.

    Args:
        path: the file; need not exist.
        again: whether refused cells are tried again too.
    """

    def __init__(self, path: Path, again: bool = False) -> None:
        self.path, self._lock = path, threading.Lock()
        self.cells: dict[tuple[str, str], Cell] = {}
        lines = path.read_text().splitlines() if path.is_file() else []
        for entry in map(json.loads, lines):
            cell = Cell(**{name: value for name, value in entry.items() if name != "versions"})
            kept = {"equal", "none"} if again else {"equal", "none", "refused", "untrained"}
            for old in (cell.layout, "one"):  # what could not be trained once may be by now
                self.cells.pop((cell.family, old), None)
            if entry["versions"] == versions() and cell.outcome in kept:
                self.cells[cell.family, cell.layout] = cell

    def add(self, cell: Cell) -> None:
        """Notes and prints a cell."""
        with self._lock:
            self.cells[cell.family, cell.layout] = cell
            with self.path.open("a") as file:
                file.write(json.dumps({**asdict(cell), "versions": versions()}) + "\n")
            failed = cell.outcome in FAILURES
            print(
                f"{'FAILED ' * failed}{cell.family:<26}{cell.layout:<12}{cell.outcome:<10}{cell.seconds:5.1f} s  "
                f"{cell.reason}{cell.detail * failed}",
                flush=True,
            )

    def left(self, model_type: str, layouts: Iterable[str]) -> list[str]:
        """The layouts that have no cell yet."""
        if (model_type, "one") in self.cells:
            return []
        return [layout for layout in layouts if (model_type, layout) not in self.cells]


def versions() -> dict[str, str]:
    """What the outcomes depend on."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "flame": flame.__version__}


def table(cells: dict[tuple[str, str], Cell], names: list[str], layouts: list[str], origin: str) -> str:
    """The page: versions, counts, one row per family, reasons below.

    Args:
        cells: by family and layout.
        names: the families, sorted.
        layouts: the columns.
        origin: where the families come from, a key of ``PAGES``.
    """
    notes: dict[str, int] = {}
    rows = [f"| family | {' | '.join(TITLES[layout] for layout in layouts)} |", "|---" * (len(layouts) + 1) + "|"]
    rows += [_row(name, cells, layouts, notes) for name in names]
    found = [cell for cell in cells.values() if cell.family in names]
    counts = ["| | equal | refused |", "|---|---|---|"]
    for layout in layouts:
        outcomes = [cell.outcome for cell in found if cell.layout == layout]
        failed = f", **{sum(outcome in FAILURES for outcome in outcomes)} FAILED**"
        failed = failed if any(outcome in FAILURES for outcome in outcomes) else ""
        counts.append(f"| {TITLES[layout]} | {outcomes.count('equal')} | {outcomes.count('refused')}{failed} |")
    untrained = sum(cell.outcome == "untrained" for cell in found)
    text = [
        "# Families and parallelisms",
        "",
        f"Written by `python -m tests.parallel.matrix{f' --origin {origin}' if origin != 'transformers' else ''}` with "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + ".",
        "",
        f"A tiny model of each family, of at least {'two' if origin == 'custom_models' else 'four'} layers and without "
        f"dropout, trained {STEPS} optimizer steps of "
        "eight rows in float32 on two gloo processes.",
        "",
        "- `=`: loss and gradient norm of every step, and all weights after the last, are those of one process, to "
        f"{TOLERANCE:g} relative; weights whose gradient is nothing but rounding, to 0.1 % of what the optimizer can "
        "move them.",
        f"- `≈`: to {LARGEST_TOLERANCE:g} only, because the family is so sensitive to rounding that one process which "
        "takes the batch in two halves is off as well.",
        "- `–`: refused before the first step, for the reason of that number below.",
        *(["- empty: the family has no experts."] if origin == "transformers" else _LIFE_COLUMNS),
        *(["- empty: the family reads no text."] if origin == "custom_models" else []),
        "",
        *counts,
        "",
        f"{untrained} of {len(names)} families do not train in one process on a CPU either.",
        "",
        *rows,
        "",
        "Reasons:",
        "",
        *(f"{number}. {reason}" for reason, number in notes.items()),
    ]
    return "\n".join(text) + "\n"


_LIFE_COLUMNS = [
    "- Options are those of a family's default config; `tests/parallel/test_units.py` tries some others.",
    "- resumes: a run that stopped one step early and went on equals one that did not.",
    "- generates: from the exported folder, tokens one by one have the logits of the whole sequence, and `generate` "
    "writes what these say; [without a cache](fla.md#decoding) where fla's is none or not exact.",
    "- packs: `training.varlen` trains, after the check that packed documents do not see each other.",
]


def _row(name: str, cells: dict[tuple[str, str], Cell], layouts: list[str], notes: dict[str, int]) -> str:
    if (one := cells.get((name, "one"))) is not None:
        return f"| {name} | does not train here: {one.reason.replace('|', '/')} |" + " |" * (len(layouts) - 1)
    shown = []
    for layout in layouts:
        cell = cells.get((name, layout))
        if cell is None or cell.outcome == "none":
            shown.append("")
        elif cell.outcome == "equal":
            shown.append("≈" if cell.reason else "=")
        elif cell.outcome == "refused":
            shown.append(f"– {notes.setdefault(cell.reason, len(notes) + 1)}")
        else:
            shown.append(f"**{cell.outcome}** {notes.setdefault(cell.reason, len(notes) + 1)}")
    return f"| {name} | {' | '.join(shown)} |"


class _Folders:
    """What the fixture ``materials`` asks of pytest."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def mktemp(self, name: str) -> Path:
        (self.root / name).mkdir()
        return self.root / name


def sweep(names: list[str], layouts: list[str], log: Log, jobs: int) -> None:
    """Trains every cell that the log lacks, ``jobs`` families at a time, each in ranks of its own."""
    threads, pools = threading.local(), []
    with tempfile.TemporaryDirectory(prefix="flame-matrix-") as folder:
        materials: Materials = inspect.unwrap(tests.runs.materials)(_Folders(Path(folder)))  # type: ignore[arg-type]

        def work(name: str) -> None:
            if not hasattr(threads, "bench"):
                pools.append(Pool())
                threads.bench = Bench(materials, pools[-1], Path(folder))
            for cell in threads.bench.family(name, log.left(name, layouts)):
                log.add(cell)

        try:
            with ThreadPoolExecutor(jobs) as workers:
                list(workers.map(work, [name for name in names if log.left(name, layouts)]))
        finally:
            for pool in pools:
                pool.close()
                pool.remove_log()


def main(argv: list[str]) -> int:
    """Runs the sweep and writes the table; 1 if any cell is neither equal nor refused."""
    parser = argparse.ArgumentParser("tests.parallel.matrix", description=__doc__)
    parser.add_argument("--families", default="", help="names with commas; all that train on a CPU if left out")
    parser.add_argument("--origin", choices=PAGES, default="transformers", help="the package of the families")
    parser.add_argument("--layouts", default="", help="columns with commas; all if left out")
    parser.add_argument("--output", type=Path, help="the page; that of the origin if left out")
    parser.add_argument("--again", action="store_true", help="try what the log says is refused once more")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time; each takes two processes")
    options = parser.parse_args(argv)
    names = sorted(family.model_type for family in families() if family.trains_here and family.origin == options.origin)
    names = sorted(options.families.split(",")) if options.families else names
    layouts = [name for name in COLUMNS[options.origin] if not options.layouts or name in options.layouts.split(",")]
    options.output = options.output or PAGES[options.origin]
    log = Log(options.output.with_suffix(".jsonl"), options.again)
    sweep(names, layouts, log, options.jobs)
    options.output.write_text(table(log.cells, names, layouts, options.origin))
    cells = [cell for cell in log.cells.values() if cell.family in names and cell.layout in (*layouts, "one")]
    failed = [cell for cell in cells if cell.outcome in FAILURES]
    for cell in failed:
        print(f"FAILED {cell.family} {cell.layout}: {cell.outcome}, {cell.reason}")
    print(f"{len(cells)} cells, {len(failed)} failed; {options.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
