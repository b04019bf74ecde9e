#!/usr/bin/env bash
# A study over a SLURM array: each task takes its share of the runs: sbatch launch/slurm_study.sh
# The workdir must lie on a file system that all nodes share. launch/slurm_study.sh --dry_run prints what would be started.
# A task that is pre-empted, or comes to the end of its time, saves its work and is queued again. When all have ended, the
# same command without the array joins the table: launch/slurm_study.sh --join
# What a task says may tell of sensitive images: it goes to internal/console-TASK.log of the workdir.
# A task submitted again by its number alone (--array=3) would make the whole study: add --share 3/12 to the command then.

### EDIT 1: what to ask of the cluster; any array will do, and more tasks than runs have nothing to do
#SBATCH --job-name=privimage-study
#SBATCH --array=1-12
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

### EDIT 2: what to run
workdir=runs/study
command=(privimage study --config configs/cifar10.py --workdir "$workdir"
  --methods privimage,pdp_diffusion,dpdm --epsilons 1,10 --seeds 3 --acknowledge_looks)

set -euo pipefail
console="" # whoever joins the table sits before it
if [ "${1:-}" != --join ]; then
  command=(srun --kill-on-bad-exit=0 "${command[@]}")
  console=console-${SLURM_ARRAY_TASK_ID:-1}
fi
if [ "${1:-}" = --dry_run ]; then
  echo "${command[@]}"
  exit
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" # sbatch runs a copy of this file
source launch/slurm_job.sh "$workdir" "$console" "${command[@]}"
