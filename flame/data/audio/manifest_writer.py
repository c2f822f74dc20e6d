"""Writes manifests of recordings, as ``manifests`` reads them."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flame.data.audio.collect import Utterance
from flame.data.audio.decoding import read_header
from flame.data.audio.recording import Part, part_seconds

_DIGITS = 6  # of seconds: far below a sample
_AUDIO = "audio"


class ManifestWriter:
    """Writes manifests into a folder, and audio that lies in memory beside them.

    Args:
        folder: Where to write.
        home: What the folder is going to be called.
        relative: Whether paths are relative to it.
    """

    def __init__(self, folder: Path, home: Path, relative: bool):
        self._folder = folder
        self._home = home
        self._relative = relative

    def write(self, name: str, utterances: Iterable[Utterance]) -> None:
        """Writes a manifest of that name.

        Raises:
            OSError: It cannot be written.
        """
        with open(self._folder / name, "w", encoding="utf-8") as file:
            for utterance in utterances:
                file.write(json.dumps(self._line(utterance), ensure_ascii=False) + "\n")

    def _line(self, utterance: Utterance) -> dict[str, Any]:
        recording = utterance.recording
        about = {"duration": round(utterance.seconds, _DIGITS), "text": utterance.text}
        if len(recording.parts) == 1:
            return self._part(recording.parts[0], utterance.seconds) | {"text": utterance.text}
        parts = [self._part(part, None) if _is_region(part) else self._path(part) for part in recording.parts]
        return {_AUDIO: parts, "silence": list(recording.silences), **about}

    def _part(self, part: Part, seconds: float | None) -> dict[str, Any]:
        offset = {"offset": round(part.start, _DIGITS)} if part.start else {}
        duration = part_seconds(part) if seconds is None else seconds
        return {_AUDIO: self._path(part), **offset, "duration": round(duration, _DIGITS)}

    def _path(self, part: Part) -> str:
        if part.data is None:
            path = os.path.abspath(part.path)
            return os.path.relpath(path, self._home) if self._relative else path
        suffix = read_header(part.data, part.path).format.lower()
        name = f"{_AUDIO}/{hashlib.blake2b(part.data, digest_size=16).hexdigest()}.{suffix}"
        target = self._folder / name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(part.data)
        return name


def _is_region(part: Part) -> bool:
    return bool(part.start) or part.stop is not None
