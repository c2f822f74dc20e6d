"""``flame doctor``: what is installed, what this machine can do, and how to mend what is missing.

flame doctor          one line per finding
flame doctor --json   the same as a list of objects
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flame import __version__
from flame.errors import ConfigError
from flame.hardware import cpu_bfloat16

_PACKAGES = (
    "torch",
    "torchtitan",
    "transformers",
    "flash-linear-attention",
    "triton",
    "datasets",
    "tokenizers",
    "numpy",
    "pydantic",
    "safetensors",
)
_OPTIONAL = {
    "flash-attn": "faster varlen attention on NVIDIA GPUs",
    "torchao": "float8 training",
    "wandb": "metrics.enable_wandb",
    "tensorboard": "metrics.enable_tensorboard",
}
_COMPILERS = ("g++", "clang++", "c++")
_LOW_DISK = 10 * 2**30  # bytes: a few checkpoints of a small model


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    status: Literal["ok", "note", "error"]
    """``note``: flame works without it; ``error``: it does not."""
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.status:<5}  {self.name:<24}{self.detail}" + (f"  -> {self.remedy}" if self.remedy else "")


def main(argv: list[str]) -> int:
    """Runs ``flame doctor``.

    Args:
        argv: ``[]`` or ``["--json"]``.

    Returns:
        0, or 1 if a required package is missing or of the wrong version.

    Raises:
        ConfigError: Another argument is given.
    """
    if argv and argv[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if argv not in ([], ["--json"]):
        raise ConfigError(f"flame doctor takes only --json, but got '{' '.join(argv)}'.")
    findings = list(examine())
    print(json.dumps([asdict(finding) for finding in findings], indent=2) if argv else "\n".join(map(str, findings)))
    return int(any(finding.status == "error" for finding in findings))


def examine() -> Iterator[Finding]:
    """Yields the findings: Python and flame, packages, devices, compiler, disk."""
    pins = _pins()
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Finding("flame", "ok", __version__)
    for package in _PACKAGES:
        yield _required(package, pins.get(package))
    yield from _devices()
    yield _cpu()
    yield _compiler()
    for package, purpose in _OPTIONAL.items():
        version = _version(package)
        missing = f"only for {purpose}: pip install {package}"
        yield Finding(package, "ok", version) if version else Finding(package, "note", "not installed", missing)
    yield _disk()


def _pins() -> dict[str, Requirement]:
    """Returns what flame's own metadata requires on this machine, extras left out."""
    try:
        lines = importlib.metadata.requires("flame") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder that is not installed
        return {}
    requirements = map(Requirement, lines)
    return {pin.name: pin for pin in requirements if pin.marker is None or pin.marker.evaluate({"extra": ""})}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required(package: str, pin: Requirement | None) -> Finding:
    version, specifier = _version(package), pin.specifier if pin else SpecifierSet()
    remedy = f"pip install '{package}{specifier}'"
    if version is None:
        # A package without a pin on this platform, such as triton outside Linux, is not required here.
        return Finding(package, "error" if pin else "note", "not installed", remedy if pin else "")
    if not specifier.contains(version, prereleases=True):
        return Finding(package, "error", f"{version}, but flame needs {specifier}", remedy)
    return Finding(package, "ok", f"{version}{_build(package)}")


def _build(package: str) -> str:
    """Says what a package was built for, or can do here, where that differs between machines."""
    if package == "torch":
        import torch

        return f" ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU build'})"
    if package == "triton":
        return "" if _gpu_count() else " (no GPU: families of fla cannot be trained here)"
    return ""


def _gpu_count() -> int:
    if importlib.util.find_spec("torch") is None:
        return 0
    import torch

    return torch.cuda.device_count()


def _devices() -> Iterator[Finding]:
    count = _gpu_count()
    if not count:
        yield Finding("accelerator", "note", "none: training runs on the CPU")
        return
    import torch

    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def _cpu() -> Finding:
    """Says whether bfloat16 is fast here; other processors than Linux lists have no flags to go by."""
    fast = cpu_bfloat16()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{os.cpu_count()} {platform.machine()} cores, {memory:.0f} GiB"
    if fast:
        return Finding("cpu", "ok", f"{cores}, fast bfloat16 by {' and '.join(fast)}")
    return Finding("cpu", "note", f"{cores}, no fast bfloat16: training on it computes in float32")


def _compiler() -> Finding:
    names = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found:
        return Finding("C++ compiler", "ok", found)
    return Finding("C++ compiler", "note", "none", "torch.compile on the CPU needs one: install g++ or set CXX")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    detail = f"{free / 2**30:.0f} GiB free in {os.getcwd()}"
    if free < _LOW_DISK:
        return Finding("disk", "note", detail, "checkpoints may not fit: point job.dump_folder elsewhere")
    return Finding("disk", "ok", detail)
