"""Where fla's entry points lead after ``install``, in processes of their own, which share no binding with the tests."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flame.errors import ConfigError
from flame.ops.install import install, original, resolve
from flame.ops.table import ENTRY_POINTS, METHODS, PACKAGES

L2NORM = "fla.modules.norm.l2norm:l2norm"


def in_a_process(case: str, choice: str = "auto") -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.unit.ops import test_install; test_install.{case}()"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "FLAME_OPS": choice, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def bindings() -> dict[tuple[str, str], Any]:
    return {
        (name, key): value
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "fla"
        for key, value in vars(module).items()
    }


def accelerated() -> list[Any]:
    """Installs as on a machine with an accelerator; returns what the stub in the place of fla's ``l2norm`` was called
    with.
    """
    import fla.layers  # noqa: F401
    import fla.models  # noqa: F401

    calls: list[Any] = []

    def l2norm(x: Any, eps: float = 1e-6, output_dtype: Any = None) -> str:
        calls.append((x, eps))
        return "theirs"

    theirs = resolve(L2NORM)
    for (name, key), value in bindings().items():
        if value is theirs:
            setattr(sys.modules[name], key, l2norm)
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda *_, **__: torch.device("cuda")
    install()
    assert original(L2NORM) is l2norm
    return calls


def on_a_cpu() -> None:
    torch.accelerator.current_accelerator = lambda *_, **__: None
    path = "fla.ops.gla.chunk:chunk_gla"
    theirs = original(path)
    install()
    # No module still binds an original, and nothing stands between a call and our function.
    gone = {id(original(path)): path for path in ENTRY_POINTS}
    first = bindings()
    left = {place: gone[id(value)] for place, value in first.items() if id(value) in gone}
    assert not left, left
    wrong = [path for path, ours in ENTRY_POINTS.items() if resolve(path) is not resolve(ours)]
    assert not wrong, wrong
    for path_, ours in METHODS.items():
        owner, _, method = path_.rpartition(".")
        assert getattr(resolve(owner), method) is resolve(ours), path_
    assert not [id(function) for function in resolve("fla.modules.activations:ACT2FN").values() if id(function) in gone]
    assert not [place for place, value in first.items() if place[1] in PACKAGES and value is None]
    # fla's own are still to be had.
    assert original(path) is theirs is not resolve(path)
    assert all(original(path) is not resolve(path) for path in ENTRY_POINTS)
    # A second call changes nothing.
    install()
    second = bindings()
    assert second.keys() == first.keys()
    assert not [place for place in first if second[place] is not first[place]]
    assert {id(original(path)) for path in ENTRY_POINTS} == set(gone)


def on_an_accelerator() -> None:
    calls = accelerated()
    bound = resolve(L2NORM)
    x = torch.randn(3, 4)
    assert torch.allclose(bound(x).norm(dim=-1), torch.ones(3))
    assert bound(x=x).shape == x.shape, "by name"
    assert bound(x.to("meta")).is_meta
    assert not calls

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda", 0)

    there = x.as_subclass(Elsewhere)
    assert bound(there, eps=1e-3) == bound(x=there) == "theirs"
    assert [(seen is there, eps) for seen, eps in calls] == [(True, 1e-3), (True, 1e-6)]
    assert bound.__name__ == "l2norm"


def ours_by_request() -> None:
    calls = accelerated()
    wrong = [path for path, ours in ENTRY_POINTS.items() if resolve(path) is not resolve(ours)]
    assert not wrong, wrong
    assert not calls


def test_without_an_accelerator_everything_leads_to_ours() -> None:
    in_a_process("on_a_cpu")


def test_with_an_accelerator_the_device_of_the_tensors_decides() -> None:
    in_a_process("on_an_accelerator")


def test_ours_can_be_asked_for_on_an_accelerator() -> None:
    in_a_process("ours_by_request", "torch")


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_OPS", "nonsense")
    with pytest.raises(ConfigError, match="FLAME_OPS='nonsense'.*'auto'.*'torch'"):
        install()
