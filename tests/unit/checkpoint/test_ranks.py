"""Steps saved by several processes: loaded and exported by any other number of them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkpoint_stand_ins import Run, TinyModel
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn

from flame.checkpoint.hf_export import export_hf
from flame.checkpoint.storage import StepWriter

WIDTH = 7  # does not divide by two ranks


def _sharded(tied: bool = False) -> TinyModel:
    torch.manual_seed(0)
    model = TinyModel(tied, width=WIDTH)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def _full(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
        for name, tensor in model.state_dict().items()
    }


def _two_ranks(rank: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    lanes = range(rank * 2, rank * 2 + 2)

    saver = Run(folder / "two", _sharded(tied=True), lanes, async_mode="async")
    saver.train(2)
    saver.manager.close()
    weights = _full(saver.model)

    loader = Run(folder / "one", _sharded(), lanes)
    assert loader.manager.load()
    loaded = _full(loader.model)
    assert list(loader.lanes.lanes) == [f"place_{lane:06d}" for lane in lanes]
    assert all(int(lane[0]) == number for number, lane in zip(lanes, loader.lanes.lanes.values(), strict=True))

    init = Run(folder / "fresh", _sharded(tied=True), initial_load_in_hf=True, initial_load_path=str(folder / "hf"))
    assert init.manager.load()
    initial = _full(init.model)

    blocks = distribute_tensor(torch.arange(35.0).reshape(5, 7), init_device_mesh("cpu", (2,)), [Shard(1)])
    save({"weight": blocks}, storage_writer=StepWriter(folder / "columns" / "step-1"))
    if rank == 0:
        torch.save({"weights": weights, "loaded": loaded, "initial": initial}, folder / "results.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, process_group) -> Path:
    """A folder in which two processes saved a run, and loaded another that one process had saved."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(1)
    one = Run(folder / "one", TinyModel(width=WIDTH))
    one.train(1)
    one.manager.close()
    (folder / "assets").mkdir()
    (folder / "assets" / "config.json").write_text("{}")
    export_hf(
        folder / "one" / "checkpoint" / "step-1",
        folder / "assets",
        folder / "hf",
        progress=False,
        tied={"head.weight": "embedding.weight"},
    )
    torch.save(one.model.state_dict(), folder / "one.pt")
    spawn(_two_ranks, (folder,), nprocs=2)
    return folder


def test_one_process_resumes_what_two_saved(two_ranks):
    run = Run(two_ranks / "two", TinyModel(tied=True, width=WIDTH))
    assert run.manager.load()
    weights = torch.load(two_ranks / "results.pt")["weights"]
    assert all(torch.equal(run.model.state_dict()[name], weights[name]) for name in weights)
    assert list(run.lanes.lanes) == [f"place_{lane:06d}" for lane in range(4)]
    assert [int(lane[0]) for lane in run.lanes.lanes.values()] == [0, 1, 2, 3]
    assert run.counter.step == 2
    run.train(1)
    run.manager.close()


def test_two_processes_resume_what_one_saved(two_ranks):
    loaded = torch.load(two_ranks / "results.pt")["loaded"]
    weights = torch.load(two_ranks / "one.pt")
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_two_processes_start_from_a_folder_whose_tied_weight_is_stored_once(two_ranks):
    initial = torch.load(two_ranks / "results.pt")["initial"]
    weights = torch.load(two_ranks / "one.pt")
    assert torch.equal(initial["embedding.weight"], weights["embedding.weight"])
    assert torch.equal(initial["head.weight"], weights["embedding.weight"])
    assert torch.equal(initial["body.weight"], weights["body.weight"])


def test_the_export_of_a_sharded_step_has_the_full_weights(two_ranks):
    out = export_hf(
        two_ranks / "two" / "checkpoint" / "step-1", two_ranks / "assets", two_ranks / "out", progress=False
    )
    exported = load_file(out / "model.safetensors")
    step = Run(two_ranks / "two", TinyModel(tied=True, width=WIDTH))
    step.manager.load(1)
    expected = step.model.state_dict()
    assert exported.keys() == expected.keys() - {"head.weight"}, "the tied weight is stored once"
    assert all(torch.equal(exported[name], expected[name]) for name in exported)


def test_the_export_puts_together_what_is_sharded_across_rows(two_ranks):
    step = two_ranks / "columns" / "step-1"
    out = export_hf(step, two_ranks / "assets", two_ranks / "columns_hf", dtype="bfloat16", progress=False)
    expected = torch.arange(35.0).reshape(5, 7).bfloat16()
    assert torch.equal(load_file(out / "model.safetensors")["weight"], expected)


KILLED_RUNS = """
    import os, random, signal, sys, time
    from pathlib import Path

    sys.path.insert(0, {stand_ins!r})
    import torch
    import torch.distributed as dist
    import flame.compat
    from checkpoint_stand_ins import Run, TinyModel

    folder, width = Path(sys.argv[1]), 512
    random.seed(0)

    def save_for_ever():
        torch.set_num_threads(1)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        mode = random.choice(["disabled", "async"])
        run = Run(folder, TinyModel(width=width), keep_latest_k=random.choice([1, 2]), async_mode=mode)
        run.manager.load()
        while True:
            run.counter.step += 1
            with torch.no_grad():
                for parameter in run.model.parameters():
                    parameter.fill_(run.counter.step)
            run.manager.save(run.counter.step)

    for attempt in range(12):
        random.seed(attempt)
        child = os.fork()
        if child == 0:
            try:
                save_for_ever()
            except BaseException:
                import traceback
                traceback.print_exc()
            os._exit(1)
        time.sleep(0.3 + random.random() * 0.5)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the run failed by itself"
"""


def test_a_run_killed_at_any_moment_leaves_a_good_last_step(tmp_path, process_group, caplog):
    script = textwrap.dedent(KILLED_RUNS).format(stand_ins=str(Path(__file__).parent))
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], check=True)
    run = Run(tmp_path, TinyModel(width=512))
    assert run.manager.load()
    assert "Skipping" not in caplog.text
    assert run.counter.step > 12
    assert all(bool((parameter == run.counter.step).all()) for parameter in run.model.parameters())
    assert not [path.name for path in (tmp_path / "checkpoint").iterdir() if path.name.startswith(".")]
