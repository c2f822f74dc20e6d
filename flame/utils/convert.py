"""``flame convert``: a run's checkpoint to a HuggingFace folder, or a HuggingFace folder to a checkpoint.

    flame convert to-hf --path exp/quickstart                          # latest good step -> exp/quickstart/hf/step-N
    flame convert to-dcp --model path/to/folder --checkpoint exp/run/checkpoint/step-0

``python -m flame.utils.convert_dcp_to_hf`` and ``convert_hf_to_dcp`` are the same two.
"""

import argparse
import logging
import shutil
import tempfile
from pathlib import Path

from flame.checkpoint.hf_export import export_hf
from flame.checkpoint.hf_import import import_hf, local_folder
from flame.checkpoint.layout import (
    MANIFEST,
    DamagedStepError,
    RunFolder,
    check_step,
    find_steps,
    step_folder,
    step_of,
)
from flame.errors import CheckpointError, ConfigError, closest
from flame.utils.arguments import Arguments

logger = logging.getLogger(__name__)

TO_HF = "Turn a checkpoint of a run into a HuggingFace folder."
TO_DCP = "Turn the weights of a HuggingFace folder into a checkpoint that a run can start from."
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")


def main(argv: list[str]) -> int | None:
    """Runs ``flame convert``.

    Args:
        argv: ``to-hf`` or ``to-dcp``, then their options.

    Raises:
        FlameError: Something named on the command line cannot be used.
    """
    verbs = {"to-hf": to_hf, "to-dcp": to_dcp}
    verb, options = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in verbs:
        return verbs[verb](options)
    if verb not in ("-h", "--help"):
        raise ConfigError(f"flame convert has no verb '{verb}': use to-hf or to-dcp.{closest(verb, verbs)}")
    print(f"flame convert to-hf   {TO_HF}\nflame convert to-dcp  {TO_DCP}\n\nAdd --help to either to see its options.")


def to_hf(argv: list[str]) -> None:
    """Converts DCP -> HuggingFace.

    Args:
        argv: ``--path RUN [--step N] [--config C] [--tokenizer T] [--dtype D] [--output O]``.

    Raises:
        FlameError: Something named there cannot be used.
    """
    parser = Arguments("flame convert to-hf", TO_HF)
    parser.add_argument("--path", required=True, type=Path, help="folder of the run, or one of its step folders")
    parser.add_argument("--step", type=int, help="step to convert; default: the latest good one")
    parser.add_argument("--config", help="config.json, a folder that holds one, or hub id; default: the run's own")
    parser.add_argument("--tokenizer", help="folder or hub id of a tokenizer; default: the run's own")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: as stored")
    parser.add_argument("--output", type=Path, help="folder to make; default: RUN/hf/step-N")
    parser.add_argument("--max_shard_size", default="5GB", help="largest size of one file; default: 5GB")
    options = parser.parse_args(argv)
    run, steps = _steps(options.path, options.step)
    with tempfile.TemporaryDirectory() as scratch:
        assets = _assets(run, options, Path(scratch))
        for step in steps:
            output = options.output or step_folder(run.hf, step_of(step))
            try:
                export_hf(step, assets, output, options.dtype, options.max_shard_size)
            except DamagedStepError as error:
                if step == steps[-1]:
                    raise
                logger.warning("Skipping %s: %s.", step.name, error)
            else:
                print(f"{step} -> {output}")
                return


def to_dcp(argv: list[str]) -> None:
    """Converts HuggingFace -> DCP.

    Args:
        argv: ``--model HF --checkpoint DIR``.

    Raises:
        FlameError: Something named there cannot be used.
    """
    parser = Arguments("flame convert to-dcp", TO_DCP)
    parser.add_argument("--model", required=True, help="HuggingFace folder or hub id")
    parser.add_argument(
        "--checkpoint", required=True, type=Path, help="step folder to make (.../step-N); else step-0 is made inside it"
    )
    options = parser.parse_args(argv)
    print(f"{options.model} -> {import_hf(options.model, options.checkpoint)}")


def _steps(path: Path, step: int | None) -> tuple[RunFolder, list[Path]]:
    """Returns the run and the steps to try, the best first."""
    if step_of(path) >= 0 and step is None:
        return RunFolder(path.parent.parent, path.parent.name), [path]
    run = RunFolder(path)
    steps = find_steps(run.checkpoint)
    if not steps:
        raise CheckpointError(f"{run.checkpoint} holds no step: name the folder of a run with --path")
    if step is not None and step not in steps:
        raise CheckpointError(f"--step {step} is not in {run.checkpoint}; available steps: {steps}")
    folders = [step_folder(run.checkpoint, number) for number in (reversed(steps) if step is None else [step])]
    return run, folders if len(folders) == 1 else _good(folders)


def _good(folders: list[Path]) -> list[Path]:
    good = []
    for folder in folders:
        try:
            # Steps of other writers have no manifest; they show their damage when they are read.
            if (folder / MANIFEST).is_file():
                check_step(folder)
            good.append(folder)
        except DamagedStepError as error:
            logger.warning("Skipping %s: %s.", folder.name, error)
    if not good:
        raise CheckpointError(f"None of the steps {[folder.name for folder in folders]} is good: restore one")
    return good


def _assets(run: RunFolder, options: argparse.Namespace, scratch: Path) -> Path:
    """Returns a folder with everything but the weights: the run's own, overlaid with what the options name."""
    if options.config is None and options.tokenizer is None:
        return run.model_assets
    assets = scratch / "assets"
    if run.model_assets.is_dir():
        shutil.copytree(run.model_assets, assets)
    else:
        assets.mkdir()
    if options.tokenizer is not None:
        _overlay(
            local_folder(options.tokenizer, ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]), assets, "config.json"
        )
    if options.config is not None:
        config = Path(options.config)
        if config.is_file():
            shutil.copyfile(config, assets / "config.json")
        else:
            _overlay(local_folder(options.config, SMALL_FILES), assets, "tokenizer*.json")
    return assets


def _overlay(source: Path, assets: Path, except_for: str) -> None:
    """Copies small files: neither weights nor what the other option decides."""
    for path in source.iterdir():
        small = any(path.match(pattern) for pattern in SMALL_FILES)
        if path.is_file() and small and not path.match(except_for) and not path.name.endswith(".index.json"):
            shutil.copyfile(path, assets / path.name)
