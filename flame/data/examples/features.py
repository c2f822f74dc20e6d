"""Feature extractors on their way to worker processes."""

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any


class CarriedFeatures:
    """A feature extractor that is unpickled without the package of its family, which imports torch and models.

    A worker runs the file that defines its class, by itself: one that exports along with a model is made for that.
    """

    def __init__(self, features: Any):
        self._features = features

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # asked for while there is nothing to ask
        return getattr(self._features, name)

    def __getstate__(self) -> tuple[str, str, dict[str, Any]]:
        kind = type(self._features)
        return str(inspect.getsourcefile(kind)), kind.__name__, self._features.to_dict()

    def __setstate__(self, state: tuple[str, str, dict[str, Any]]) -> None:
        file, name, values = state
        self._features = getattr(_module(file), name).from_dict(values)


def _module(file: str) -> Any:
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == file:
            return module
    spec = importlib.util.spec_from_file_location(f"flame_{Path(file).stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
