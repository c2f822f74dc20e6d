"""Converts HuggingFace weights: ``python -m flame.utils.convert_hf_to_dcp --model HF --checkpoint DIR``."""

import sys

from flame.cli import run
from flame.utils.convert import to_dcp

if __name__ == "__main__":
    sys.exit(run(to_dcp, sys.argv[1:]))
