"""Finding files: as given, else among the shipped ones."""

import pytest

from flame.config import locate, shipped
from flame.errors import ConfigError


@pytest.mark.parametrize(
    "name",
    ["configs/jobs/quickstart.toml", "jobs/quickstart.toml", "jobs/quickstart", "quickstart", "quickstart.toml"],
)
def test_a_shipped_job_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(name).parts[-3:] == ("configs", "jobs", "quickstart.toml")


@pytest.mark.parametrize("name", ["llama_10M", "llama_10M.json", "configs/llama_10M.json", "configs/llama_10M"])
def test_a_shipped_model_is_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(name).name == "llama_10M.json"


def test_a_file_of_the_package_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("flame/models/fla.toml").is_file()


def test_the_working_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.toml").write_text("")
    assert locate("quickstart.toml").resolve() == tmp_path / "quickstart.toml"


def test_an_installed_config_is_found(tmp_path, monkeypatch):
    (tmp_path / "configs" / "jobs").mkdir(parents=True)
    (tmp_path / "configs" / "jobs" / "installed.toml").write_text("")
    monkeypatch.setattr("flame.config.files._INSTALLED", tmp_path)
    assert locate("installed") == tmp_path / "configs" / "jobs" / "installed.toml"
    assert "configs/jobs/installed.toml" in map(str, shipped())


def test_dots_in_a_name_are_not_a_suffix(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "model_1.5B.json").write_text("{}")
    monkeypatch.setattr("flame.config.files._INSTALLED", tmp_path)
    assert locate("model_1.5B").name == "model_1.5B.json"


def test_a_missing_file_names_the_closest():
    with pytest.raises(ConfigError, match="No such file: 'quickstrat'. Did you mean 'quickstart'?"):
        locate("quickstrat")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        locate(tmp_path)
