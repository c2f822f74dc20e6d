#!/usr/bin/env bash
#SBATCH --job-name=flame
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Trains a job on several nodes, from the repository's folder:
#
#   sbatch --nodes 4 docs/slurm.sh --job.config_file job.toml [--section.key value ...]
#
# Submitting it again goes on from the newest complete step. docs/multinode.md says more.
set -euo pipefail
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export NNODE="${#hosts[@]}" MASTER_ADDR="${hosts[0]}"
# Jobs that share a first node need ports of their own.
export MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
# Since Slurm 22.05 a step does not take the job's number of cores by itself.
[[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# One train.sh per node, which starts a process per device. A node that fails ends the others at once.
exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash "${FLAME:-$SLURM_SUBMIT_DIR}/train.sh" "$@"
