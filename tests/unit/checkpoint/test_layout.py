"""The names inside a run folder."""

from flame.checkpoint.layout import RunFolder, find_steps, step_of, update_latest


def test_only_folders_named_after_a_step_are_steps(tmp_path):
    for name in ("step-10", "step-9", ".step-11.partial", "step-12.superseded", "step-x", "step-"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-13").write_text("a file")
    assert find_steps(tmp_path) == [9, 10]
    assert find_steps(tmp_path / "absent") == []
    assert step_of(tmp_path / "step-10") == 10
    assert step_of(tmp_path / "step-10.superseded") == -1


def test_latest_is_a_relative_link_that_moves(tmp_path):
    run = RunFolder(tmp_path / "run")
    for step in (1, 2):
        (run.hf / f"step-{step}").mkdir(parents=True)
        update_latest(run.hf, step)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "hf" / "latest").resolve() == tmp_path / "moved" / "hf" / "step-2"
    assert sorted(path.name for path in (tmp_path / "moved" / "hf").iterdir()) == ["latest", "step-1", "step-2"]
