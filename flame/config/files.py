"""Finding files: as the user gave them, else among those shipped with flame."""

import sys
from pathlib import Path

from flame.errors import ConfigError, closest

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]  # the repository, or site-packages
_INSTALLED = Path(sys.prefix) / "share" / "flame"
_SUFFIXES = (".toml", ".json")


def locate(path: str | Path) -> Path:
    """Finds a file: as given, else among the shipped configs, with or without their folder and suffix.

    Args:
        path: A path such as ``configs/jobs/quickstart.toml``, or a bare name such as ``quickstart`` or ``llama_10M``.

    Raises:
        ConfigError: There is no such file; the message names the closest shipped one.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return given
    if given.is_dir():
        raise ConfigError(f"'{path}' is a folder, not a file.")
    if not given.is_absolute():
        for candidate in _candidates(given):
            if candidate.is_file():
                return candidate
    names = {name: file for file in shipped() for name in (file.stem, file.name, str(file))}
    raise ConfigError(f"No such file: '{path}'.{closest(str(path), names)}")


def shipped() -> list[Path]:
    """Returns the shipped configs and jobs, as paths relative to the folder that holds ``configs/``, sorted."""
    found = {
        file.relative_to(root)
        for root in (_PACKAGE_PARENT, _INSTALLED)
        for suffix in _SUFFIXES
        for file in (root / "configs").rglob(f"*{suffix}")
    }
    return sorted(found)


def looks_like_path(name: str) -> bool:
    """Tells a path from the hub id or bare name it could be as well, by how it is written."""
    return name.startswith((".", "/", "~")) or name.endswith(_SUFFIXES)


def _candidates(relative: Path) -> list[Path]:
    """Places a shipped file called ``relative`` could be, in order of preference."""
    folders: list[Path] = []
    for root in (_PACKAGE_PARENT, _INSTALLED):
        # Not every file beside the package is shipped with it: in site-packages there are many others.
        folders += [root] if relative.parts[:1] in (("configs",), ("flame",)) else []
        folders += [root / "configs" / room for room in ("", "jobs", "data")]
    names = [relative, *(relative.with_name(relative.name + suffix) for suffix in _SUFFIXES if relative.name)]
    return [folder / name for folder in folders for name in names]
