"""flame: train sequence models of any architecture at any scale from one TOML file."""

import os

__version__ = "0.1.0"

# OpenMP threads that wait spin for milliseconds by default. Where processes share cores (data workers, ranks on one
# machine, other people's jobs) the waiting then takes the time of the working: 12x slower steps were measured.
# Read when torch is loaded, so it stands here, before any import of torch.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
