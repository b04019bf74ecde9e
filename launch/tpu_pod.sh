#!/usr/bin/env bash
# One run on all hosts of a TPU pod slice, one process per host; run this on your own machine, with gcloud set up.
# The workdir must lie on a file system that all hosts mount (Filestore, NFS), not in a bucket.
# What a host says may tell of sensitive images: it goes to internal/console-HOST.log of the workdir.
set -euo pipefail

### EDIT 1: the pod slice
name=privimage-pod zone=us-central2-b

### EDIT 2: what to run, in a checkout that all hosts share
checkout=/mnt/shared/privimage_jax
workdir=/mnt/shared/runs/cifar10
command="privimage run --config configs/cifar10.py --workdir $workdir"

# The environment is made once, then each host's process asks the TPU runtime for its place.
once="cd $(printf %q "$checkout") && source launch/environment.sh tpu"
inside="source launch/console.sh $(printf %q "$workdir") console-\$(hostname)"
all="$once && $inside && PRIVIMAGE_COORDINATOR=auto PRIVIMAGE_START_TIMEOUT=300 $command"
on_hosts() { # on_hosts WHICH COMMAND
  local ssh=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker "$1" --command "$2")
  if [ "${dry_run:-}" ]; then printf '%q ' "${ssh[@]}" && echo; else "${ssh[@]}"; fi
}
dry_run=$([ "${1:-}" = --dry_run ] && echo yes || true)
on_hosts 0 "$once"
on_hosts all "$all"
