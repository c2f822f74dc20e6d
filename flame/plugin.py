"""Finds model families and tasks by name; no list of them exists anywhere.

A family is a ``ModelPlugin`` called ``PLUGIN`` in a package named after its ``model_type``. It is looked for in
``custom_models/``, among installed packages (entry point group ``flame.plugins``), in the folder of
``model.plugin_path``, in flash-linear-attention and in transformers, in that order.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn as nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flame import compat
from flame.errors import ConfigError, closest
from flame.ops.install import install
from flame.ops.table import KERNELS_ONLY, WITHOUT_CACHE

ENTRY_POINTS = "flame.plugins"
TASK_ENTRY_POINTS = "flame.tasks"


@dataclass(frozen=True)
class ModelPlugin:
    """What flame needs to know of a model family beyond its HuggingFace classes."""

    model_type: str
    """The family's ``model_type``, as in its ``config.json`` and as its folder is called."""

    auto_classes: Mapping[str, type] = field(default_factory=lambda: {"causal_lm": AutoModelForCausalLM})
    """The HuggingFace auto class of each head the family has; tasks name the head they train."""

    tiny: Callable[[], PreTrainedConfig] | None = None
    """A config below a million parameters for contract tests; None shrinks the default config by its sizes."""

    forward_flops: Callable[[PreTrainedConfig, int], int] | None = None
    """FLOPs of one sequence's forward pass, from (config, sequence length); None counts matrix products on meta."""

    documents: str = "position_ids"
    """How the forward pass is told where packed documents begin: ``position_ids`` or ``cu_seqlens``."""

    needs_triton: str = ""
    """Why the family needs a device that runs Triton, where its token mixers exist as kernels only; empty if it runs
    anywhere."""

    decodes_with_cache: bool = True
    """Whether a cached pass computes what one over the whole sequence does; else generation runs without a cache."""

    objective: str = "autoregressive"
    """What the family is made to be trained on: ``autoregressive``, ``recurrent_depth``, ``masked_diffusion``, ``ctc``
    or ``classification``. Tasks name the objectives they serve, and ``flame generate`` decodes those of text."""

    features: Callable[[PreTrainedConfig], Any] | None = None
    """The HuggingFace feature extractor that a config asks for, where the model does not read text; its ``features``
    turns what a source gives into ``[steps, width]``."""

    inner: Callable[[PreTrainedConfig], list[str]] = lambda config: []
    """The model types of the families that a config builds upon."""

    initialise: Callable[[PreTrainedModel], None] | None = None
    """Fills a freshly constructed model's weights, where the class does not start them as the family does."""

    refuses: Mapping[str, str] = field(default_factory=dict)
    """What a job may not ask of the family, with the reason: ``tensor``, ``pipeline``, ``context`` or ``expert``
    parallelism, ``varlen``, ``compile``."""

    origin: str = "custom_models"
    """Where the family was found; filled in by ``load_plugin``."""


def load_plugin(model_type: str, plugin_path: str = "") -> ModelPlugin:
    """Finds the family called ``model_type`` and registers its auto classes.

    Args:
        model_type: the ``model_type`` of a ``config.json``.
        plugin_path: a folder outside the repository that is the family's package or holds it.

    Raises:
        ConfigError: no such family, or ``plugin_path`` does not hold one.
    """
    if _module_exists(f"custom_models.{model_type}"):
        return _plugin_of(importlib.import_module(f"custom_models.{model_type}"), model_type)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name == model_type:
            return _plugin_of(point.load(), model_type)
    if plugin_path and (package := _import_folder(Path(plugin_path), model_type)):
        return _plugin_of(package, model_type)
    if model_type in fla_families():
        install()
        compat.hand_fla_its_cache()
        return ModelPlugin(
            model_type,
            documents="cu_seqlens",
            needs_triton=KERNELS_ONLY.get(model_type, ""),
            decodes_with_cache=model_type not in WITHOUT_CACHE,
            origin="fla",
        )
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        compat.prefer_torch_without_triton()
        return ModelPlugin(model_type, origin="transformers")
    known = [*custom_families(), *fla_families(), *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    where = (
        f", nor is it in model.plugin_path {plugin_path}" if plugin_path else "; set model.plugin_path to its folder"
    )
    raise ConfigError(f"model_type '{model_type}' is no family flame can find{where}.{closest(model_type, known)}")


def load_task(name: str, plugin_path: str = "") -> type:
    """Finds the task class called ``name``: ``TASK`` in ``flame/tasks/<name>.py``, in an installed package (entry point
    group ``flame.tasks``) or in ``task_<name>.py`` of a family's folder.

    Raises:
        ConfigError: no such task.
    """
    if name in tasks():
        return importlib.import_module(f"flame.tasks.{name}").TASK
    for point in importlib.metadata.entry_points(group=TASK_ENTRY_POINTS):
        if point.name == name:
            return point.load()
    for family in custom_families():
        if _module_exists(f"custom_models.{family}.task_{name}"):
            return importlib.import_module(f"custom_models.{family}.task_{name}").TASK
    if plugin_path:
        for package in _family_folders(Path(plugin_path)):
            if (package / f"task_{name}.py").is_file():
                module = _import_folder(package, package.name)
                assert module is not None
                return importlib.import_module(f"{module.__name__}.task_{name}").TASK
    raise ConfigError(f"task.name '{name}' is no task flame can find.{closest(name, tasks())}")


def custom_families() -> list[str]:
    """The families of ``custom_models/``, by folder name."""
    return [path.name for path in _family_folders(_custom_models())]


def installed_families() -> list[str]:
    """The families that other installed packages declare."""
    return sorted(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS))


