import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from flame import plugin
from flame.errors import ConfigError
from flame.plugin import ModelPlugin, load_plugin, load_task, modeling_files
from tests.runs import FAMILIES


@pytest.fixture
def custom_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty ``custom_models`` package that stands in for the repository's."""
    package = tmp_path / "site" / "custom_models"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in [name for name in sys.modules if name.split(".")[0] == "custom_models"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(package.parent))
    yield package
    for name in [name for name in sys.modules if name.startswith(("custom_models", "flame_plugin_made"))]:
        del sys.modules[name]


def family(folder: Path, name: str, note: str = "", body: str = "") -> Path:
    """Writes a family's package; ``note`` tells where it was found."""
    package = folder / name
    package.mkdir(parents=True)
    (package / f"configuration_{name}.py").touch()
    declared = f"from flame.plugin import ModelPlugin\nPLUGIN = ModelPlugin('{name}', origin='{note}')\n"
    (package / "__init__.py").write_text(body or declared)
    return package


def install(monkeypatch: pytest.MonkeyPatch, group: str, name: str, value: str) -> None:
    point = EntryPoint(name, value, group)

    def entry_points(*, group: str):
        return [point] if group == point.group else []

    monkeypatch.setattr(plugin.importlib.metadata, "entry_points", entry_points)


INSTALLED = ModelPlugin("made", origin="installed")
INSTALLED_LLAMA = ModelPlugin("llama", origin="installed")


def test_places_are_searched_in_order(custom_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    family(outside, "made", "folder")
    assert load_plugin("made", str(outside)).origin == "folder"
    install(monkeypatch, "flame.plugins", "made", f"{__name__}:INSTALLED")
    assert load_plugin("made", str(outside)).origin == "installed"
    family(custom_models, "made", "custom")
    plugin.importlib.invalidate_caches()
    assert load_plugin("made", str(outside)).origin == "custom"


def test_a_family_of_ones_own_hides_a_library_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_plugin("llama").origin == "transformers"
    install(monkeypatch, "flame.plugins", "llama", f"{__name__}:INSTALLED_LLAMA")
    assert load_plugin("llama").origin == "installed"


def test_a_folder_may_be_the_family_itself(tmp_path: Path, custom_models: Path) -> None:
    package = family(tmp_path / "outside", "made_alone", "folder")
    assert load_plugin("made_alone", str(package)).origin == "folder"


def test_families_of_fla_run_anywhere_and_take_borders() -> None:
    found = load_plugin("gla")
    assert (found.origin, found.needs_triton, found.documents) == ("fla", "", "cu_seqlens")
    assert "CUDA" in load_plugin("mamba3").needs_triton


def test_a_family_whose_cache_is_not_exact_generates_without() -> None:
    assert load_plugin("gla").decodes_with_cache
    assert not load_plugin("stickbreaking_attn").decodes_with_cache


def test_a_broken_family_reports_its_own_error(custom_models: Path, tmp_path: Path) -> None:
    """It must not look as if the family did not exist."""
    family(custom_models, "made_broken", body="import no_such_library\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load_plugin("made_broken")
    family(tmp_path / "outside", "made_broken_too", body="1 / 0\n")
    for _ in range(2):  # a half-imported module must not be taken for a whole one
        with pytest.raises(ZeroDivisionError):
            load_plugin("made_broken_too", str(tmp_path / "outside"))


def test_a_family_without_a_plugin_says_so(custom_models: Path) -> None:
    family(custom_models, "made_bare", body="x = 1\n")
    with pytest.raises(ConfigError, match="made_bare.*defines no PLUGIN"):
        load_plugin("made_bare")


def test_a_family_under_another_name_says_so(custom_models: Path) -> None:
    body = "from flame.plugin import ModelPlugin\nPLUGIN = ModelPlugin('other')\n"
    family(custom_models, "made_renamed", body=body)
    with pytest.raises(ConfigError, match="made_renamed.*declares PLUGIN.model_type 'other'"):
        load_plugin("made_renamed")


@pytest.mark.parametrize("name", ["lama", "no such", "../llama", "llama.modeling_llama", "modeling_layers", "utils"])
def test_a_name_that_is_no_family_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no family flame can find"):
        load_plugin(name)


def test_a_plugin_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        load_plugin("made", str(tmp_path / "absent"))


def test_a_task_is_found_in_flame_and_beside_a_family() -> None:
    assert load_task("causal_lm").__module__ == "flame.tasks.causal_lm"
    assert load_task("faulty", str(FAMILIES)).__name__ == "Faulty"
    assert load_task("faulty", str(FAMILIES / "deaf_lm")).__name__ == "Faulty"


def test_a_task_of_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flame.tasks", "mine", f"{__name__}:INSTALLED")
    assert load_task("mine") is INSTALLED


@pytest.mark.parametrize("name", ["casual_lm", "base", "__init__", "no.such", ""])
def test_a_name_that_is_no_task_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"task.name '{name}' is no task"):
        load_task(name)


def test_a_misspelt_task_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'causal_lm'"):
        load_task("casual_lm", str(FAMILIES))


def test_only_families_of_ones_own_carry_their_code() -> None:
    assert modeling_files(LlamaForCausalLM) == []
    load_plugin("ema_lm", str(FAMILIES))
    from transformers import AutoConfig, AutoModelForCausalLM

    ema = type(AutoModelForCausalLM.from_config(AutoConfig.for_model("ema_lm")))
    assert [path.name for path in modeling_files(ema)] == ["configuration_ema_lm.py", "modeling_ema_lm.py"]
