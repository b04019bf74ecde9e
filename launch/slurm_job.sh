# Sourced by the scripts for SLURM, in the checkout: runs their command in the environment, says nothing where others can
# read it, and queues the job again where it was ended with its work saved.
# usage: source launch/slurm_job.sh WORKDIR NAME COMMAND …     NAME: of the file of the console; "" leaves it as it is

privimage_slurm_job() { # privimage_slurm_job WORKDIR NAME COMMAND …
  local workdir=$1 name=$2 status=0
  shift 2
  source launch/environment.sh cuda
  if [ -n "$name" ]; then
    # shellcheck source=launch/console.sh
    source launch/console.sh "$workdir" "$name"
  fi
  trap : TERM # so that this shell waits for its tasks
  "$@" || status=$?
  if [ "$status" = 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then # ended by SIGTERM, with its work saved
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
}

privimage_slurm_job "$@"
