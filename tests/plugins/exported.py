"""Exports a small model as a run does, and uses the folder where there is no flame."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import PreTrainedModel

from flame.checkpoint.hf_export import export_hf
from flame.config import JobConfig
from flame.models.build import model_class
from flame.plugin import load_plugin
from flame.spec import Job, write_assets

_PROGRAM = """
import sys
sys.modules["flame"] = sys.modules["custom_models"] = None  # importing them is an error now
import torch
from transformers import AutoModelForCausalLM
folder, given, found = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
prompt, mask, options = torch.load(given)
with torch.no_grad():
    logits = model(input_ids=prompt, attention_mask=mask).logits
torch.save([logits, model.generate(prompt, attention_mask=mask, **options)], found)
"""


def export(model: PreTrainedModel, folder: Path) -> Path:
    """The HuggingFace folder of a model, made from a checkpoint; needs a process group."""
    plugin = load_plugin(model.config.model_type)
    job = JobConfig()
    job.job.dump_folder = str(folder)
    head = Mock(head="causal_lm")
    write_assets(Job(job, plugin, model.config, model_class(plugin, model.config, "causal_lm"), Mock(), head, False))
    save(dict(model.state_dict()), checkpoint_id=folder / "step-1")
    return export_hf(folder / "step-1", folder / "model", folder / "hf", progress=False)


def without_flame(folder: Path, prompt: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Logits of a prompt, and what it generates, from an exported folder in a process that cannot import flame."""
    given, found = folder.with_name("given.pt"), folder.with_name("found.pt")
    torch.save([prompt, mask, options], given)
    modules = str(folder.with_name("modules"))
    environment = {**os.environ, "HF_MODULES_CACHE": modules, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROGRAM, str(folder), str(given), str(found)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    logits, tokens = torch.load(found)
    return logits, tokens
