"""Converts a run's checkpoint: ``python -m flame.utils.convert_dcp_to_hf --path RUN``."""

import sys

from flame.cli import run
from flame.utils.convert import to_hf

if __name__ == "__main__":
    sys.exit(run(to_hf, sys.argv[1:]))
