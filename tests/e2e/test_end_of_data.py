"""A run whose sources all have had their epochs ends like one that has had its steps."""

import pytest

from tests.runs import write_job


@pytest.mark.parametrize("world", [1, 2])
def test_it_saves_validates_and_exports_the_step_it_reached(materials, pool, tmp_path, world):
    changes = {
        "training.local_batch_size": 8 // world,
        "training.steps": 1000,
        "data.sources": [{"path": str(materials.train), "epochs": 0.5}],
        "validation.enable": True,
        "validation.sources": [{"path": str(materials.train)}],
        "validation.steps": 1,
        "validation.freq": 500,
        "export.enable": True,
    }
    run = pool.run(write_job(materials, tmp_path / "run", changes), tmp_path / "run", world=world)
    assert run.code == 0, run.output
    steps = [record["step"] for record in run.records if "loss" in record]
    last = steps[-1]
    assert 1 < last < 1000 and steps == list(range(1, last + 1))
    assert (run.folder / "checkpoint" / f"step-{last}").is_dir()
    assert (run.folder / "hf" / f"step-{last}" / "config.json").is_file()
    assert [record["step"] for record in run.records if "val_loss" in record] == [last]
