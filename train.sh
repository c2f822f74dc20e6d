#!/usr/bin/env bash
# Trains a job:  bash train.sh --job.config_file configs/jobs/quickstart.toml [--section.key value ...]
#
#   NNODE        nodes                                          (1)
#   NGPU         processes per node                             (all accelerators; 1 on a CPU)
#   MASTER_ADDR  address of the first node                      (localhost)
#   MASTER_PORT  its port; several nodes need a fixed one       (any free)
#   LOG_RANK     ranks whose output is shown, comma separated   (0)
#
# Arguments are passed on untouched; the exit code is the job's.
set -euo pipefail
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
exec "${PYTHON:-python}" -m flame.launch "$@"
