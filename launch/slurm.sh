#!/usr/bin/env bash
# One run over several nodes of a SLURM cluster, one process per GPU: sbatch launch/slurm.sh
# The workdir must lie on a file system that all nodes share. launch/slurm.sh --dry_run prints what would be started.
# A run that is pre-empted, or comes to the end of its time, saves its work and is queued again.
# What it says may tell of sensitive images: it goes to internal/console.log of the workdir, not to SLURM's own file.

### EDIT 1: what to ask of the cluster
#SBATCH --job-name=privimage
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

### EDIT 2: what to run
workdir=runs/cifar10
command=(privimage run --config configs/cifar10.py --workdir "$workdir")

set -euo pipefail
# Each task finds its place in SLURM's variables. One that fails ends the others itself, with a sentence.
export PRIVIMAGE_COORDINATOR=auto PRIVIMAGE_START_TIMEOUT=300
command=(srun --kill-on-bad-exit=0 "${command[@]}")
if [ "${1:-}" = --dry_run ]; then
  echo "${command[@]}"
  exit
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" # sbatch runs a copy of this file
source launch/slurm_job.sh "$workdir" console "${command[@]}"
