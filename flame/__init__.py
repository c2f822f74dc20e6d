"""flame: train sequence models of any architecture at any scale from one TOML file."""

import logging
import os

__version__ = "0.1.0"

# Both are read when torch is loaded, so they stand here, before any import of torch; set them yourself to overrule.
# OpenMP threads that wait spin for milliseconds by default. Where processes share cores (data workers, ranks on one
# machine, other people's jobs) the waiting then takes the time of the working: 12x slower steps were measured.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Large tensors on a CPU are new memory every time, and most of the time of writing one goes into 4 KiB page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# At its import, which transformers causes wherever it is installed, torchao 0.18 complains of every GPU kernel that
# this machine lacks, and torch of how torchao registers its enums.
for _noisy in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
