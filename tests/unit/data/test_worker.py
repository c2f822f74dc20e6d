"""Worker processes are light, and never outlive the trainer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TRAINER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from data_stand_ins import Data, Dataloader, Source
from flame.data import TextEncoder
from flame.data.loader import build_loader
from transformers import AutoTokenizer
loader = build_loader(
    sources=[Source(sys.argv[1])], data=Data(), encoder=TextEncoder(AutoTokenizer.from_pretrained(sys.argv[3])),
    seq_len=48, context_len=0, varlen=False, global_batch_size=4, local_batch_size=4, dp_rank=0, dp_world_size=1,
    seed=0, dataloader=Dataloader(num_workers=2),
)
next(iter(loader))
print(*(worker.process.pid for worker in loader._close_pool.peek()[1].__self__.workers), flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_import_neither_torch_nor_transformers():
    code = (
        "import sys, flame.data.worker, flame.data.sources.line_files, flame.data.sources.text_files; "
        "print(sorted({'torch', 'torchtitan', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert output.stdout == b"[]\n"


def test_workers_end_when_the_trainer_is_killed(numbered, byte_tokenizer, tmp_path):
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = [numbered.path, str(Path(__file__).parent), str(tmp_path / "tokenizer")]
    with subprocess.Popen([sys.executable, "-c", TRAINER, *arguments], stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_running, pids))
        os.kill(trainer.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))
