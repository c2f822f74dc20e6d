"""Files and folders that are whole or absent."""

import os
from pathlib import Path

import pytest

from flame.errors import DataError
from flame.files import Draft, atomic, beside, move, replace_folder


def test_a_file_takes_its_name_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "a"
    with atomic(target) as draft:
        draft.write_text("one")
        assert not target.exists() and draft.parent == target.parent
    with pytest.raises(KeyboardInterrupt), atomic(target) as draft:
        draft.write_text("two")
        raise KeyboardInterrupt
    assert target.read_text() == "one" and os.listdir(target.parent) == ["a"]


def test_a_file_that_was_not_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_draft_replaces_the_file_only_when_it_is_committed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with Draft(tmp_path / "a") as draft:
        draft.write(b"new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new" and os.listdir(tmp_path) == ["a"]
    with pytest.raises(DataError, match="cannot write .*nowhere/a .*writable folder"):
        Draft(tmp_path / "nowhere" / "a")


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    old, new = tmp_path / "a", tmp_path / "draft"
    for folder, name in ((old, "old"), (new, "new")):
        folder.mkdir()
        (folder / name).write_text(name)
    with pytest.raises(OSError):
        move(new, old)  # which holds something
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "nowhere", old, beside(old))
    assert os.listdir(old) == ["old"]
    replace_folder(new, old, beside(old))
    assert os.listdir(old) == ["new"] and os.listdir(tmp_path) == ["a"]
