"""The ``flame`` command and ``flame doctor``."""

import importlib.util
import json
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError

import pytest

from flame import cli, doctor
from flame.errors import ConfigError


def flame(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flame.cli", *arguments], capture_output=True, text=True, timeout=120)


def test_help_comes_at_once_and_lists_every_verb():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = flame("--help")
        times.append(time.perf_counter() - start)
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in cli.VERBS)
    assert min(times) < 0.5


def test_help_imports_no_heavy_module():
    program = (
        "import sys; from flame.cli import main; main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'torchtitan', 'transformers', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_its_module(verb):
    assert importlib.util.find_spec(cli.VERBS[verb].module) is not None


def test_an_unknown_verb_is_one_line_with_the_closest():
    done = flame("trian")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "flame: error: Unknown verb 'trian'. Did you mean 'train'? `flame --help` lists them.\n"


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("flame ")


def raising(error: BaseException):
    def main(argv: list[str]) -> int:
        raise error

    return main


def test_errors_of_the_user_become_one_line(capsys):
    assert cli.run(raising(ConfigError("two\nlines")), []) == 2
    assert capsys.readouterr().err == "flame: error: two lines\n"


def test_other_value_errors_say_how_to_find_their_place(capsys, monkeypatch):
    monkeypatch.delenv("FLAME_DEBUG", raising=False)
    assert cli.run(raising(ValueError("bad")), []) == 2
    assert capsys.readouterr().err == "flame: error: bad (FLAME_DEBUG=1 shows where)\n"


def test_debugging_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("FLAME_DEBUG", "1")
    assert cli.run(raising(ConfigError("bad")), []) == 2
    assert "Traceback" in capsys.readouterr().err


def test_faults_of_flame_keep_their_traceback():
    with pytest.raises(RuntimeError):
        cli.run(raising(RuntimeError("fault")), [])


def test_an_interrupt_ends_with_130():
    assert cli.run(raising(KeyboardInterrupt()), []) == 130


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3)])
def test_the_exit_code_is_the_verbs(result, code):
    assert cli.run(lambda argv: result, []) == code


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m flame.cli config list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_reports_this_environment(capsys):
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("python", "flame", "torch", "torchtitan", "transformers", "cpu", "disk"):
        assert any(line.split()[:2] == ["ok", name] or line.split()[:2] == ["note", name] for line in lines), name


def test_doctor_as_json(capsys):
    assert doctor.main(["--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {"name", "status", "detail", "remedy"} == set(findings[0])


def test_doctor_flags_a_version_outside_its_pin(monkeypatch, capsys):
    version = doctor.importlib.metadata.version
    monkeypatch.setattr(
        doctor.importlib.metadata, "version", lambda name: "0.3.0" if name == "torchtitan" else version(name)
    )
    assert doctor.main([]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "torchtitan" in line)
    assert line.startswith("error")
    assert "pip install 'torchtitan==0.2.2'" in line


def test_doctor_flags_a_missing_package(monkeypatch, capsys):
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    assert doctor.main([]) == 1
    assert "transformers            not installed  -> pip install 'transformers" in capsys.readouterr().out


def test_doctor_takes_no_other_argument():
    with pytest.raises(ConfigError, match="takes only --json"):
        doctor.main(["--all"])