def fla_families() -> list[str]:
    """The causal language models of flash-linear-attention."""
    spec = importlib.util.find_spec("fla")
    if spec is None or not spec.submodule_search_locations:
        return []
    configurations = (Path(spec.submodule_search_locations[0]) / "models").glob("*/configuration_*.py")
    # Read, not imported: that takes seconds.
    found = (re.search(r"^ +model_type(?:: str)? = ['\"](\w+)['\"]", path.read_text(), re.M) for path in configurations)
    return sorted(match[1] for match in found if match)


def transformers_families() -> list[str]:
    """The causal language models of transformers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tasks() -> list[str]:
    """The tasks that come with flame."""
    return sorted(path.stem for path in (Path(__file__).parent / "tasks").glob("*.py") if path.stem not in _NOT_TASKS)


def modeling_files(model_class: type[nn.Module]) -> list[Path]:
    """The ``*.py`` files an exported folder must carry: those of the family's package, none for library classes."""
    if model_class.__module__.startswith(("transformers.", "fla.")):
        return []
    folder = Path(str(sys.modules[model_class.__module__].__file__)).parent
    carried = ("modeling_", "configuration_", "feature_extraction_")
    return sorted(path for path in folder.glob("*.py") if path.stem.startswith(carried))


_NOT_TASKS = {"__init__", "base"}


def _plugin_of(found: ModelPlugin | ModuleType, model_type: str) -> ModelPlugin:
    plugin = getattr(found, "PLUGIN", None) if isinstance(found, ModuleType) else found
    if not isinstance(plugin, ModelPlugin):
        raise ConfigError(f"family '{model_type}' at {found!r} defines no PLUGIN = ModelPlugin(...)")
    if plugin.model_type != model_type:
        raise ConfigError(f"family '{model_type}' declares PLUGIN.model_type '{plugin.model_type}'; make them equal")
    return plugin


def _module_exists(name: str) -> bool:
    """True if the module can be found; unlike trying the import, an error inside it is not mistaken for absence."""
    parts = name.split(".")
    # Each parent first: looking for a module inside one that does not exist is an error.
    return all(part.isidentifier() for part in parts) and all(
        importlib.util.find_spec(".".join(parts[:end])) is not None for end in range(1, len(parts) + 1)
    )


def _custom_models() -> Path:
    spec = importlib.util.find_spec("custom_models")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def _family_folders(folder: Path) -> Iterator[Path]:
    """The packages of families in ``folder``: itself or its children."""
    if list(folder.glob("configuration_*.py")):
        yield folder
        return
    yield from sorted(path.parent for path in folder.glob("*/configuration_*.py"))


def _import_folder(folder: Path, model_type: str) -> ModuleType | None:
    """Imports the family's package from a folder outside ``sys.path``, under the folder's own name."""
    if not folder.is_dir():
        raise ConfigError(f"model.plugin_path '{folder}' is not a folder; give the one that holds '{model_type}'")
    package = next((path for path in _family_folders(folder.resolve()) if path.name == model_type), None)
    if package is None:
        return None
    name = f"flame_plugin_{model_type}"
    if name not in sys.modules:
        locations = [str(package)]
        spec = importlib.util.spec_from_file_location(
            name, package / "__init__.py", submodule_search_locations=locations
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]  # half a module would be taken for the whole next time
            raise
    return sys.modules[name]
