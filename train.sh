#!/usr/bin/env bash
# Trains a job:  bash train.sh --job.config_file configs/jobs/quickstart.toml [--section.key value ...]
#
#   NNODE        nodes                                          (1)
#   NGPU         processes per node                             (all accelerators; 1 on a CPU)
#   MASTER_ADDR  address of the first node                      (several nodes need it)
#   MASTER_PORT  a free port there                              (several nodes need it)
#   LOG_RANK     processes of this node whose output is shown   (0; comma separated)
#
# On several nodes run the same on each (docs/multinode.md). Arguments are passed on untouched; the exit code is the job's.
set -euo pipefail
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
exec "${PYTHON:-python}" -m flame.launch "$@"
