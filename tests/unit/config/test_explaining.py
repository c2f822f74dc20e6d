"""Documentation of keys, built from the section classes."""

from dataclasses import dataclass

import pytest

from flame.config import ALIASES, TaskOptions, explain, help_text, list_keys
from flame.config.aliases import CORPUS_ALIASES, REFUSED
from flame.config.cli import main
from flame.config.explaining import documentation
from flame.config.schema import display, schema_for
from flame.errors import ConfigError

KEYS = [key.name for key in schema_for().used()]


@pytest.mark.parametrize("name", KEYS)
def test_every_key_is_documented(name):
    key = schema_for().keys[name]
    text = explain(name)
    assert len(documentation(key)) > 10
    assert text.startswith(display(name))
    assert "type: " in text
    assert "default: " in text


@pytest.mark.parametrize("alias", [*ALIASES, *CORPUS_ALIASES])
def test_an_alias_is_explained_by_its_canonical_key(alias):
    text = explain(alias)
    canonical = ALIASES.get(alias) or f"data.sources.N.{CORPUS_ALIASES[alias]}"
    assert text.splitlines()[0] == canonical
    assert alias in text


@pytest.mark.parametrize("key", sorted(set(REFUSED) - {"job.config_file"}))
def test_a_refused_key_is_explained_by_its_remedy(key):
    assert explain(key) == f"{key} is not used by flame: {REFUSED[key].remedy}."


def test_an_unused_section_is_said_to_be_unused():
    assert explain("fault_tolerance") == "fault_tolerance is not used by flame."


def test_default_range_and_type_are_told():
    lines = explain("--optimizer.matrix_lr").splitlines()
    assert {"  type: a number", "  default: 0.02", "  range: above 0"} <= set(lines)


@pytest.mark.parametrize("name", ["data.sources", "data.sources.N", "data.sources.3"])
def test_a_list_of_tables_is_explained_by_its_keys(name):
    text = explain(name)
    assert text.startswith("[[data.sources]]")
    assert "--data.sources.N.weight" in text


def test_a_section_is_explained_by_its_keys_and_those_inside_it():
    text = explain("training")
    assert "--training.steps" in text
    assert "--training.dataloader.num_workers" in text
    assert "--optimizer.lr" not in text


@pytest.mark.parametrize("name", ["training.stepz", "trainning", "", "data.sources.N.pth"])
def test_an_unknown_key_is_an_error(name):
    with pytest.raises(ConfigError, match="Unknown"):
        explain(name)


@dataclass
class Options(TaskOptions):
    """Options of an imaginary task."""

    depth: int = 1
    """How deep it goes. Deeper is slower."""


def test_options_of_a_task_are_documented():
    assert "How deep it goes. Deeper is slower." in explain("task.depth", Options)
    assert "How deep it goes." in help_text(Options)
    assert "Deeper" not in help_text(Options)


def test_help_and_list_hold_every_key_once():
    names = [display(name) for name in KEYS]
    assert sorted(line.partition(" = ")[0] for line in list_keys().splitlines()) == sorted(names)
    shown = [line.split()[0] for line in help_text().splitlines() if line.startswith("  --")]
    assert "[[data.sources]]  One corpus" in help_text()
    assert "\n[profiling]\n" in help_text()
    assert sorted(shown) == sorted(f"--{name}" for name in names)


def test_the_config_verb(capsys):
    assert main(["explain", "training.steps", "optimizer"]) == 0
    assert "training.steps" in capsys.readouterr().out
    assert main(["list"]) == 0
    assert "training.steps = 0" in capsys.readouterr().out
    assert main(["--help"]) == 0


@pytest.mark.parametrize("argv", [["explian"], ["explain"], ["explain", "training.stepz"]])
def test_mistakes_of_the_config_verb(argv):
    with pytest.raises(ConfigError):
        main(argv)
